//! The process of the mesh: its socket, its answers, and its end.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use waifud_kit::testing::skip_if;
use waifud_wireguard::PrivateKey;
use waifud_wireguard::mesh::{MeshClient, MeshPeer};

struct Mesh {
    child: Child,
    dir: TempDir,
}

/// Whether namespaces with TUN devices can be made here.
fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let missing = if root && Path::new("/dev/net/tun").exists() {
        None
    } else {
        Some("the mesh needs root and /dev/net/tun".to_owned())
    };
    !skip_if(missing)
}

impl Mesh {
    /// Starts the process in a network namespace of its own. Returns the first line that it prints.
    fn start() -> (Self, String) {
        Self::start_in(&["unshare", "--net"])
    }

    fn start_in(namespace: &[&str]) -> (Self, String) {
        let dir = tempfile::tempdir().unwrap();
        let program = env!("CARGO_BIN_EXE_waifud-agentd");
        let (key, socket) = (dir.path().join("mesh.key"), dir.path().join("mesh.sock"));
        let script = format!(
            "exec {program} mesh --interface wfmesh0 --port 51820 --key {} --socket {}",
            key.display(),
            socket.display()
        );
        let mut child = Command::new(namespace[0])
            .args(&namespace[1..])
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        (Self { child, dir }, line)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("mesh.sock")
    }

    fn client(&self) -> MeshClient {
        MeshClient::new(self.socket())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // It may have ended.
        let _best_effort = self.child.kill();
        let _best_effort = self.child.wait();
    }
}

#[tokio::test]
async fn only_root_can_configure_the_mesh_and_its_private_key_is_never_shown() {
    if !can_run() {
        return;
    }
    let (mut mesh, line) = Mesh::start();
    assert_eq!(line, "ready\n");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(mesh.socket()), 0o600);
    assert_eq!(mode(mesh.dir.path().join("mesh.key")), 0o600);
    let private = fs::read_to_string(mesh.dir.path().join("mesh.key")).unwrap();
    let private: PrivateKey = private.parse().unwrap();

    let client = mesh.client();
    let status = client.status().await.unwrap().unwrap();
    assert_eq!(status.public_key, private.public_key());
    assert_eq!((status.port, status.interface.as_str()), (51820, "wfmesh0"));
    let shown = format!("{status:?}");
    assert!(!shown.contains(private.to_base64().as_str()), "{shown}");

    let peer = MeshPeer {
        public_key: PrivateKey::generate().public_key(),
        endpoints: vec!["192.0.2.2:51820".parse().unwrap()],
        allowed: vec!["10.144.2.0/24".parse().unwrap()],
    };
    let status = client.set(vec![peer.clone()], 1400).await.unwrap();
    assert_eq!(status.peers.len(), 1);
    assert_eq!(status.peers[0].public_key, peer.public_key);
    assert_eq!(status.peers[0].handshake_age_s, None);
    let error = client.set(vec![peer], 9000).await.unwrap_err();
    assert!(error.to_string().contains("576 to 1920"), "{error}");

    // A client that sends nonsense, or nothing, does not stop it.
    let mut rude = UnixStream::connect(mesh.socket()).unwrap();
    rude.write_all(b"\xff nonsense\n").unwrap();
    drop(rude);
    assert_eq!(client.status().await.unwrap().unwrap().peers.len(), 1);

    client.stop().await.unwrap();
    assert!(mesh.child.wait().unwrap().success());
    assert!(client.status().await.unwrap().is_none());
    client.stop().await.unwrap();
}

#[tokio::test]
async fn a_mesh_that_hangs_is_killed() {
    if !can_run() {
        return;
    }
    let (mut mesh, line) = Mesh::start();
    assert_eq!(line, "ready\n");
    let pid = Pid::from_raw(mesh.child.id().try_into().unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let client = mesh.client().with_patience(Duration::from_millis(50));
    assert!(client.status().await.unwrap_err().is_silence());
    client.stop().await.unwrap();
    assert_eq!(mesh.child.wait().unwrap().signal(), Some(9));
    assert!(client.status().await.unwrap().is_none());
}

#[test]
fn a_taken_port_is_told_to_the_agent() {
    if !can_run() {
        return;
    }
    let (first, line) = Mesh::start();
    assert_eq!(line, "ready\n");
    let pid = first.child.id().to_string();
    let (mut mesh, line) = Mesh::start_in(&["nsenter", "--target", &pid, "--net"]);
    assert_eq!(line, "port taken\n");
    assert!(!mesh.child.wait().unwrap().success());
}
