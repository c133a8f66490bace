//! Names from the real dnsmasq, requested as a guest's resolver would.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use waifud_network::GuestNetwork;
use waifud_network::samples::{remote, remote_name};

use crate::home::{Home, lan_port};
use crate::lab::{GATEWAY, Guest, OUTSIDE, on_a_node, port, with_a_guest};
use crate::namespace::Namespace;
use crate::wire::{PATIENCE, eventually};

pub const A: u16 = 1;
pub const PTR: u16 = 12;

/// Response codes (RFC 1035, section 4.1.1).
const NO_ERROR: u8 = 0;
pub const NO_SUCH_NAME: u8 = 3;
pub const REFUSED: u8 = 5;

/// One question (RFC 1035, section 4.1).
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.push(0);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    question
}

/// The gateway's answer: its code and the data of the first record, as text.
pub fn ask(guest: &Guest, name: &str, kind: u16) -> (u8, Option<String>) {
    let server = SocketAddrV4::new(GATEWAY, 53);
    ask_at(&guest.namespace, server, name, kind, PATIENCE).unwrap()
}

/// The answer of a server: its code and the data of the first record, as text.
pub fn ask_at(
    from: &Namespace,
    server: SocketAddrV4,
    name: &str,
    kind: u16,
    patience: Duration,
) -> std::io::Result<(u8, Option<String>)> {
    let question = question(name, kind);
    let socket = from.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.connect(server).unwrap();
    socket.send(&question)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    let answer = &answer[..length];
    let code = answer[3] & 0x0f;
    if answer[6..8] == [0, 0] {
        return Ok((code, None));
    }
    // A pointer to the name (2), type (2), class (2), time to live (4), length (2), data.
    let data = question.len() + 12;
    let text = match kind {
        A => Ipv4Addr::from(<[u8; 4]>::try_from(&answer[data..data + 4]).unwrap()).to_string(),
        _ => labels(answer, data),
    };
    Ok((code, Some(text)))
}

/// A name in a message, which may end in a pointer to an earlier one (RFC 1035, section 4.1.4).
fn labels(message: &[u8], mut at: usize) -> String {
    let mut labels = Vec::new();
    while message[at] != 0 {
        if message[at] >= 0xc0 {
            at = usize::from(message[at] & 0x3f) << 8 | usize::from(message[at + 1]);
            continue;
        }
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8(message[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    labels.join(".")
}

pub fn found(text: &str) -> (u8, Option<String>) {
    (NO_ERROR, Some(text.to_owned()))
}

#[test]
fn names_of_guests_resolve_in_both_directions() {
    with_a_guest(2, |lab, guest| async move {
        let _alive = &lab;
        for name in [
            "guest-1",
            "guest-1.waifu.internal",
            "GUEST-1.waifu.internal",
        ] {
            assert_eq!(ask(&guest, name, A), found("10.144.1.12"), "{name}");
        }
        let reverse = "12.1.144.10.in-addr.arpa";
        assert_eq!(ask(&guest, reverse, PTR), found("guest-1.waifu.internal"));
    });
}

#[test]
fn names_follow_guests_that_are_renamed_and_deleted() {
    with_a_guest(3, |mut lab, guest| async move {
        assert_eq!(ask(&guest, "guest-1", A), found("10.144.1.12"));
        lab.state.ports[1].name = "renamed".parse().unwrap();
        lab.state.ports.pop();
        lab.ensure().await;
        assert_eq!(ask(&guest, "renamed", A), found("10.144.1.12"));
        let reverse = "12.1.144.10.in-addr.arpa";
        assert_eq!(ask(&guest, reverse, PTR), found("renamed.waifu.internal"));
        for (name, kind) in [
            ("guest-1", A),
            ("guest-1.waifu.internal", A),
            ("guest-2.waifu.internal", A),
            ("13.1.144.10.in-addr.arpa", PTR),
        ] {
            assert_eq!(ask(&guest, name, kind), (NO_SUCH_NAME, None), "{name}");
        }
        // Another guest may have the name from now on.
        let mut again = port(2);
        again.name = "guest-1".parse().unwrap();
        lab.state.ports.push(again);
        lab.ensure().await;
        assert_eq!(ask(&guest, "guest-1", A), found("10.144.1.13"));
    });
}

#[test]
fn names_of_other_nodes_guests_resolve_in_both_directions_and_follow_them() {
    with_a_guest(2, |mut lab, guest| async move {
        lab.state.remote_subnets = vec![remote(2), remote(3)];
        lab.state.remote_names = [remote_name("web", 2, 7)].into();
        lab.ensure().await;
        for name in ["web", "web.waifu.internal"] {
            assert_eq!(ask(&guest, name, A), found("10.144.2.7"), "{name}");
        }
        let reverse = "7.2.144.10.in-addr.arpa";
        assert_eq!(ask(&guest, reverse, PTR), found("web.waifu.internal"));
        // No other server is asked about addresses of other nodes' guests.
        let unknown = "200.2.144.10.in-addr.arpa";
        assert_eq!(ask(&guest, unknown, PTR), (NO_SUCH_NAME, None));

        // It moves, and then takes over the name of a guest of this node.
        lab.state.remote_names = [remote_name("web", 3, 9)].into();
        lab.ensure().await;
        assert_eq!(ask(&guest, "web", A), found("10.144.3.9"));
        assert_eq!(ask(&guest, reverse, PTR), (NO_SUCH_NAME, None));
        lab.state.remote_names = [remote_name("guest-1", 3, 9)].into();
        lab.ensure().await;
        assert_eq!(ask(&guest, "guest-1", A), found("10.144.3.9"));
        assert_eq!(ask(&guest, "web", A), (NO_SUCH_NAME, None));
        lab.state.remote_names = [].into();
        lab.ensure().await;
        assert_eq!(ask(&guest, "guest-1", A), found("10.144.1.12"));
    });
}

#[test]
fn a_guest_with_nics_on_a_bridge_and_on_default_is_found_at_its_address_on_default() {
    on_a_node(2, |mut lab| async move {
        let _home = Home::new(&lab, "br0", true).await;
        let mut bridged = lan_port(0, "br0");
        bridged.name = lab.state.ports[1].name.clone();
        bridged.given = Some([192, 168, 1, 50].into());
        let mut only_bridged = lan_port(1, "br0");
        only_bridged.given = Some([192, 168, 1, 51].into());
        for port in [&mut bridged, &mut only_bridged] {
            port.fixed = port
                .given
                .map(|address| IpAddr::V4(address).into())
                .into_iter()
                .collect();
        }
        let unknown = only_bridged.name.to_string();
        lab.state.lan = vec![bridged, only_bridged];
        lab.ensure().await;
        let guest = lab.attach(0).await;
        assert_eq!(
            ask(&guest, "guest-1.waifu.internal", A),
            found("10.144.1.12")
        );
        assert_eq!(ask(&guest, &unknown, A), (NO_SUCH_NAME, None));
    });
}

#[test]
fn queries_about_guests_are_never_forwarded() {
    with_a_guest(1, |lab, guest| async move {
        let _alive = &lab;
        // Names in the guests' domain are denied without a query to another server.
        for (name, kind) in [
            ("nobody", A),
            ("nobody.waifu.internal", A),
            ("200.1.144.10.in-addr.arpa", PTR),
        ] {
            assert_eq!(ask(&guest, name, kind), (NO_SUCH_NAME, None), "{name}");
        }
        // Other names are forwarded to the host's name servers; this node has none.
        for (name, kind) in [("example.org", A), ("7.0.168.192.in-addr.arpa", PTR)] {
            assert_eq!(ask(&guest, name, kind), (REFUSED, None), "{name}");
        }
    });
}

/// An outside name server that answers for names that begin with `good` and ignores other queries.
struct Server {
    silent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(outside: &Namespace) -> Self {
        let socket = outside.run(|| UdpSocket::bind((OUTSIDE, 53)).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let (silent, stop) = (Arc::default(), Arc::default());
        let (counted, stopped) = (Arc::clone(&silent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || serve(&socket, &counted, &stopped));
        Self {
            silent,
            stop,
            thread: Some(thread),
        }
    }
}

fn serve(socket: &UdpSocket, silent: &AtomicUsize, stop: &AtomicBool) {
    let mut question = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut question) else {
            continue;
        };
        if !question[13..].starts_with(b"good") {
            silent.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let mut answer = question[..length].to_vec();
        // A response to a recursive query, with recursion available, one answer and no further records.
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        answer.truncate(end);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 7]);
        socket.send_to(&answer, from).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(std::thread::JoinHandle::join));
    }
}

#[test]
fn a_guest_that_floods_dns_does_not_starve_its_neighbor() {
    on_a_node(2, |lab| async move {
        let server = Server::start(&lab.outside);
        let resolv_conf = lab.state_dir().with_extension("conf");
        std::fs::write(&resolv_conf, format!("nameserver {OUTSIDE}\n")).unwrap();
        let network = lab.restarted_with(|config| config.resolv_conf = resolv_conf);
        network.ensure(&lab.state).await.unwrap();
        let (flooding, neighbor) = (lab.attach(0).await, lab.attach(1).await);
        assert_eq!(ask(&neighbor, "good.example.org", A), found("203.0.113.7"));

        let socket = flooding
            .namespace
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        for number in 0..12_000 {
            let name = format!("n{number}.example.org");
            let mut question = question(&name, A);
            question[..2].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
            // A full queue shows a flood, too.
            let _dropped = socket.send_to(&question, (GATEWAY, 53));
        }
        eventually("the flood arrives", || {
            server.silent.load(Ordering::Relaxed) > 150
        });
        for number in 0..10 {
            let name = format!("good{number}.example.org");
            assert_eq!(ask(&neighbor, &name, A), found("203.0.113.7"), "{name}");
        }
    });
}

#[test]
fn a_guest_that_holds_connections_to_dns_does_not_starve_its_neighbor() {
    on_a_node(2, |lab| async move {
        lab.ensure().await;
        let (holding, neighbor) = (lab.attach(0).await, lab.attach(1).await);
        let held: Vec<_> = holding.namespace.run(|| {
            let connecting: Vec<_> = (0..40)
                .map(|_| {
                    std::thread::spawn(|| {
                        let patience = Duration::from_millis(500);
                        TcpStream::connect_timeout(&(GATEWAY, 53).into(), patience)
                    })
                })
                .collect();
            let held = connecting.into_iter().map(|thread| thread.join().unwrap());
            held.filter_map(Result::ok).collect()
        });
        assert!(!held.is_empty(), "no connection over TCP was accepted");
        let mut stream = neighbor
            .namespace
            .run(|| TcpStream::connect_timeout(&(GATEWAY, 53).into(), PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let question = question("guest-1", A);
        let length = u16::try_from(question.len()).unwrap();
        stream.write_all(&length.to_be_bytes()).unwrap();
        stream.write_all(&question).unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(answer))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[answer.len() - 4..], [10, 144, 1, 12]);
        drop(held);
    });
}
