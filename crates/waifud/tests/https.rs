//! The real program over HTTPS: TLS handshakes, and the effect of stalled clients.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "https/contract.rs"]
mod contract;
mod kit;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kit::Waifud;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use waifud_pki::{
    Authority, Identity, NodeKey, NodeRequest, client_config, join_config, server_name,
};
use waifud_types::NodeId;

const DEADLINE: Duration = Duration::from_mins(1);

/// Requests of the tests.
trait Get {
    async fn get(&self, tls: Arc<ClientConfig>, path: &str) -> std::io::Result<String>;
}

impl Get for Waifud {
    /// One request on a new connection; the complete answer, or the error.
    async fn get(&self, tls: Arc<ClientConfig>, path: &str) -> std::io::Result<String> {
        let exchange = async {
            let stream = TcpStream::connect(self.at).await?;
            let mut stream = TlsConnector::from(tls)
                .connect(server_name(), stream)
                .await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        timeout(DEADLINE, exchange).await.unwrap()
    }
}

fn node_of(ca: &Authority, trusted: &Authority) -> Arc<ClientConfig> {
    let key = NodeKey::generate().unwrap();
    let request = NodeRequest::parse(&key.request().unwrap()).unwrap();
    let node: NodeId = "0192f0c1-0000-7000-8000-000000000001".parse().unwrap();
    let certificate = ca.issue_node(&request, node).unwrap();
    let own = Identity::from_pem(&key.to_pem(), &certificate).unwrap();
    client_config(trusted.certificate(), Some(&own)).unwrap()
}

#[tokio::test]
async fn one_port_serves_users_and_nodes_and_refuses_certificates_of_other_cas() {
    let waifud = Waifud::start();
    let ca = waifud.authority();
    let user = client_config(ca.certificate(), None).unwrap();
    let answer = waifud.get(user.clone(), "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let pinned = join_config(ca.fingerprint()).unwrap();
    let answer = waifud.get(pinned, "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Without a credential, other routes are refused.
    let answer = waifud.get(user, "/v1/instances").await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 403"),
        "{answer}"
    );
    // A node's certificate is not accepted on routes for users.
    let node = node_of(&ca, &ca);
    let answer = waifud.get(node, "/v1/instances").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // A certificate of another CA fails in the handshake.
    let foreign = Authority::generate().unwrap();
    let stranger = node_of(&foreign, &ca);
    assert!(waifud.get(stranger, "/healthz").await.is_err());
    let mistaken = client_config(foreign.certificate(), None).unwrap();
    assert!(waifud.get(mistaken, "/healthz").await.is_err());
}

#[tokio::test]
async fn stalled_and_invalid_clients_block_neither_others_nor_the_shutdown() {
    let mut waifud = Waifud::start();
    let mut stalled = Vec::new();
    for bytes in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(waifud.at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stalled.push(stream);
    }
    // A client that is idle after its handshake.
    let user = client_config(waifud.authority().certificate(), None).unwrap();
    let stream = TcpStream::connect(waifud.at).await.unwrap();
    let idle = TlsConnector::from(user.clone())
        .connect(server_name(), stream)
        .await
        .unwrap();
    waifud.get(user, "/healthz").await.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waifud.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let begun = std::time::Instant::now();
    while waifud.child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < DEADLINE, "waifud does not exit");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop((stalled, idle));
}

/// A connection from another loopback address.
async fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(to).await
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

/// Sends a join request with an endless body, as far as waifud reads it, and returns the open connection.
async fn stalled_join(
    tls: Arc<ClientConfig>,
    source: [u8; 4],
    to: SocketAddr,
) -> std::io::Result<impl Sized> {
    let stream = connect_from(source, to).await?;
    let mut stream = TlsConnector::from(tls)
        .connect(server_name(), stream)
        .await?;
    let head = "POST /v1/agent/join HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 8388608\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    // waifud may refuse it or let it stall.
    let _cut = timeout(DEADLINE, stream.write_all(&vec![b' '; 7 << 20])).await;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_address_neither_blocks_others_nor_uses_much_memory() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(16_384.min(hard)), hard).unwrap();
    let waifud = Waifud::start();
    let user = client_config(waifud.authority().certificate(), None).unwrap();
    waifud.get(user.clone(), "/healthz").await.unwrap();
    let before = resident_kib(waifud.child.id());

    let joins = (0..20).map(|_| stalled_join(user.clone(), [127, 0, 0, 2], waifud.at));
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for join in futures::future::join_all(joins).await {
        held.extend(join.ok().map(|one| Box::new(one) as Box<dyn Send>));
    }
    // Idle connections, also while another address sends requests.
    let mut idle = tokio::task::JoinSet::new();
    for number in 0..5000_u32 {
        let source = [127, 0, 0, if number % 4 == 0 { 3 } else { 2 }];
        let at = waifud.at;
        idle.spawn(async move {
            let _held = connect_from(source, at).await;
            std::future::pending::<()>().await;
        });
    }
    tokio::task::yield_now().await;
    for source in [[127, 0, 0, 4], [127, 0, 0, 5]] {
        let ask = async {
            let stream = connect_from(source, waifud.at).await?;
            let mut stream = TlsConnector::from(user.clone())
                .connect(server_name(), stream)
                .await?;
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = timeout(DEADLINE, ask).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let grown = resident_kib(waifud.child.id()).saturating_sub(before);
    assert!(grown < 50 << 10, "memory grew by {grown} KiB");
    eprintln!("memory grew by {grown} KiB");
    drop((held, idle));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let waifud = Waifud::start();
    let other = tempfile::tempdir().unwrap();
    let home = other.path().display();
    let text = format!(
        "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\nlisten = ['{}']",
        waifud.at
    );
    let config = other.path().join("waifud.toml");
    std::fs::write(&config, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        stderr.contains(&waifud.at.to_string()) && stderr.contains("listen"),
        "{stderr}"
    );
}
