//! Names from the real dnsmasq, asked for as a guest's resolver would.

use std::net::{Ipv4Addr, UdpSocket};

use crate::lab::{GATEWAY, Guest, on_a_node, port};
use crate::wire::PATIENCE;

const A: u16 = 1;
const PTR: u16 = 12;

/// Response codes (RFC 1035, section 4.1.1).
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

/// What the gateway answers: its code and the data of the first answer, as text.
fn ask(guest: &Guest, name: &str, kind: u16) -> (u8, Option<String>) {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.push(0);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    let socket = guest
        .namespace
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect((GATEWAY, 53)).unwrap();
    socket.send(&question).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    let answer = &answer[..length];
    let code = answer[3] & 0x0f;
    if answer[6..8] == [0, 0] {
        return (code, None);
    }
    // A pointer to the name (2), type (2), class (2), time to live (4), length (2), data.
    let data = question.len() + 12;
    let text = match kind {
        A => Ipv4Addr::from(<[u8; 4]>::try_from(&answer[data..data + 4]).unwrap()).to_string(),
        _ => labels(answer, data),
    };
    (code, Some(text))
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

fn found(text: &str) -> (u8, Option<String>) {
    (NO_ERROR, Some(text.to_owned()))
}

#[test]
fn guests_have_names_and_addresses_have_names_too() {
    on_a_node(2, |lab| async move {
        lab.ensure().await;
        let guest = lab.attach(0).await;
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
    on_a_node(3, |mut lab| async move {
        lab.ensure().await;
        let guest = lab.attach(0).await;
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
        // The name may be another guest's from now on.
        let mut again = port(2);
        again.name = "guest-1".parse().unwrap();
        lab.state.ports.push(again);
        lab.ensure().await;
        assert_eq!(ask(&guest, "guest-1", A), found("10.144.1.13"));
    });
}

#[test]
fn names_and_addresses_of_guests_are_never_asked_of_other_servers() {
    on_a_node(1, |lab| async move {
        lab.ensure().await;
        let guest = lab.attach(0).await;
        // Ours to deny, without asking anybody.
        for (name, kind) in [
            ("nobody", A),
            ("nobody.waifu.internal", A),
            ("200.1.144.10.in-addr.arpa", PTR),
        ] {
            assert_eq!(ask(&guest, name, kind), (NO_SUCH_NAME, None), "{name}");
        }
        // Others' are asked of the host's servers, of which this node has none.
        for (name, kind) in [("example.org", A), ("7.0.168.192.in-addr.arpa", PTR)] {
            assert_eq!(ask(&guest, name, kind), (REFUSED, None), "{name}");
        }
    });
}
