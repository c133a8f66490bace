//! The real program: its socket, its lock, its configuration, its database, and what survives a kill.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::kit::{DEADLINE, Process, is_refused, upload_template};
use futures::StreamExt;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use waifud_api::CreateInstance;
use waifud_api::client::{Client, EventQuery, ListQuery};

/// A directory with a configuration file and the state of waifud.
pub struct Home {
    pub dir: tempfile::TempDir,
}

/// A running waifud and a client at its socket.
pub struct Running {
    pub process: Process,
    pub client: Client,
}

impl Home {
    pub fn new() -> Self {
        let home = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        home.configure("");
        home
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn configure(&self, more: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "socket = '{dir}/waifud.sock'\nlisten = ['127.0.0.1:0']\nstate_dir = '{dir}/state'\n{more}\n"
        );
        std::fs::write(self.path("waifud.toml"), text).unwrap();
    }

    /// Runs waifud where it is expected to fail. If it does start, it is ended after a minute.
    fn fails(&self) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_waifud"), "--config"]);
        command.arg(self.path("waifud.toml")).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Starts waifud and waits until it answers.
    pub async fn start(&self) -> Running {
        let mut process = Process::start(&self.path("waifud.toml"));
        let client = Client::unix(&self.path("waifud.sock")).unwrap();
        let begun = Instant::now();
        while client.nodes(&ListQuery::default()).await.is_err() {
            if process.0.try_wait().unwrap().is_some() || begun.elapsed() > DEADLINE {
                process.kill();
                let mut text = String::new();
                process.stderr().read_to_string(&mut text).unwrap();
                panic!("waifud does not answer: {text}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        eprintln!("waifud answered {:?} after it was started", begun.elapsed());
        Running { process, client }
    }

    /// A state directory that waifud has used before.
    pub async fn used() -> Self {
        let home = Self::new();
        home.start().await.stop().await;
        home
    }

    /// A state directory with the template `debian-12` and its image, after waifud has ended.
    pub async fn with_template() -> Self {
        let home = Self::new();
        let running = home.start().await;
        upload_template(home.dir.path(), &running.client).await;
        running.stop().await;
        home
    }
}

impl Running {
    /// Ends it with SIGTERM.
    async fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        self.process.ended().await;
    }
}

fn request() -> CreateInstance {
    serde_json::from_str(r#"{"template": "debian-12"}"#).unwrap()
}

#[tokio::test]
async fn acknowledged_instances_survive_a_kill_and_the_socket_is_replaced() {
    let home = Home::new();
    let mut running = home.start().await;
    upload_template(home.dir.path(), &running.client).await;
    let mut names = Vec::new();
    for key in ["a", "b", "c"] {
        names.push(
            running
                .client
                .create_instance(&request(), key)
                .await
                .unwrap()
                .name,
        );
    }
    running.process.signal(Signal::SIGKILL);
    running.process.ended().await;
    assert!(
        home.path("waifud.sock").exists(),
        "a killed process leaves its socket"
    );

    let again = home.start().await;
    let page = again.client.instances(&ListQuery::default()).await.unwrap();
    names.sort();
    assert_eq!(
        page.items.into_iter().map(|i| i.name).collect::<Vec<_>>(),
        names
    );
}

#[tokio::test]
async fn sigterm_ends_the_watches_and_the_process() {
    let home = Home::new();
    let mut running = home.start().await;
    let mut watch = Box::pin(
        running
            .client
            .watch_events(&EventQuery::default())
            .await
            .unwrap(),
    );
    running.process.signal(Signal::SIGTERM);
    let rest = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(DEADLINE, rest).await.unwrap();
    assert!(running.process.ended().await.success());
    assert!(!home.path("waifud.sock").exists());
}

#[tokio::test]
async fn a_second_waifud_on_the_same_state_is_refused_and_the_first_keeps_running() {
    let home = Home::new();
    let running = home.start().await;
    is_refused(&home.fails(), &["another waifud uses", "state_dir"]);
    running.client.nodes(&ListQuery::default()).await.unwrap();
}

#[tokio::test]
async fn the_socket_and_the_state_are_inaccessible_to_other_users() {
    let home = Home::new();
    let _running = home.start().await;
    let mode = |name: &str| {
        std::fs::metadata(home.path(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    // Without its group, the socket is only for root.
    let group = nix::unistd::Group::from_name("waifud-admin").unwrap();
    let expected = if group.is_some() { 0o660 } else { 0o600 };
    assert_eq!(mode("waifud.sock"), expected);
    assert_eq!(mode("state"), 0o700);
    assert_eq!(mode("state/waifud.db"), 0o600);
    assert_eq!(
        (mode("state/pki"), mode("state/pki/ca.key")),
        (0o700, 0o600)
    );
}

#[test]
fn an_unknown_configuration_key_is_refused_with_its_name_and_file() {
    let home = Home::new();
    home.configure("colour = 'blue'");
    is_refused(&home.fails(), &["colour", "waifud.toml"]);
}

#[test]
fn a_file_at_the_path_of_the_socket_is_not_replaced() {
    let home = Home::new();
    std::fs::write(home.path("waifud.sock"), "mine").unwrap();
    is_refused(&home.fails(), &["is not a socket"]);
    assert_eq!(
        std::fs::read_to_string(home.path("waifud.sock")).unwrap(),
        "mine"
    );
}

#[test]
fn the_committed_openapi_document_is_current() {
    let printed = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("openapi")
        .output()
        .unwrap();
    assert!(printed.status.success());
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/openapi.json"
    );
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        String::from_utf8(printed.stdout).unwrap() == committed,
        "docs/reference/openapi.json is outdated: waifud openapi > docs/reference/openapi.json"
    );
}

#[tokio::test]
async fn a_lost_database_is_not_replaced_by_an_empty_one() {
    let home = Home::used().await;
    let database = home.path("state/waifud.db");
    std::fs::rename(&database, home.path("kept.db")).unwrap();
    is_refused(&home.fails(), &["is missing", "waifud restore"]);
    assert!(!database.exists());
    // Once the remaining state is moved away on purpose, waifud starts with an empty database.
    std::fs::rename(home.path("state/pki"), home.path("pki")).unwrap();
    std::fs::rename(home.path("state/images"), home.path("images")).unwrap();
    home.start().await;
}

#[tokio::test]
async fn a_removed_or_replaced_database_is_reported_as_unhealthy() {
    let home = Home::new();
    let running = home.start().await;
    let health = async || {
        let mut stream = UnixStream::connect(home.path("waifud.sock")).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(health().await.contains("HTTP/1.1 200"));
    let trouble = async || {
        running
            .client
            .server()
            .await
            .unwrap()
            .unwrap()
            .database
            .trouble
    };
    assert_eq!(trouble().await, None);
    let database = home.path("state/waifud.db");
    std::fs::rename(&database, home.path("kept.db")).unwrap();
    let answer = health().await;
    assert!(answer.contains("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("database-unusable") && answer.contains("removed"),
        "{answer}"
    );
    std::fs::copy(home.path("kept.db"), &database).unwrap();
    assert!(trouble().await.is_some_and(|why| why.contains("replaced")));
    std::fs::rename(home.path("kept.db"), &database).unwrap();
    assert!(health().await.contains("HTTP/1.1 200"));
}

#[tokio::test]
async fn waifud_does_not_start_on_a_read_only_database() {
    let home = Home::used().await;
    let database = home.path("state/waifud.db");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o444)).unwrap();
    let output = if nix::unistd::geteuid().is_root() {
        // Root can write to any file, so another user, who owns all but the database, starts waifud.
        let mut chown = Command::new("chown");
        chown.args(["-R", "65534:65534"]).arg(home.dir.path());
        assert!(chown.status().unwrap().success());
        std::os::unix::fs::chown(&database, Some(0), Some(0)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(["timeout", "60"]);
        command
            .arg(env!("CARGO_BIN_EXE_waifud"))
            .arg("--config")
            .arg(home.path("waifud.toml"));
        command.stdin(Stdio::null()).output().unwrap()
    } else {
        // The caller owns the database and may not write to it.
        home.fails()
    };
    is_refused(&output, &["read-only", "waifud.db"]);
}
