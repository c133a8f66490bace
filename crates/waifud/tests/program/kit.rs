//! A real waifud process, and what tests need to start one.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use waifud_api::client::{Client, Trust};
use waifud_api::{CreateTemplate, CreateToken};
use waifud_pki::{Authority, certificates, client_config};
use waifud_types::{Digest, Role, Secret};

/// Longer than any step of these tests takes. A test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The command that starts waifud with this configuration file, without the proxies of the caller.
pub fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waifud"));
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    command.arg("--config").arg(config);
    command
}

/// The program ended with exit code 1, and its error contains all of this.
#[track_caller]
pub fn is_refused(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

/// A process that is killed when it goes out of scope.
pub struct Process(pub Child);

impl Process {
    /// Starts waifud with this configuration file and a pipe for its standard error.
    pub fn start(config: &Path) -> Self {
        let child = command(config).stderr(Stdio::piped()).spawn();
        Self(child.unwrap())
    }

    /// The lines of its standard error. Can be taken once.
    pub fn stderr(&mut self) -> impl BufRead + Send + use<> {
        BufReader::new(self.0.stderr.take().unwrap())
    }

    pub fn kill(&mut self) {
        let _may_have_ended = self.0.kill();
        let _may_have_ended = self.0.wait();
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "waifud does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running waifud with its own state directory, listening on a free port.
pub struct Waifud {
    pub process: Process,
    pub at: SocketAddr,
    pub dir: tempfile::TempDir,
    log: Option<JoinHandle<String>>,
}

impl Waifud {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Starts it with further lines in its configuration file.
    pub fn start_with(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display();
        let config = dir.path().join("waifud.toml");
        let text = format!(
            "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\n\
             listen = ['127.0.0.1:0']\n{settings}"
        );
        std::fs::write(&config, text).unwrap();
        let (process, at, log) = Self::launch(&config);
        let log = Some(log);
        Self {
            process,
            at,
            dir,
            log,
        }
    }

    /// Starts it again after a kill, with the configuration file as it is now.
    pub fn start_again(&mut self) {
        let config = self.dir.path().join("waifud.toml");
        let (process, at, log) = Self::launch(&config);
        (self.process, self.at, self.log) = (process, at, Some(log));
    }

    fn launch(config: &Path) -> (Process, SocketAddr, JoinHandle<String>) {
        let mut process = Process::start(config);
        let mut stderr = process.stderr();
        let mut log = String::new();
        // It logs the addresses that it listens on.
        let at = loop {
            let before = log.len();
            let read = stderr.read_line(&mut log).unwrap();
            assert_ne!(read, 0, "waifud ended: {log}");
            if let Some((_, rest)) = log[before..].split_once("listen=[") {
                break rest.split(']').next().unwrap().parse().unwrap();
            }
        };
        let log = std::thread::spawn(move || {
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        (process, at, log)
    }

    /// Kills it and returns all that it logged.
    pub fn kill(&mut self) -> String {
        self.process.kill();
        self.log.take().unwrap().join().unwrap()
    }

    /// A client at the unix socket.
    pub fn client(&self) -> Client {
        Client::unix(&self.dir.path().join("u.sock")).unwrap()
    }

    /// A client over HTTPS that trusts the authority of this waifud only.
    pub fn https_client(&self, token: Option<Secret<String>>) -> Client {
        let ca = std::fs::read_to_string(self.pki().join("ca.crt")).unwrap();
        let tls = client_config(&certificates(&ca).unwrap()[0], None).unwrap();
        let url = format!("https://{}", self.at).parse().unwrap();
        Client::https(&url, &Trust::Only(tls), token).unwrap()
    }

    /// Creates a token for an operator.
    pub async fn operator_token(&self, name: &str) -> Secret<String> {
        let request = CreateToken {
            name: name.to_owned(),
            role: Role::Operator,
            expires_in_s: None,
        };
        self.client().create_token(&request).await.unwrap().secret
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.path().join("state/pki")
    }

    pub fn authority(&self) -> Authority {
        Authority::open(&self.pki()).unwrap()
    }
}

/// Uploads an image, whose file is written to `dir`, and creates the template `debian-12` from it.
pub async fn upload_template(dir: &Path, client: &Client) {
    let file = dir.join("image.qcow2");
    let digest = image_file(&file, 4096);
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

/// Writes a file of this size that starts like a qcow2 image with a virtual size of 1 GiB, and returns its digest.
pub fn image_file(path: &Path, size: usize) -> Digest {
    let mut bytes = vec![0; size];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    std::fs::write(path, &bytes).unwrap();
    let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
    Digest::from_bytes(hash.as_ref().try_into().unwrap())
}
