//! Restores: which credentials are accepted afterwards, and interrupted restores.

use waifud_kit::testing::temp_path;
use waifud_store::credentials::Validity;
use waifud_store::{Mode, NodeKeyRow, Store, StoreError, TokenRow};
use waifud_types::{Digest, NodeId, Role, Timestamp};

use super::super::to_file;
use super::*;

struct World {
    dir: tempfile::TempDir,
    config: Config,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn node(number: u8) -> NodeId {
    format!("00000000-0000-7000-8000-0000000000{number:02x}")
        .parse()
        .unwrap()
}

fn token(text: &str, number: u8) -> TokenRow {
    TokenRow {
        name: name(text),
        id: [number; 8],
        secret: Digest::from_bytes([number; 32]),
        role: Role::Admin,
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "root".to_owned(),
        expires_at: None,
        last_used_at: None,
    }
}

impl World {
    /// Two API tokens, two nodes, a join token; and a backup of them.
    fn new() -> Self {
        let (dir, state_dir) = temp_path("state");
        fs::create_dir(&state_dir).unwrap();
        let config = Config {
            state_dir,
            ..Config::default()
        };
        let world = Self { dir, config };
        world.change(|tx| {
            tx.insert_token(&token("ci", 1))?;
            tx.insert_token(&token("lost", 2))?;
            for (number, text) in [(1, "alder"), (2, "birch")] {
                let row = NodeKeyRow {
                    node: node(number),
                    name: name(text),
                    key: Digest::from_bytes([number; 32]),
                };
                tx.put_node_key(&row, Timestamp::UNIX_EPOCH)?;
            }
            let row = waifud_store::JoinTokenRow {
                id: "0000cafe".to_owned(),
                name: None,
                created_by: "root".to_owned(),
                created_at: Timestamp::UNIX_EPOCH,
                expires_at: Timestamp::MAX,
                spent: None,
            };
            tx.insert_join_token(&row, Digest::from_bytes([9; 32]), Timestamp::UNIX_EPOCH)
        });
        let file = world.file();
        to_file(&world.config, &file, false).unwrap();
        world
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("b.tar")
    }

    fn database(&self) -> PathBuf {
        self.config.state_dir.join(DATABASE)
    }

    fn change(
        &self,
        change: impl FnOnce(&mut waifud_store::WriteTx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) {
        let store = Store::open(&self.database(), Mode::Inline, Incarnation(1)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        runtime.block_on(store.write(change)).unwrap();
    }

    fn restore(&self, keep_tokens: bool) -> anyhow::Result<()> {
        let arguments = RestoreArguments {
            file: self.file(),
            replace: true,
            keep_tokens,
            yes: true,
        };
        restore(&self.config, &arguments)
    }

    fn credentials(&self) -> (Vec<String>, Vec<String>, usize) {
        let found = credentials::read(&self.database()).unwrap();
        let tokens = found.tokens.iter().map(|(name, _)| name.to_string());
        let nodes = found.nodes.iter().map(|(_, name, _)| name.to_string());
        (tokens.collect(), nodes.collect(), found.join_tokens.len())
    }
}

#[test]
fn revoked_tokens_and_removed_nodes_are_not_restored() {
    for (keep, tokens) in [(false, &[][..]), (true, &["ci".to_owned()][..])] {
        let world = World::new();
        world.change(|tx| {
            tx.remove_token("lost")?;
            tx.delete_join_token("0000cafe")?;
            tx.forget_node_key(node(2))
        });
        world.restore(keep).unwrap();
        let (found, nodes, joins) = world.credentials();
        assert_eq!((&found[..], joins), (tokens, 0), "kept: {keep}");
        assert_eq!(nodes, ["alder"]);
    }
}

#[test]
fn a_second_restore_of_the_same_backup_assigns_none_of_the_epochs_since_the_first() {
    let world = World::new();
    let restored = || {
        world.restore(true).unwrap();
        waifud_store::backup::floor_of(&world.database()).unwrap().0
    };
    // Further apart than the clock explains, since an instance may have changed its owner more than once in a millisecond.
    let [first, second] = [restored(), restored()];
    assert!(second >= first + (1 << 20), "{first} {second}");
}

#[test]
fn a_damaged_or_truncated_backup_changes_nothing() {
    let world = World::new();
    let state = &world.config.state_dir;
    fs::create_dir(state.join(PKI)).unwrap();
    let key = state.join(PKI).join("ca.key");
    fs::write(&key, "the key of the CA").unwrap();
    fs::remove_file(world.file()).unwrap();
    to_file(&world.config, &world.file(), false).unwrap();
    fs::write(&key, "a newer key").unwrap();

    let complete = fs::read(world.file()).unwrap();
    let position = |bytes: &[u8]| {
        let mut windows = complete.windows(bytes.len());
        windows.position(|window| window == bytes).unwrap()
    };
    let flipped = |at: usize| {
        let mut bytes = complete.clone();
        bytes[at] ^= 1;
        bytes
    };
    let in_database = position(b"SQLite format 3\0") + 100;
    let in_key = position(b"the key of the CA");
    let before = fs::read(world.database()).unwrap();
    for (fault, bytes) in [
        ("a byte of the database", flipped(in_database)),
        ("a byte of the key", flipped(in_key)),
        ("cut in the key", complete[..in_key + 3].to_vec()),
        ("cut in the database", complete[..in_database].to_vec()),
        ("empty", Vec::new()),
    ] {
        fs::write(world.file(), bytes).unwrap();
        world.restore(true).unwrap_err();
        assert!(fs::read(world.database()).unwrap() == before, "{fault}");
        assert_eq!(fs::read_to_string(&key).unwrap(), "a newer key", "{fault}");
        let entries = fs::read_dir(state).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = names
            .filter(|name| name.starts_with(ASIDE) || [MARKER, STAGED].contains(&name.as_str()))
            .collect();
        assert_eq!(left, [""; 0], "{fault}");
        refuse_half_restored(state).unwrap();
    }
    fs::write(world.file(), complete).unwrap();
    world.restore(true).unwrap();
    assert_eq!(fs::read_to_string(&key).unwrap(), "the key of the CA");
}

#[test]
fn what_an_interrupted_restore_unpacked_is_removed_before_waifud_starts() {
    let world = World::new();
    let state = &world.config.state_dir;
    fs::create_dir(state.join(STAGED)).unwrap();
    fs::write(state.join(STAGED).join("waifud.key"), "a key").unwrap();
    remove_unpacked(state).unwrap();
    assert!(!state.join(STAGED).exists());
    assert!(world.database().exists());
    remove_unpacked(state).unwrap();
}

#[test]
fn a_newer_key_of_a_node_is_kept() {
    let world = World::new();
    world.change(|tx| {
        let row = NodeKeyRow {
            node: node(1),
            name: name("alder"),
            key: Digest::from_bytes([77; 32]),
        };
        tx.put_node_key(&row, Timestamp::UNIX_EPOCH)
    });
    world.restore(false).unwrap();
    let found = credentials::read(&world.database()).unwrap();
    assert_eq!(found.nodes[0].2, Digest::from_bytes([77; 32]));
}

#[test]
fn on_a_new_machine_nodes_are_restored_and_tokens_only_on_request() {
    for (keep, tokens) in [(false, 0), (true, 2)] {
        let world = World::new();
        remove_all(&world.config.state_dir).unwrap();
        world.restore(keep).unwrap();
        let (found, nodes, joins) = world.credentials();
        assert_eq!((found.len(), nodes.len(), joins), (tokens, 2, 0));
    }
}

#[test]
fn an_incomplete_marker_does_not_block_a_restore() {
    let half = "/var/lib/waifud/before-rest";
    for text in [
        "",
        half,
        "before-restore-1",
        "/etc/before-restore-1",
        "\0\u{1}",
    ] {
        let world = World::new();
        let state = &world.config.state_dir;
        fs::write(state.join(MARKER), text).unwrap();
        world.restore(true).unwrap();
        refuse_half_restored(state).unwrap();
        assert_eq!(world.credentials().0.len(), 2, "{text:?}");
        let entries = fs::read_dir(state).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let aside: Vec<_> = names
            .filter(|name| name.to_string_lossy().starts_with(ASIDE))
            .collect();
        assert_eq!(aside.len(), 1, "{text:?}");
        assert!(state.join(&aside[0]).join(DATABASE).exists(), "{text:?}");
    }
}

#[test]
fn an_interrupted_restore_continues_to_move_the_old_files() {
    let world = World::new();
    let state = &world.config.state_dir;
    let aside = write_marker(state).unwrap();
    fs::create_dir(&aside).unwrap();
    fs::rename(world.database(), aside.join(DATABASE)).unwrap();
    assert!(refuse_half_restored(state).is_err());
    world.restore(true).unwrap();
    assert!(aside.join(DATABASE).exists() && world.database().exists());
    refuse_half_restored(state).unwrap();
}

#[test]
fn each_restore_moves_the_old_files_to_a_new_directory() {
    let world = World::new();
    for _ in 0..3 {
        world.restore(false).unwrap();
    }
    let entries = fs::read_dir(&world.config.state_dir).unwrap();
    let aside = entries.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(ASIDE)
    });
    assert_eq!(aside.count(), 3);
}

#[test]
fn a_restore_lists_what_was_restored_and_what_was_not() {
    let voided = Voided {
        tokens: Validity {
            void: vec![name("ci"), name("laptop")],
            valid: vec![name("kept")],
        },
        join_tokens: vec!["0000cafe".to_owned()],
        nodes: Validity {
            void: vec![name("oak")],
            valid: vec![name("alder")],
        },
    };
    let text = words(&voided).join("\n");
    for part in ["ci, laptop", "kept", "0000cafe", "oak", "alder"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(words(&Voided::default()).is_empty());
}

#[test]
fn intact_images_of_a_backup_replace_damaged_files() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    let name = |text: &str| {
        let path = dir.path().join("named");
        fs::write(&path, text).unwrap();
        archive::digest(&path).unwrap().1
    };
    let (one, two) = (name("one"), name("two"));
    fs::write(from.join(&one), "one").unwrap();
    fs::write(to.join(&one), "on3").unwrap();
    fs::write(from.join(&two), "tw0").unwrap();
    fs::write(to.join(&two), "two").unwrap();
    move_images(&from, &to).unwrap();
    assert_eq!(fs::read_to_string(to.join(&one)).unwrap(), "one");
    assert_eq!(fs::read_to_string(to.join(&two)).unwrap(), "two");
}

fn to_another_filesystem(_from: &Path, _to: &Path) -> io::Result<()> {
    Err(ErrorKind::CrossesDevices.into())
}

/// A directory with one image, an empty one, and the name of the image.
fn one_image() -> (tempfile::TempDir, PathBuf, PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let plain = dir.path().join("plain");
    fs::write(&plain, "an image").unwrap();
    let (_, name) = archive::digest(&plain).unwrap();
    for directory in [&from, &to] {
        fs::create_dir(directory).unwrap();
    }
    fs::rename(&plain, from.join(&name)).unwrap();
    (dir, from, to, name)
}

#[test]
fn images_are_copied_to_a_directory_on_another_filesystem_and_an_interrupted_copy_can_be_repeated()
{
    let (_dir, from, to, name) = one_image();
    fs::write(to.join(&name), "damaged").unwrap();
    // What an interrupted restore left.
    fs::write(to.join(format!(".incoming-{name}")), "an im").unwrap();
    move_images_by(&from, &to, to_another_filesystem).unwrap();
    assert_eq!(fs::read_to_string(to.join(&name)).unwrap(), "an image");
    assert_eq!(
        fs::read_dir(&to).unwrap().count(),
        1,
        "no partial file is left"
    );
    assert_eq!(fs::read_dir(&from).unwrap().count(), 0);
}

#[test]
fn a_failed_copy_leaves_the_old_file_and_no_partial_one_and_names_the_image() {
    let (_dir, from, to, name) = one_image();
    // A file cannot replace a directory.
    fs::create_dir(to.join(&name)).unwrap();
    let error = move_images_by(&from, &to, to_another_filesystem).unwrap_err();
    assert!(format!("{error:#}").contains(&name), "{error:#}");
    assert!(to.join(&name).is_dir());
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    assert!(from.join(&name).exists(), "the restore can be repeated");
}
