//! The real waifud on a real filesystem that fills up: refusals name the next step, nothing acknowledged is lost, and
//! waifud continues without a restart once there is space again.
//!
//! The filesystem is ext4 on a loop device, in a mount namespace of the test that ends with it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test helpers may panic")]

#[allow(dead_code, reason = "one test uses few of the helpers of the others")]
#[path = "program/kit.rs"]
mod kit;

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kit::{DEADLINE, Process};
use nix::fcntl::{FallocateFlags, fallocate};
use waifud_agent::Membership;
use waifud_agent::interfaces::{ControlLink, HttpLink, LinkError};
use waifud_api::agent::{AgentReport, Unmanaged};
use waifud_api::client::{Client, ClientError, EventQuery, ListQuery};
use waifud_api::join::{CreateJoinToken, JoinToken};
use waifud_api::{CreateInstance, CreateTemplate, Problem, UpdateInstance};
use waifud_kit::testing::new_filesystem::NewFilesystem;
use waifud_kit::testing::skip_if;
use waifud_kit::testing::temp_path;
use waifud_types::{Digest, DiskSpaceState, InstanceId, Timestamp};

const MIB: u64 = 1 << 20;

/// Runs the test `name` again with a new filesystem. Returns its mount point in the process that runs inside.
fn inside(name: &str) -> Option<PathBuf> {
    let disk = NewFilesystem::ext4(160 * MIB);
    if skip_if(disk.obstacle()) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    disk.run_again(name, directory.path()).unwrap()
}

/// The filesystem and a file that fills it.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn free(&self) -> u64 {
        let facts = nix::sys::statvfs::statvfs(&self.at).unwrap();
        facts.blocks_available() * facts.fragment_size()
    }

    /// Leaves about this many bytes free.
    fn leave(&self, bytes: u64) {
        self.make_room();
        let filler = File::create(self.filler()).unwrap();
        let size = i64::try_from(self.free().saturating_sub(bytes)).unwrap();
        fallocate(&filler, FallocateFlags::empty(), 0, size).unwrap();
    }

    /// Leaves not a single block free.
    fn fill(&self) {
        self.leave(MIB);
        let mut filler = File::options().append(true).open(self.filler()).unwrap();
        while filler
            .write_all(&[0; 4096])
            .and_then(|()| filler.sync_data())
            .is_ok()
        {}
    }

    fn make_room(&self) {
        let _may_be_absent = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

struct Waifud {
    client: Client,
    _process: Process,
}

/// Starts waifud with its state directory on the disk and waits until it answers.
async fn start(disk: &Disk, home: &Path) -> Waifud {
    let config = home.join("waifud.toml");
    let text = format!(
        "socket = '{home}/u.sock'\nstate_dir = '{at}/state'\nlisten = ['127.0.0.1:0']",
        home = home.display(),
        at = disk.at.display()
    );
    fs::write(&config, text).unwrap();
    let mut process = Process::start(&config);
    // It logs that it is ready; later lines are only printed.
    let mut lines = process.stderr().lines();
    loop {
        // There is no line if waifud has ended.
        let line = lines.next().unwrap().unwrap();
        eprintln!("waifud: {line}");
        if line.contains("is ready") {
            break;
        }
    }
    std::thread::spawn(move || lines.for_each(|line| eprintln!("waifud: {}", line.unwrap())));
    let client = Client::unix(&home.join("u.sock")).unwrap();
    let waifud = Waifud {
        client,
        _process: process,
    };
    until("it answers", async || {
        waifud.client.nodes(&ListQuery::default()).await.is_ok()
    })
    .await;
    waifud
}

async fn until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < DEADLINE, "not in time: {condition}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes an image of this size, and returns its path and its digest.
fn image(home: &Path, size: u64) -> (PathBuf, Digest) {
    let path = home.join(format!("{size}.qcow2"));
    let digest = kit::image_file(&path, usize::try_from(size).unwrap());
    (path, digest)
}

fn request(name: &str) -> CreateInstance {
    serde_json::from_value(serde_json::json!({"template": "t", "name": name})).unwrap()
}

/// The problem of a full disk, which must name the directory and the next step.
fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Problem {
    let Err(ClientError::Problem(problem)) = outcome else {
        panic!("not refused: {outcome:?}");
    };
    assert_eq!(
        (problem.status, problem.code.as_str()),
        (507, "no-space"),
        "{problem:?}"
    );
    assert_eq!(problem.field.as_deref(), Some("state_dir"));
    assert!(
        problem.title.contains("/at/state") && problem.title.contains("is free"),
        "{problem:?}"
    );
    assert_eq!(problem.hints[0].action, "free-space");
    *problem
}

/// User-data that fills a database quickly.
fn large_user_data(filling: char) -> UpdateInstance {
    let text = format!(
        "#cloud-config\n# {}\n",
        filling.to_string().repeat(12 << 10)
    );
    serde_json::from_value(serde_json::json!({"user_data": text})).unwrap()
}

async fn names(client: &Client) -> Vec<String> {
    let page = client.instances(&ListQuery::default()).await.unwrap();
    page.items.iter().map(|i| i.name.to_string()).collect()
}

async fn node(client: &Client, home: &Path) -> HttpLink {
    let made = client
        .create_join_token(&CreateJoinToken::default())
        .await
        .unwrap();
    let token = JoinToken::parse(made.token.expose()).unwrap();
    let member = Membership::join(home, &token, &[], "alder".parse().unwrap())
        .await
        .unwrap();
    let link = HttpLink::of(member).unwrap();
    let facts = serde_json::json!({
        "name": "alder", "now": Timestamp::now(), "facts": {
            "arch": "x86_64", "cpu_model": "a CPU", "hypervisor": {"kind": "tcg", "reason": "no /dev/kvm"},
            "agent_version": "0.1.0", "capacity": {"cpus": 0, "memory_bytes": 0}, "used": {"cpus": 0, "memory_bytes": 0},
            "pools": [], "bridges": [], "routes": [], "conditions": []
        }
    });
    link.hello(&serde_json::from_value(facts).unwrap())
        .await
        .unwrap();
    link
}

/// A report that waifud has to store.
fn report_to_store() -> AgentReport {
    AgentReport {
        unmanaged: Some(vec![Unmanaged {
            kind: "domain".to_owned(),
            instance: InstanceId::generate(),
            name: None,
            volume: None,
            running: true,
            addresses: Vec::new(),
            record: None,
            bundle: None,
        }]),
        ..AgentReport::default()
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing_that_was_acknowledged() {
    let Some(at) = inside("a_full_disk_refuses_writes_and_loses_nothing_that_was_acknowledged")
    else {
        return;
    };
    let disk = Disk { at };
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let waifud = start(&disk, home).await;
    let client = &waifud.client;
    let (file, digest) = image(home, 4096);
    client.upload_image(digest, &file, |_| ()).await.unwrap();
    let template: CreateTemplate =
        serde_json::from_value(serde_json::json!({"name": "t", "image": digest})).unwrap();
    client.create_template(&template).await.unwrap();
    client
        .create_instance(&request("before"), "1")
        .await
        .unwrap();
    let link = node(client, home).await;

    // Space is reserved for the database. An image that would use it is refused before the first byte.
    disk.leave(80 * MIB);
    let (large, large_digest) = image(home, 40 * MIB);
    refused(client.upload_image(large_digest, &large, |_| ()).await);
    assert_eq!(
        fs::read_dir(disk.at.join("state/images")).unwrap().count(),
        1
    );
    client.create_instance(&request("low"), "2").await.unwrap();
    let server = client.server().await.unwrap().unwrap();
    let certificates: Vec<_> = server.certificates.iter().map(|it| &*it.name).collect();
    assert_eq!(certificates, ["ca", "server"]);
    let state_dir = server.state_dir;
    assert_eq!(state_dir.state, DiskSpaceState::Low);
    assert!(state_dir.free_bytes.bytes() <= 80 * MIB && state_dir.path.ends_with("/at/state"));

    // Nearly full: requests that need space are refused; reports of nodes and deletions are accepted.
    disk.leave(4 * MIB);
    refused(client.create_instance(&request("refused"), "3").await);
    refused(client.create_template(&template).await);
    refused(client.upload_image(large_digest, &large, |_| ()).await);
    link.report(&report_to_store()).await.unwrap();
    assert_eq!(client.node("alder").await.unwrap().unmanaged.len(), 1);
    client.delete_instance("low", DEADLINE).await.unwrap();
    assert_eq!(
        client.server().await.unwrap().unwrap().state_dir.state,
        DiskSpaceState::Full
    );

    // Full: at some point the database itself refuses a write. Everything before is kept.
    disk.leave(MIB);
    let mut kept = ' ';
    let mut accepted = 0;
    let refusal = loop {
        assert!(accepted < 10_000, "the full disk refuses nothing");
        let filling = if kept == 'a' { 'b' } else { 'a' };
        match client
            .update_instance("before", &large_user_data(filling), None)
            .await
        {
            Ok(_) => {
                kept = filling;
                accepted += 1;
            }
            refusal => break refused(refusal),
        }
    };
    assert_ne!(kept, ' ', "there was no space for a single update");
    eprintln!("{}", refusal.title);
    disk.fill();
    let (mut sent, mut refusals) = (0, 0);
    while refusals < 3 {
        assert!(sent < 10_000, "the full disk refuses nothing");
        sent += 1;
        // The node sends a refused report again, and waifud keeps running.
        match link.report(&report_to_store()).await {
            Err(LinkError::Refused { status, .. }) => {
                assert_eq!(status, 507);
                refusals += 1;
            }
            other => other.unwrap(),
        }
    }
    let digest_of_kept = async |client: &Client| {
        let instance = client.instance("before").await.unwrap();
        instance.spec.user_data.unwrap().sha256
    };
    let sum = digest_of_kept(client).await;
    let text = large_user_data(kept).user_data.unwrap();
    let wanted = ring::digest::digest(&ring::digest::SHA256, text.expose().as_bytes());
    assert_eq!(
        sum.bytes().as_slice(),
        wanted.as_ref(),
        "the last acknowledged update is kept"
    );
    assert_eq!(names(client).await, ["before"]);

    // After a kill it starts on the full disk with all data.
    drop(waifud);
    let waifud = start(&disk, home).await;
    let client = &waifud.client;
    assert_eq!(names(client).await, ["before"]);
    assert_eq!(digest_of_kept(client).await, sum);
    refused(client.create_instance(&request("refused"), "4").await);
    let backup = home.join("b.tar");
    let saved = kit::command(&home.join("waifud.toml"))
        .arg("backup")
        .arg(&backup)
        .output()
        .unwrap();
    assert!(
        saved.status.success(),
        "no backup from a full disk: {saved:?}"
    );

    // With free space it continues, and events record what happened.
    disk.make_room();
    client
        .create_instance(&request("after"), "5")
        .await
        .unwrap();
    until("events record the full disk", async || {
        let page = client.events(&EventQuery::default()).await.unwrap();
        let kinds: Vec<_> = page.items.iter().map(|event| event.kind.as_str()).collect();
        kinds.contains(&"waifud.disk-full") && kinds.contains(&"waifud.disk-low")
    })
    .await;
    drop(waifud);
    let waifud = start(&disk, home).await;
    assert_eq!(names(&waifud.client).await, ["after", "before"]);
    assert_eq!(digest_of_kept(&waifud.client).await, sum);
}

#[test]
fn a_backup_to_a_full_disk_is_refused_and_leaves_no_files() {
    let Some(at) = inside("a_backup_to_a_full_disk_is_refused_and_leaves_no_files") else {
        return;
    };
    let disk = Disk { at };
    let (home, state) = temp_path("state");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = home.path().join("waifud.toml");
    // A database created by waifud, on another filesystem.
    let elsewhere = Disk {
        at: home.path().to_owned(),
    };
    drop(runtime.block_on(start(&elsewhere, home.path())));
    fs::write(state.join("pki/padding"), vec![7; 600_000]).unwrap();
    disk.leave(256 << 10);
    let file = disk.at.join("b.tar");
    let output = kit::command(&config)
        .arg("backup")
        .arg(&file)
        .output()
        .unwrap();
    kit::is_refused(&output, &[disk.at.to_str().unwrap(), "is free"]);
    let left: Vec<_> = fs::read_dir(&disk.at)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| name == "lost+found" || name == "filler"),
        "{left:?}"
    );
    assert_eq!(
        fs::read_dir(&state)
            .unwrap()
            .filter(|e| e
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".backup"))
            .count(),
        0
    );
}
