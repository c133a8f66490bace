//! The agent's state directory on a real filesystem that fills up: guests run on, the durable copy stays whole, the node
//! says what is wrong, and goes on by itself.
//!
//! The filesystem is ext4 on a loop device, in a mount namespace of the test's own that ends with it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use waifud_hypervisor::DomainState;
use waifud_types::InstanceState;
use waifud_types::status::Condition;

use crate::world::World;

pub use waifud_kit::testing::skip_if as skip;

/// Set in the process that has the mount.
const INSIDE: &str = "WAIFUD_TEST_DISK_AT";

fn why_not() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it needs root, to mount".to_owned());
    }
    let missing = |tool: &&str| Command::new(tool).arg("-V").output().is_err();
    let missing = ["mkfs.ext4", "unshare", "mount"].into_iter().find(missing);
    missing.map(|tool| format!("{tool} can't be run"))
}

/// Runs the test called `name` again with a new filesystem. In that process: where it is.
fn inside(name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(INSIDE) {
        return Some(path.into());
    }
    if skip(why_not()) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let (disk, mount) = (directory.path().join("disk"), directory.path().join("at"));
    fs::create_dir(&mount).unwrap();
    File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    // Nothing is kept for root, which the agent is.
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-m", "0", "-b", "4096"])
        .arg(&disk)
        .status();
    assert!(made.unwrap().success());
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .args(["/bin/sh", "-c"])
        // Positional parameters, so that no name is read as shell text.
        .arg("mount -t ext4 -o loop \"$1\" \"$2\" && shift 2 && exec \"$@\"")
        .arg("sh")
        .args([&disk, &mount])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, &mount)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    None
}

/// Leaves not a block.
fn fill(at: &Path) {
    let mut filler = File::create(at.join("filler")).unwrap();
    for size in [1 << 20, 4096] {
        let block = vec![0; size];
        while filler
            .write_all(&block)
            .and_then(|()| filler.sync_data())
            .is_ok()
        {}
    }
}

fn make_room(at: &Path) {
    fs::remove_file(at.join("filler")).unwrap();
}

fn state_dir(world: &World) -> Option<Condition> {
    let conditions = world.waifud.facts()?.conditions;
    conditions.into_iter().find(|it| it.kind == "state-dir")
}

/// The records' files, by name, each of which is whole.
fn records(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.settings.state_dir.join("records")).unwrap();
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    names
}

#[tokio::test]
async fn a_full_state_directory_stops_no_guest_loses_nothing_and_is_reported() {
    let name = "disk_full::a_full_state_directory_stops_no_guest_loses_nothing_and_is_reported";
    let Some(at) = inside(name) else { return };
    let mut world = World::new();
    world.settings.state_dir = at.join("state");
    fs::create_dir(&world.settings.state_dir).unwrap();
    world.start();
    let web = world.run_one("web").await;
    let before = records(&world);
    let starts = world.hypervisor.starts();

    fill(&at);
    let db = world.instance("db");
    let db_id = db.id;
    world.waifud.put(db);
    world
        .until("the node says that it is full", async || {
            state_dir(&world)
                .is_some_and(|it| it.reason == "full" && !it.message.contains("almost"))
        })
        .await;
    let said = state_dir(&world).unwrap();
    assert!(
        said.message
            .contains(world.settings.state_dir.to_str().unwrap()),
        "{said:?}"
    );
    assert_eq!(
        records(&world),
        before,
        "nothing half is left, and nothing is gone"
    );
    assert_eq!(
        world.domain(db_id).await,
        None,
        "nobody acts on what is not durable"
    );
    assert_eq!(world.domain(web).await, Some(DomainState::Running));

    // An agent that is killed then knows as much as before, and touches no guest.
    world.restart().await;
    world
        .until("it is said again", async || {
            state_dir(&world).is_some_and(|it| it.reason == "full")
        })
        .await;
    assert_eq!(records(&world), before);
    assert_eq!(world.domain(web).await, Some(DomainState::Running));
    assert_eq!(
        world.hypervisor.starts(),
        starts,
        "the guest was not started again"
    );

    make_room(&at);
    world.until_ready(db_id).await;
    world.until_state(web, InstanceState::Running).await;
    world
        .until("it is well again", async || {
            // The filesystem is small: low is all that can be hoped for.
            state_dir(&world).is_some_and(|it| it.reason == "low" || it.message.contains("almost"))
        })
        .await;
    assert_eq!(records(&world).len(), before.len() + 1);
    assert_eq!(world.domain(web).await, Some(DomainState::Running));
}
