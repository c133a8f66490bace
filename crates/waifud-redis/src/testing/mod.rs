//! A real `redis-server` for tests, with TLS and with users as docs/guides/redis.md creates them, and a slow way to it.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "only tests use it, and they stop at the first surprise"
)]

mod relay;

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use relay::SlowRelay;
use waifud_pki::Authority;
use waifud_types::{Digest, Secret};

use crate::RedisAccess;

/// Debian's server, which is this program under the name `redis-server`. The package `redis-server` adds only a link with that
/// name, and a service.
const PROGRAM: &str = "/usr/bin/redis-check-rdb";
/// Longer than any start or end of the server takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// The user that writes.
pub const WRITER: &str = "waifud";
/// Its password.
pub const WRITER_PASSWORD: &str = "password-of-the-writer";
/// The user that reads.
pub const READER: &str = "waifud-node";
/// Its password.
pub const READER_PASSWORD: &str = "password-of-the-reader";

/// Users with the permissions that docs/guides/redis.md gives them.
pub const USERS: &str = "user default off\n\
    user admin on >admin ~* &* +@all\n\
    user waifud on >password-of-the-writer ~waifud:* resetchannels -@all +ping +scan +getrange +set +del\n\
    user waifud-node on >password-of-the-reader ~waifud:bundle:* resetchannels -@all +ping +getrange\n";

/// A running server in a temporary directory. It ends when it is dropped.
pub struct RealRedis {
    dir: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
    ca: String,
}

/// Why no server can run here; `None` if one can.
pub fn why_no_redis() -> Option<String> {
    (!Path::new(PROGRAM).exists()).then(|| format!("{PROGRAM} is missing (package redis-tools)"))
}

impl RealRedis {
    /// Starts a server; `None` after reporting the test as skipped where there is none.
    #[track_caller]
    pub fn start_or_skip() -> Option<Self> {
        (!waifud_kit::testing::skip_if(why_no_redis())).then(Self::start)
    }

    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        authority.open_server(dir.path(), &names).unwrap();
        std::fs::write(dir.path().join("users.acl"), USERS).unwrap();
        // Another process may take a port between its choice and the start of the server.
        for _attempt in 0..5 {
            let port = free_port();
            if let Some(process) = launch(dir.path(), port) {
                return Self {
                    ca: authority.to_pem(),
                    dir,
                    port,
                    process: Some(process),
                };
            }
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("redis-server does not start: {log}");
    }

    /// Its port, with TLS.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The file with the CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        Authority::public_file(self.dir.path())
    }

    /// The access of the user that writes.
    pub fn writer(&self) -> RedisAccess {
        self.access(self.port, WRITER, WRITER_PASSWORD)
    }

    /// The access of the user that reads.
    pub fn reader(&self) -> RedisAccess {
        self.access(self.port, READER, READER_PASSWORD)
    }

    /// The access of a user, through this port.
    pub fn access(&self, port: u16, user: &str, password: &str) -> RedisAccess {
        RedisAccess {
            url: format!("rediss://127.0.0.1:{port}"),
            ca: Some(self.ca.clone()),
            username: Some(user.to_owned()),
            password: Some(Secret::new(password.to_owned())),
            prefix: "waifud".to_owned(),
        }
    }

    /// Runs a command as an administrator, with this last argument from standard input, and returns the answer.
    pub fn admin(&self, arguments: &[&str]) -> String {
        let output = cli(self.dir.path()).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    }

    /// The bundles that it has, without the key by which waifud checks that it may write, which exists for a moment.
    pub fn bundles(&self) -> Vec<Digest> {
        let keys = self.admin(&["KEYS", "waifud:bundle:*"]);
        let bundle = |key: &str| key.strip_prefix("waifud:bundle:").unwrap().parse();
        let mut found: Vec<Digest> = keys
            .lines()
            .filter(|line| !line.is_empty() && !line.ends_with(":write-check"))
            .map(|key| bundle(key).unwrap())
            .collect();
        found.sort_unstable();
        found
    }

    /// Replaces a value, as another writer would.
    pub fn overwrite(&self, bundle: Digest, value: &str) {
        let key = format!("waifud:bundle:{}", bundle.hex());
        assert_eq!(self.admin(&["SET", &key, value]), "OK");
    }

    /// The server ends at once, without saving anything.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _may_have_ended = process.kill();
            let _may_have_ended = process.wait();
        }
    }

    /// Starts it again, with the last dump.
    pub fn start_again(&mut self) {
        let begun = Instant::now();
        while self.process.is_none() {
            assert!(
                begun.elapsed() < PATIENCE,
                "redis-server does not start again"
            );
            self.process = launch(self.dir.path(), self.port);
        }
    }

    /// Writes a dump, with which it starts from now on.
    pub fn dump(&self) {
        assert_eq!(self.admin(&["SAVE"]), "OK");
    }
}

impl Drop for RealRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts the server. `None` if it ended, for example because the port is taken.
fn launch(dir: &Path, port: u16) -> Option<Child> {
    let home = dir.display();
    let ca = Authority::public_file(dir);
    let ca = ca.display();
    let config = format!(
        "port 0\ntls-port {port}\nbind 127.0.0.1\nunixsocket {home}/redis.sock\ndir {home}\n\
         tls-cert-file {home}/server.key\ntls-key-file {home}/server.key\ntls-ca-cert-file {ca}\n\
         tls-auth-clients no\naclfile {home}/users.acl\nsave \"\"\nappendonly no\nlogfile {home}/log\n"
    );
    let file = dir.join("redis.conf");
    std::fs::write(&file, config).unwrap();
    let mut process = Command::new(PROGRAM)
        .arg0("redis-server")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    loop {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        let pong = cli(dir).arg("PING").output().unwrap();
        if pong.stdout.starts_with(b"PONG") {
            return Some(process);
        }
        assert!(begun.elapsed() < PATIENCE, "redis-server does not answer");
        // Between two looks at a process that is starting.
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn cli(dir: &Path) -> Command {
    let mut command = Command::new("redis-cli");
    command.arg("-s").arg(dir.join("redis.sock"));
    command.args(["--user", "admin", "--pass", "admin", "--no-auth-warning"]);
    command
}
