//! The keys of waifud.toml reach the server: who may use the socket, the subnets of guests, and where images come from.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use waifud_agent::Membership;
use waifud_agent::interfaces::{ControlLink, HttpLink};
use waifud_api::CreateDownload;
use waifud_api::client::ClientError;

use crate::joining::{hello, name, token};
use crate::kit::{DEADLINE, Waifud};
use crate::process::Home;

/// The exit code of curl that asks for waifud's version as this user and group: 0, or 7 if it could not connect.
fn ask(socket: &Path, uid: u32, gid: u32) -> Option<i32> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "20", "--output", "/dev/null"]);
    curl.arg("--unix-socket").arg(socket);
    curl.arg("http://localhost/v1/version");
    curl.gid(gid).uid(uid);
    curl.status().unwrap().code()
}

#[tokio::test]
async fn only_root_and_members_of_socket_group_can_connect() {
    const OTHER: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        waifud_kit::testing::skip("needs root to switch to other users");
        return;
    }
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    let group = group.gid.as_raw();
    let own = nix::unistd::getegid().as_raw();
    for (key, members) in [
        ("socket_group = 'daemon'", Some(group)),
        ("socket_group = 'no-such-group-of-waifud'", None),
    ] {
        let home = Home::new();
        home.configure(key);
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(home.dir.path(), open).unwrap();
        let _running = home.start().await;
        let socket = home.path("waifud.sock");
        assert_eq!(ask(&socket, 0, 0), Some(0), "{key}");
        // 7: curl could not connect.
        assert_eq!(ask(&socket, OTHER, OTHER), Some(7), "{key}");
        assert_eq!(ask(&socket, OTHER, own), Some(7), "{key}");
        let expected = if members.is_some() { 0 } else { 7 };
        assert_eq!(ask(&socket, OTHER, group), Some(expected), "{key}");
    }
}

#[tokio::test]
async fn nodes_get_subnets_of_guest_range() {
    let waifud = Waifud::start_with("guest_range = '10.200.0.0/16'");
    let home = tempfile::tempdir().unwrap();
    let token = token(&waifud).await;
    let member = Membership::join(home.path(), &token, &[], name())
        .await
        .unwrap();
    let link = HttpLink::of(member).unwrap();
    link.hello(&hello()).await.unwrap();
    let node = waifud.client().node("alder").await.unwrap();
    let subnets: Vec<_> = node.subnets.iter().map(ToString::to_string).collect();
    assert_eq!(subnets.len(), 1);
    assert!(subnets[0].starts_with("10.200."), "{subnets:?}");
}

/// A download of a template of this name.
fn of(name: &str) -> CreateDownload {
    CreateDownload {
        name: name.to_owned(),
        ..CreateDownload::default()
    }
}

/// Accepts one request, answers 404, and returns its first line.
async fn first_line(listener: TcpListener) -> String {
    let one = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        line.trim().to_owned()
    };
    tokio::time::timeout(DEADLINE, one).await.unwrap()
}

#[tokio::test]
async fn images_are_downloaded_from_this_machine_only_with_downloads_from_loopback() {
    for (key, allowed) in [("", false), ("downloads_from_loopback = true", true)] {
        let waifud = Waifud::start_with(key);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a.qcow2", listener.local_addr().unwrap());
        let request = CreateDownload {
            url: Some(url),
            checksum: Some(format!("sha256:{}", "a".repeat(64)).parse().unwrap()),
            ..of("mine")
        };
        match waifud.client().create_download(&request).await {
            Ok(_) if allowed => assert_eq!(first_line(listener).await, "GET /a.qcow2 HTTP/1.1"),
            Err(ClientError::Problem(problem)) if !allowed => {
                assert_eq!(problem.code, "invalid-url");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn images_of_the_catalog_are_downloaded_from_catalog_mirror() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let keys = format!("catalog_mirror = 'http://{at}'\ndownloads_from_loopback = true");
    let waifud = Waifud::start_with(&keys);
    let client = waifud.client();
    client.create_download(&of("debian-12")).await.unwrap();
    let line = first_line(listener).await;
    assert!(line.starts_with("GET /cloud.debian.org/"), "{line}");
}
