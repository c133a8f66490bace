//! The real program: its sockets, its lock, its configuration, and its state after a kill.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use waifud_api::client::{Client, EventQuery, ListQuery};
use waifud_api::{CreateInstance, CreateTemplate};

const DEADLINE: Duration = Duration::from_mins(1);

struct Home {
    dir: tempfile::TempDir,
}

/// A running waifud; killed when dropped.
struct Running {
    child: Child,
    client: Client,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _may_have_ended = self.child.wait();
    }
}

impl Home {
    fn new() -> Self {
        let home = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        home.configure("");
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configure(&self, more: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "socket = '{dir}/waifud.sock'\nlisten = ['127.0.0.1:0']\nstate_dir = '{dir}/state'\n{more}\n"
        );
        std::fs::write(self.path("waifud.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waifud"));
        command.arg("--config").arg(self.path("waifud.toml"));
        command
    }

    /// The error output of a failed start; a successful start is stopped after a minute.
    fn fails(&self) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_waifud"), "--config"]);
        command.arg(self.path("waifud.toml")).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Starts it and waits until it answers.
    async fn start(&self) -> Running {
        let child = self.command().stderr(Stdio::piped()).spawn().unwrap();
        let client = Client::unix(&self.path("waifud.sock")).unwrap();
        let mut running = Running { child, client };
        let begun = Instant::now();
        while running.client.nodes(&ListQuery::default()).await.is_err() {
            if running.child.try_wait().unwrap().is_some() || begun.elapsed() > DEADLINE {
                let _may_have_ended = running.child.kill();
                let mut stderr_text = String::new();
                running
                    .child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut stderr_text)
                    .unwrap();
                panic!("waifud does not answer: {stderr_text}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        eprintln!("waifud answered {:?} after it was started", begun.elapsed());
        running
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }

    async fn ends(&mut self) -> std::process::ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "waifud does not exit");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn upload_template(home: &Home, client: &Client) {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    let file = home.path("image.qcow2");
    std::fs::write(&file, &bytes).unwrap();
    let sum = Command::new("sha256sum")
        .arg(&file)
        .output()
        .unwrap()
        .stdout;
    let digest = String::from_utf8(sum)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    client.upload_image(digest, &file, |_| ()).await.unwrap();
    let request = CreateTemplate {
        name: "debian-12".into(),
        image: digest,
        arch: None,
        datasource: waifud_types::template::Datasource::default(),
        firmware: waifud_types::template::Firmware::default(),
        default_user: None,
    };
    client.create_template(&request).await.unwrap();
}

fn wish() -> CreateInstance {
    serde_json::from_str(r#"{"template": "debian-12"}"#).unwrap()
}

#[tokio::test]
async fn acknowledged_changes_survive_a_kill_and_the_sockets_are_replaced() {
    let home = Home::new();
    let mut running = home.start().await;
    upload_template(&home, &running.client).await;
    let mut names = Vec::new();
    for key in ["a", "b", "c"] {
        names.push(
            running
                .client
                .create_instance(&wish(), key)
                .await
                .unwrap()
                .name,
        );
    }
    running.signal(Signal::SIGKILL);
    running.ends().await;
    assert!(
        home.path("waifud.sock").exists(),
        "a killed waifud leaves its sockets"
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
async fn a_stop_ends_its_watches_and_exits() {
    let home = Home::new();
    let mut running = home.start().await;
    let mut watch = Box::pin(
        running
            .client
            .watch_events(&EventQuery::default())
            .await
            .unwrap(),
    );
    running.signal(Signal::SIGTERM);
    let rest = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(DEADLINE, rest).await.unwrap();
    assert!(running.ends().await.success());
    assert!(!home.path("waifud.sock").exists());
}

#[tokio::test]
async fn a_second_waifud_on_the_same_state_is_refused_without_side_effects() {
    let home = Home::new();
    let running = home.start().await;
    let second = home.fails();
    assert_eq!(second.status.code(), Some(1));
    let stderr_text = String::from_utf8(second.stderr).unwrap();
    assert!(
        stderr_text.contains("another waifud uses") && stderr_text.contains("state_dir"),
        "{stderr_text}"
    );
    running.client.nodes(&ListQuery::default()).await.unwrap();
}

#[tokio::test]
async fn sockets_and_state_are_closed_to_others() {
    let home = Home::new();
    let _running = home.start().await;
    let mode = |name: &str| {
        std::fs::metadata(home.path(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("waifud.sock"), 0o660);
    assert_eq!(mode("state"), 0o700);
    assert_eq!(mode("state/waifud.db"), 0o600);
    assert_eq!(
        (mode("state/pki"), mode("state/pki/ca.key")),
        (0o700, 0o600)
    );
}

#[test]
fn an_unknown_key_is_refused_naming_key_and_file() {
    let home = Home::new();
    home.configure("colour = 'blue'");
    let output = home.fails();
    assert_eq!(output.status.code(), Some(1));
    let stderr_text = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr_text.contains("colour") && stderr_text.contains("waifud.toml"),
        "{stderr_text}"
    );
}

#[test]
fn a_file_at_the_path_of_the_socket_is_kept() {
    let home = Home::new();
    std::fs::write(home.path("waifud.sock"), "mine").unwrap();
    let output = home.fails();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("is not a socket")
    );
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
        "docs/reference/openapi.json is old: waifud openapi > docs/reference/openapi.json"
    );
}

fn stderr_text(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn a_lost_database_is_not_replaced_by_an_empty_one() {
    let home = Home::new();
    let mut running = home.start().await;
    running.signal(Signal::SIGTERM);
    running.ends().await;
    let database = home.path("state/waifud.db");
    std::fs::rename(&database, home.path("kept.db")).unwrap();
    let text = stderr_text(&home.fails());
    assert!(
        text.contains("is missing") && text.contains("waifud restore"),
        "{text}"
    );
    assert!(!database.exists());
    // Moved on purpose, so a new database is created.
    std::fs::rename(home.path("state/pki"), home.path("pki")).unwrap();
    std::fs::rename(home.path("state/images"), home.path("images")).unwrap();
    home.start().await;
}

#[tokio::test]
async fn a_removed_or_replaced_database_is_unhealthy() {
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
    assert_eq!(
        running
            .client
            .server()
            .await
            .unwrap()
            .unwrap()
            .database
            .trouble,
        None
    );
    let database = home.path("state/waifud.db");
    std::fs::rename(&database, home.path("kept.db")).unwrap();
    let answer = health().await;
    assert!(answer.contains("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("database-unusable") && answer.contains("removed"),
        "{answer}"
    );
    std::fs::copy(home.path("kept.db"), &database).unwrap();
    let trouble = running
        .client
        .server()
        .await
        .unwrap()
        .unwrap()
        .database
        .trouble;
    assert!(trouble.is_some_and(|why| why.contains("replaced")));
    std::fs::rename(home.path("kept.db"), &database).unwrap();
    assert!(health().await.contains("HTTP/1.1 200"));
}

#[tokio::test]
async fn waifud_does_not_start_with_a_read_only_database() {
    let home = Home::new();
    let mut running = home.start().await;
    running.signal(Signal::SIGTERM);
    running.ends().await;
    let database = home.path("state/waifud.db");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o444)).unwrap();
    let output = if nix::unistd::geteuid().is_root() {
        // Root can write any file, so another user starts it, who owns everything but the database.
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
        // An owner could restore the permission, so the directory gets the same treatment.
        home.fails()
    };
    let text = stderr_text(&output);
    assert!(
        text.contains("read-only") && text.contains("waifud.db"),
        "{text}"
    );
}
