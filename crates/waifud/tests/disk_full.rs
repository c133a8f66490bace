//! The real waifud on a real filesystem that fills up: refusals contain a hint, acknowledged changes are kept, and no restart
//! is needed when there is space again.
//!
//! The filesystem is ext4 on a loop device, in a mount namespace of the test's own that ends with it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use waifud_agent::Membership;
use waifud_agent::interfaces::{ControlLink, HttpLink, LinkError};
use waifud_api::agent::{AgentReport, Unmanaged};
use waifud_api::client::{Client, ClientError, EventQuery, ListQuery};
use waifud_api::join::{CreateJoinToken, JoinToken};
use waifud_api::{CreateInstance, CreateTemplate, Problem, UpdateInstance};
use waifud_types::{Digest, DiskSpaceState, InstanceId, Timestamp};

use waifud_kit::testing::skip_if as skip;

/// Set in the process with the mount.
const INSIDE: &str = "WAIFUD_TEST_DISK_AT";
const DEADLINE: Duration = Duration::from_mins(1);
const MIB: u64 = 1 << 20;

fn why_not() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it needs root to mount a filesystem".to_owned());
    }
    let missing = |tool: &&str| Command::new(tool).arg("-V").output().is_err();
    let missing = ["mkfs.ext4", "unshare", "mount"].into_iter().find(missing);
    missing.map(|tool| format!("{tool} can't be run"))
}

/// Runs the test `name` again with a new filesystem. Returns the path of the filesystem inside that process.
fn inside(name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(INSIDE) {
        return Some(path.into());
    }
    if skip(why_not().as_deref()) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let (disk, mount) = (directory.path().join("disk"), directory.path().join("at"));
    fs::create_dir(&mount).unwrap();
    File::create(&disk).unwrap().set_len(160 * MIB).unwrap();
    // No blocks are reserved for root, so that root gets the same errors as the user waifud.
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-m", "0", "-b", "4096"])
        .arg(&disk)
        .status();
    assert!(made.unwrap().success());
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .args(["/bin/sh", "-c"])
        // Positional parameters, so that no name is interpreted by the shell.
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

/// The filesystem, and the file that fills it.
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

    /// Leaves no free block.
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
    child: Child,
    client: Client,
}

impl Drop for Waifud {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _may_have_ended = self.child.wait();
    }
}

/// Starts waifud with its state on the disk and the rest elsewhere, and waits until it answers.
async fn start(disk: &Disk, home: &Path) -> Waifud {
    let config = home.join("waifud.toml");
    let text = format!(
        "socket = '{home}/u.sock'\nstate_dir = '{at}/state'\nlisten = ['127.0.0.1:0']",
        home = home.display(),
        at = disk.at.display()
    );
    fs::write(&config, text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("--config")
        .arg(&config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Wait for the ready message; later output is only shown.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        // None: waifud ended.
        let line = lines.next().unwrap().unwrap();
        eprintln!("waifud: {line}");
        if line.contains("is ready") {
            break;
        }
    }
    std::thread::spawn(move || lines.for_each(|line| eprintln!("waifud: {}", line.unwrap())));
    let client = Client::unix(&home.join("u.sock")).unwrap();
    let waifud = Waifud { child, client };
    until("it answers", async || {
        waifud.client.nodes(&ListQuery::default()).await.is_ok()
    })
    .await;
    waifud
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A qcow2 file of this size, and its digest.
fn image(home: &Path, size: u64) -> (PathBuf, Digest) {
    let mut head = vec![0; 4096];
    head[..4].copy_from_slice(b"QFI\xfb");
    head[7] = 3;
    head[23] = 16;
    head[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    let path = home.join(format!("{size}.qcow2"));
    let mut file = File::create(&path).unwrap();
    file.write_all(&head).unwrap();
    file.set_len(size).unwrap();
    let sum = Command::new("sha256sum").arg(&path).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    (path, sum.split(' ').next().unwrap().parse().unwrap())
}

fn instance_request(name: &str) -> CreateInstance {
    serde_json::from_value(serde_json::json!({"template": "t", "name": name})).unwrap()
}

/// The refusal of a full disk, which names the directory and has a hint.
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
    assert!(problem.hint.as_deref().unwrap().contains("waifuctl df"));
    *problem
}

/// Documents that fill a database quickly.
fn documents(filling: char) -> UpdateInstance {
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
fn report_with_changes() -> AgentReport {
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
async fn a_full_disk_refuses_changes_loses_nothing_and_recovers() {
    let Some(at) = inside("a_full_disk_refuses_changes_loses_nothing_and_recovers") else {
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
        .create_instance(&instance_request("before"), "1")
        .await
        .unwrap();
    let link = node(client, home).await;

    // Images leave space for the database: refused before the first byte, and nothing remains.
    disk.leave(80 * MIB);
    let (large, large_digest) = image(home, 40 * MIB);
    refused(client.upload_image(large_digest, &large, |_| ()).await);
    assert_eq!(
        fs::read_dir(disk.at.join("state/images")).unwrap().count(),
        1
    );
    client
        .create_instance(&instance_request("low"), "2")
        .await
        .unwrap();
    let server = client.server().await.unwrap().unwrap();
    let certificates: Vec<_> = server.certificates.iter().map(|it| &*it.name).collect();
    assert_eq!(certificates, ["ca", "server"]);
    let state_dir = server.state_dir;
    assert_eq!(state_dir.state, DiskSpaceState::Low);
    assert!(state_dir.free_bytes.bytes() <= 80 * MIB && state_dir.path.ends_with("/at/state"));

    // Nearly full: new objects are refused, reports of nodes and deletions are accepted.
    disk.leave(4 * MIB);
    refused(
        client
            .create_instance(&instance_request("refused"), "3")
            .await,
    );
    refused(client.create_template(&template).await);
    refused(client.upload_image(large_digest, &large, |_| ()).await);
    link.report(&report_with_changes()).await.unwrap();
    assert_eq!(client.node("alder").await.unwrap().unmanaged.len(), 1);
    client.delete_instance("low", DEADLINE).await.unwrap();
    assert_eq!(
        client.server().await.unwrap().unwrap().state_dir.state,
        DiskSpaceState::Full
    );

    // Full: at some point the database itself refuses. Everything before that is kept.
    disk.leave(MIB);
    let mut kept = ' ';
    let refusal = loop {
        let filling = if kept == 'a' { 'b' } else { 'a' };
        match client
            .update_instance("before", &documents(filling), None)
            .await
        {
            Ok(_) => kept = filling,
            refusal => break refused(refusal),
        }
    };
    assert_ne!(kept, ' ', "at least one was accepted");
    eprintln!("{}", refusal.title);
    disk.fill();
    let mut lasting = 0;
    while lasting < 3 {
        // The node repeats a refused report, and waifud keeps running.
        match link.report(&report_with_changes()).await {
            Err(LinkError::Refused { status, .. }) => {
                assert_eq!(status, 507);
                lasting += 1;
            }
            other => other.unwrap(),
        }
    }
    let digest_of_kept = async |client: &Client| {
        let instance = client.instance("before").await.unwrap();
        instance.spec.user_data.unwrap().sha256
    };
    let sum = digest_of_kept(client).await;
    let text = documents(kept).user_data.unwrap();
    let wanted = ring::digest::digest(&ring::digest::SHA256, text.expose().as_bytes());
    assert_eq!(
        sum.bytes().as_slice(),
        wanted.as_ref(),
        "the last acknowledged change"
    );
    assert_eq!(names(client).await, ["before"]);

    // After a kill, waifud starts on the full disk with all its data.
    drop(waifud);
    let waifud = start(&disk, home).await;
    let client = &waifud.client;
    assert_eq!(names(client).await, ["before"]);
    assert_eq!(digest_of_kept(client).await, sum);
    refused(
        client
            .create_instance(&instance_request("refused"), "4")
            .await,
    );
    let backup = home.join("b.tar");
    let saved = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("--config")
        .arg(home.join("waifud.toml"))
        .arg("backup")
        .arg(&backup)
        .output()
        .unwrap();
    assert!(
        saved.status.success(),
        "a full disk can be saved from: {saved:?}"
    );

    // With free space, waifud continues, and the history contains the events.
    disk.make_room();
    client
        .create_instance(&instance_request("after"), "5")
        .await
        .unwrap();
    until("the history contains the events", async || {
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
fn a_backup_to_a_full_disk_is_refused_and_leaves_nothing() {
    let Some(at) = inside("a_backup_to_a_full_disk_is_refused_and_leaves_nothing") else {
        return;
    };
    let disk = Disk { at };
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = home.path().join("waifud.toml");
    // A database created by waifud.
    let elsewhere = Disk {
        at: home.path().to_owned(),
    };
    drop(runtime.block_on(start(&elsewhere, home.path())));
    fs::write(state.join("pki/padding"), vec![7; 600_000]).unwrap();
    disk.leave(256 << 10);
    let file = disk.at.join("b.tar");
    let output = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("--config")
        .arg(&config)
        .arg("backup")
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(disk.at.to_str().unwrap()) && said.contains("is free"),
        "{said}"
    );
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
