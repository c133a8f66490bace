//! The real program over HTTPS: whose handshake is accepted, and that stalled clients do not delay others.

mod contract;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::kit::{DEADLINE, Waifud, is_refused};
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

/// Requests over TLS, each on a new connection.
trait Get {
    async fn get(&self, tls: Arc<ClientConfig>, path: &str) -> std::io::Result<String>;
}

impl Get for Waifud {
    async fn get(&self, tls: Arc<ClientConfig>, path: &str) -> std::io::Result<String> {
        let exchange = async {
            let stream = TcpStream::connect(self.at).await?;
            get_on(stream, tls, path).await
        };
        timeout(DEADLINE, exchange).await.unwrap()
    }
}

/// Sends one request on this connection and returns the complete answer.
async fn get_on(stream: TcpStream, tls: Arc<ClientConfig>, path: &str) -> std::io::Result<String> {
    let mut stream = TlsConnector::from(tls)
        .connect(server_name(), stream)
        .await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The TLS configuration of a node with a certificate of `ca`, which trusts servers of `trusted`.
fn node_of(ca: &Authority, trusted: &Authority) -> Arc<ClientConfig> {
    let key = NodeKey::generate().unwrap();
    let request = NodeRequest::parse(&key.request().unwrap()).unwrap();
    let node: NodeId = "0192f0c1-0000-7000-8000-000000000001".parse().unwrap();
    let certificate = ca.issue_node(&request, node).unwrap();
    let own = Identity::from_pem(&key.to_pem(), &certificate).unwrap();
    client_config(trusted.certificate(), Some(&own)).unwrap()
}

#[tokio::test]
async fn clients_that_trust_the_ca_are_served_and_certificates_of_another_ca_are_refused() {
    let waifud = Waifud::start();
    let ca = waifud.authority();
    let tls = client_config(ca.certificate(), None).unwrap();
    let answer = waifud.get(tls.clone(), "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let pinned = join_config(ca.fingerprint()).unwrap();
    let answer = waifud.get(pinned, "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A client without a credential gets no further.
    let answer = waifud.get(tls, "/v1/instances").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    // A node's certificate does not grant access to the routes of users.
    let node = node_of(&ca, &ca);
    let answer = waifud.get(node, "/v1/instances").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // The handshake fails for a certificate of another CA, and for a client that trusts another CA.
    let other_ca = Authority::generate().unwrap();
    let foreign = node_of(&other_ca, &ca);
    assert!(waifud.get(foreign, "/healthz").await.is_err());
    let trusting_other = client_config(other_ca.certificate(), None).unwrap();
    assert!(waifud.get(trusting_other, "/healthz").await.is_err());
}

#[tokio::test]
async fn stalled_and_invalid_clients_delay_neither_other_requests_nor_shutdown() {
    let mut waifud = Waifud::start();
    let mut stalled = Vec::new();
    for bytes in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(waifud.at).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stalled.push(stream);
    }
    // A client that sends nothing after its handshake.
    let tls = client_config(waifud.authority().certificate(), None).unwrap();
    let stream = TcpStream::connect(waifud.at).await.unwrap();
    let idle = TlsConnector::from(tls.clone())
        .connect(server_name(), stream)
        .await
        .unwrap();
    waifud.get(tls, "/healthz").await.unwrap();
    waifud.process.signal(nix::sys::signal::Signal::SIGTERM);
    waifud.process.ended().await;
    drop((stalled, idle));
}

/// A connection from another address of the loopback network.
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

/// Sends a join request with an endless body until waifud stops reading, and returns the open connection.
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
    // waifud may close the connection or stop reading.
    let _closed_or_stalled = timeout(DEADLINE, stream.write_all(&vec![b' '; 7 << 20])).await;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_flood_neither_locks_out_other_addresses_nor_exhausts_memory() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(16_384.min(hard)), hard).unwrap();
    let waifud = Waifud::start();
    let tls = client_config(waifud.authority().certificate(), None).unwrap();
    waifud.get(tls.clone(), "/healthz").await.unwrap();
    let before = resident_kib(waifud.process.0.id());

    let joins = (0..20).map(|_| stalled_join(tls.clone(), [127, 0, 0, 2], waifud.at));
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for join in futures::future::join_all(joins).await {
        held.extend(join.ok().map(|one| Box::new(one) as Box<dyn Send>));
    }
    assert!(!held.is_empty(), "no join request was sent");
    // Idle connections, which are still being opened while other addresses send requests.
    let established = Arc::new(AtomicUsize::new(0));
    let mut idle = tokio::task::JoinSet::new();
    for number in 0..5000_u32 {
        let source = [127, 0, 0, if number % 4 == 0 { 3 } else { 2 }];
        let at = waifud.at;
        let established = Arc::clone(&established);
        idle.spawn(async move {
            let held = connect_from(source, at).await;
            if held.is_ok() {
                established.fetch_add(1, Ordering::Relaxed);
            }
            std::future::pending::<()>().await;
        });
    }
    let flooded = async {
        while established.load(Ordering::Relaxed) < 500 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, flooded)
        .await
        .expect("the flood has begun");
    for source in [[127, 0, 0, 4], [127, 0, 0, 5]] {
        let ask = async {
            let stream = connect_from(source, waifud.at).await?;
            get_on(stream, tls.clone(), "/healthz").await
        };
        let answer = timeout(DEADLINE, ask).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let grown = resident_kib(waifud.process.0.id()).saturating_sub(before);
    assert!(grown < 50 << 10, "memory grew by {grown} KiB");
    eprintln!("memory grew by {grown} KiB");
    drop((held, idle));
}

#[tokio::test]
async fn the_error_names_a_listen_address_in_use() {
    let waifud = Waifud::start();
    let other = tempfile::tempdir().unwrap();
    let home = other.path().display();
    let text = format!(
        "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\nlisten = ['{}']",
        waifud.at
    );
    let config = other.path().join("waifud.toml");
    std::fs::write(&config, text).unwrap();
    // It is ended after a minute if it does start.
    let output = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_waifud"), "--config"])
        .arg(&config)
        .output()
        .unwrap();
    is_refused(&output, &[&waifud.at.to_string(), "listen"]);
}
