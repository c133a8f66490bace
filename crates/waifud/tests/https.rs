//! The real program over HTTPS: who gets through the handshake, and what a stalled client can hold up.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod kit;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kit::Waifud;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use waifud_pki::{
    Authority, Identity, NodeKey, NodeRequest, client_config, join_config, server_name,
};
use waifud_types::NodeId;

const DEADLINE: Duration = Duration::from_mins(1);

/// Requests of these tests.
trait Get {
    async fn get(&self, tls: Arc<ClientConfig>, path: &str) -> std::io::Result<String>;
}

impl Get for Waifud {
    /// One request on a connection of its own; the whole answer, or why there is none.
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
async fn one_port_serves_whoever_knows_the_ca_and_refuses_certificates_of_others() {
    let waifud = Waifud::start();
    let ca = waifud.authority();
    let anybody = client_config(ca.certificate(), None).unwrap();
    let answer = waifud.get(anybody.clone(), "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let pinned = join_config(ca.fingerprint()).unwrap();
    let answer = waifud.get(pinned, "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Without a word about who it is, nobody gets further.
    let answer = waifud.get(anybody, "/v1/instances").await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 401") || answer.starts_with("HTTP/1.1 403"),
        "{answer}"
    );
    // A node's certificate is none for people's routes.
    let node = node_of(&ca, &ca);
    let answer = waifud.get(node, "/v1/instances").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // Nor does another CA's get through the handshake.
    let foreign = Authority::generate().unwrap();
    let stranger = node_of(&foreign, &ca);
    assert!(waifud.get(stranger, "/healthz").await.is_err());
    let mistaken = client_config(foreign.certificate(), None).unwrap();
    assert!(waifud.get(mistaken, "/healthz").await.is_err());
}

#[tokio::test]
async fn clients_that_stall_or_babble_hold_up_neither_others_nor_the_end() {
    let mut waifud = Waifud::start();
    let mut stalled = Vec::new();
    for said in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(waifud.at).await.unwrap();
        stream.write_all(said).await.unwrap();
        stalled.push(stream);
    }
    // One that is past its handshake and says nothing more.
    let anybody = client_config(waifud.authority().certificate(), None).unwrap();
    let stream = TcpStream::connect(waifud.at).await.unwrap();
    let idle = TlsConnector::from(anybody.clone())
        .connect(server_name(), stream)
        .await
        .unwrap();
    waifud.get(anybody, "/healthz").await.unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(waifud.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let begun = std::time::Instant::now();
    while waifud.child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < DEADLINE, "waifud does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop((stalled, idle));
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
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        said.contains(&waifud.at.to_string()) && said.contains("listen"),
        "{said}"
    );
}
