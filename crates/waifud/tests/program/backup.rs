//! `waifud backup` and `waifud restore` as programs: modes, existing files, confirmation, and images.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use waifud_api::client::ListQuery;

use crate::kit::{self, is_refused};
use crate::process::Home;

impl Home {
    /// Runs a command of waifud without a terminal and with a umask that removes no permission.
    fn run(&self, arguments: &[&str]) -> Output {
        let waifud = kit::command(&self.path("waifud.toml"));
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "umask 0; exec \"$@\"", "sh"]);
        command.arg(waifud.get_program()).args(waifud.get_args());
        command.args(arguments).stdin(Stdio::null());
        command.output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs a command that must be refused with an error that contains all of this.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], parts: &[&str]) {
        is_refused(&self.run(arguments), parts);
    }

    /// The path of the backup, as an argument.
    fn backup_file(&self) -> String {
        self.path("b.tar").display().to_string()
    }

    /// What waifud says about regular backups.
    async fn backup_state(&self) -> waifud_api::BackupState {
        let running = self.start().await;
        let server = running.client.server().await.unwrap().unwrap();
        server.backup.unwrap()
    }

    fn database(&self) -> Vec<u8> {
        std::fs::read(self.path("state/waifud.db")).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_backup_is_only_for_its_owner_and_an_existing_file_is_never_overwritten() {
    let home = Home::used().await;
    let file = home.backup_file();
    home.succeeds(&["backup", &file]);
    assert_eq!(mode(Path::new(&file)), 0o600);
    let before = std::fs::read(&file).unwrap();
    home.refuses(&["backup", &file], &["exists; choose another file"]);
    assert!(std::fs::read(&file).unwrap() == before);
}

#[tokio::test]
async fn a_restore_without_a_terminal_needs_yes_and_one_over_a_database_needs_replace() {
    let home = Home::used().await;
    let file = home.backup_file();
    home.succeeds(&["backup", &file]);
    let before = home.database();
    for (arguments, option) in [
        (&["restore", "--replace", &file][..], "--yes"),
        (&["restore", "--yes", &file], "--replace"),
    ] {
        home.refuses(arguments, &[option]);
        assert!(home.database() == before, "{option}");
    }
    home.succeeds(&["restore", "--replace", "--yes", &file]);
    assert!(home.database() != before, "it has a new incarnation");
    home.start().await;
}

#[tokio::test]
async fn a_restore_is_refused_while_waifud_runs() {
    let home = Home::new();
    let running = home.start().await;
    let file = home.backup_file();
    home.succeeds(&["backup", &file]);
    home.refuses(
        &["restore", "--replace", "--yes", &file],
        &["another waifud uses", "stop it first"],
    );
    running.client.nodes(&ListQuery::default()).await.unwrap();
}

#[tokio::test]
async fn images_are_restored_on_a_new_machine_only_if_they_are_in_the_backup() {
    let home = Home::with_template().await;
    for with_images in [false, true] {
        let file = home.path(&format!("with-{with_images}.tar"));
        let file = file.display().to_string();
        let options: &[&str] = if with_images { &["--with-images"] } else { &[] };
        home.succeeds(&[&["backup", &file][..], options].concat());
        let new = Home::new();
        new.succeeds(&["restore", "--yes", &file]);
        let restored = new.start().await;
        let images = restored.client.images(&ListQuery::default()).await.unwrap();
        let available: Vec<_> = images.items.iter().map(|image| image.available).collect();
        assert_eq!(available, [with_images]);
    }
}

#[tokio::test]
async fn a_backup_with_a_damaged_image_is_refused() {
    let home = Home::with_template().await;
    let file = home.backup_file();
    home.succeeds(&["backup", "--with-images", &file]);
    let mut bytes = std::fs::read(&file).unwrap();
    let mut windows = bytes.windows(4);
    let image = windows.position(|four| four == b"QFI\xfb").unwrap();
    bytes[image + 100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let new = Home::new();
    new.refuses(&["restore", "--yes", &file], &["images/", "is damaged"]);
    assert!(!new.path("state/waifud.db").exists());
}

/// A directory with older backups and other files.
fn with_older_backups(dir: &Path) -> [&'static str; 3] {
    let older = [
        "waifud-20260101T000000Z.tar",
        "waifud-20260102T000000Z.tar",
        "waifud-20260103T000000Z.tar",
    ];
    for name in older.iter().chain(&["waifud-by-hand.tar", "notes"]) {
        std::fs::write(dir.join(name), "x").unwrap();
    }
    older
}

/// The names of the backups in a directory, oldest first, and the number of other files.
fn backups_in(dir: &Path) -> (Vec<String>, usize) {
    let entries = std::fs::read_dir(dir).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let names = entries.map(|entry| name(entry).into_string().unwrap());
    let is_backup = |name: &String| name.starts_with("waifud-20") && name.ends_with("Z.tar");
    let (mut backups, others): (Vec<_>, Vec<_>) = names.partition(is_backup);
    backups.sort();
    (backups, others.len())
}

/// A new machine, on which this backup is restored and waifud starts.
async fn is_restored(file: &Path) {
    let new = Home::new();
    new.succeeds(&["restore", "--yes", &file.display().to_string()]);
    new.start().await;
}

#[tokio::test]
async fn regular_backups_in_a_directory_replace_the_oldest_ones_only() {
    let home = Home::used().await;
    let dir = home.path("backups");
    let to = dir.display().to_string();
    home.refuses(
        &["backup", "--to", &to],
        &["no backup was made", "cannot list"],
    );
    let failed = home.backup_state().await;
    assert!(failed.error.unwrap().contains("no backup was made"));
    assert_eq!((failed.last_at, failed.target), (None, to.clone()));
    std::fs::create_dir(&dir).unwrap();
    let older = with_older_backups(&dir);
    home.succeeds(&["backup", "--to", &to, "--keep", "2"]);
    let (names, others) = backups_in(&dir);
    assert_eq!((names.len(), others), (2, 2), "{names:?}");
    assert_eq!(names[0], older[2]);
    assert_eq!(mode(&dir.join(&names[1])), 0o600);
    is_restored(&dir.join(&names[1])).await;
    let made = home.backup_state().await;
    assert!(made.error.is_none() && made.last_at.is_some(), "{made:?}");
}

/// An `ssh` that runs the script on this machine, and that loses everything after the first kilobyte of a file that it is to
/// write if `broken` exists beside it.
const SSH: &str = r#"#!/bin/sh
here=$(dirname "$0")
while [ "$1" != -- ]; do shift; done
echo "$2" >> "$here/hosts"
case $3 in *"cat > "*) if [ -e "$here/broken" ]; then head -c 1000 | sh -c "$3"; exit; fi;; esac
exec sh -c "$3"
"#;

#[tokio::test]
async fn a_regular_backup_over_ssh_is_read_back_before_older_ones_are_removed() {
    let home = Home::used().await;
    let (dir, bin) = (home.path("backups"), home.path("bin"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::create_dir(&bin).unwrap();
    let ssh = bin.join("ssh");
    std::fs::write(&ssh, SSH).unwrap();
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    let older = with_older_backups(&dir);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let to = format!("me@birch:{}", dir.display());
    let run = || {
        let mut command = kit::command(&home.path("waifud.toml"));
        command
            .args(["backup", "--to", &to, "--keep", "1"])
            .env("PATH", &path);
        command.stdin(Stdio::null()).output().unwrap()
    };
    std::fs::write(bin.join("broken"), "").unwrap();
    is_refused(
        &run(),
        &["no backup was made in me@birch:", "could not be read back"],
    );
    assert_eq!(backups_in(&dir), (older.map(str::to_owned).to_vec(), 2));

    std::fs::remove_file(bin.join("broken")).unwrap();
    let output = run();
    assert!(output.status.success(), "{output:?}");
    let (names, others) = backups_in(&dir);
    assert_eq!((names.len(), others), (1, 2), "{names:?}");
    assert!(!older.contains(&names[0].as_str()));
    assert_eq!(mode(&dir.join(&names[0])), 0o600);
    is_restored(&dir.join(&names[0])).await;
    let hosts = std::fs::read_to_string(bin.join("hosts")).unwrap();
    assert!(hosts.lines().all(|host| host == "me@birch"), "{hosts}");
}

#[tokio::test]
async fn repeated_backups_begin_at_once_and_end_with_sigterm() {
    let home = Home::used().await;
    let dir = home.path("backups");
    std::fs::create_dir(&dir).unwrap();
    let mut command = kit::command(&home.path("waifud.toml"));
    let to = dir.display().to_string();
    let child = command
        .args(["backup", "--to", &to, "--every", "1h"])
        .spawn();
    let mut running = kit::Process(child.unwrap());
    let begun = std::time::Instant::now();
    while backups_in(&dir).0.is_empty() {
        assert!(begun.elapsed() < kit::DEADLINE, "no backup");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(running.ended().await.success());
    assert_eq!(backups_in(&dir).0.len(), 1);
}

#[tokio::test]
async fn repeated_backups_go_on_after_a_failure() {
    use std::io::BufRead;
    let home = Home::used().await;
    let mut command = kit::command(&home.path("waifud.toml"));
    let to = home.path("missing").display().to_string();
    command.args(["backup", "--to", &to, "--every", "1h"]);
    let child = command.stderr(Stdio::piped()).spawn();
    let mut running = kit::Process(child.unwrap());
    let mut line = String::new();
    running.stderr().read_line(&mut line).unwrap();
    assert!(line.contains("no backup was made"), "{line}");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(running.ended().await.success());
}

#[tokio::test]
async fn scheduled_backups_are_those_of_the_configuration_file() {
    let home = Home::used().await;
    home.refuses(
        &["backup", "--scheduled"],
        &["there are no regular backups", "[backup]", "waifud.toml"],
    );
    let dir = home.path("backups");
    std::fs::create_dir(&dir).unwrap();
    let older = with_older_backups(&dir);
    home.configure(&format!(
        "[backup]\nto = {:?}\nevery = '6h'\nkeep = 2",
        dir.display().to_string()
    ));
    home.refuses(
        &["backup", "--scheduled", "--keep", "3"],
        &["--scheduled", "--keep"],
    );
    let mut command = kit::command(&home.path("waifud.toml"));
    let child = command.args(["backup", "--scheduled"]).spawn();
    let mut running = kit::Process(child.unwrap());
    let begun = std::time::Instant::now();
    while backups_in(&dir).0.contains(&older[1].to_owned()) {
        assert!(begun.elapsed() < kit::DEADLINE, "nothing was removed");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(running.ended().await.success());
    let (names, others) = backups_in(&dir);
    assert_eq!((names.len(), others), (2, 2), "{names:?}");
    assert_eq!(names[0], older[2]);
    assert_eq!(home.backup_state().await.every_s, Some(6 * 60 * 60));
}

#[tokio::test]
async fn options_of_regular_backups_need_a_directory() {
    let home = Home::used().await;
    let file = home.backup_file();
    for arguments in [
        &["backup"][..],
        &["backup", &file, "--keep", "3"],
        &["backup", &file, "--every", "15m"],
        &["backup", &file, "--to", "/tmp"],
        &["backup", "--to", "/tmp", "--keep", "0"],
        &["backup", "--to", "/tmp", "--every", "1s"],
        &["backup", "--to", "-o:x"],
    ] {
        assert!(!home.run(arguments).status.success(), "{arguments:?}");
    }
}
