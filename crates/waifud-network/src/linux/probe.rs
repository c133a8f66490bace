//! Resolves a name with dnsmasq, to find out whether it has read its files.
//!
//! The reload signal has no confirmation. So every load of leases contains a unique name ([`crate::dhcp::mark`]). Once
//! that name resolves, leases and names are in force, because dnsmasq reads both files at once.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::net::UdpSocket;

/// A reload takes about a millisecond. The pauses between queries grow from there.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// How long to wait for an answer of the same host; a datagram may be dropped.
const ANSWER_PATIENCE: Duration = Duration::from_millis(100);

/// Waits until `server` resolves `name`, at most for `patience`.
pub(super) async fn knows(server: SocketAddrV4, name: &str, patience: Duration) -> bool {
    let asking = async {
        let mut pause = FIRST_PAUSE;
        while ask(server, name).await != Some(true) {
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    };
    tokio::time::timeout(patience, asking).await.is_ok()
}

/// Whether `server` resolves `name` now.
pub(super) async fn answers_at_once(server: SocketAddrV4, name: &str) -> bool {
    ask(server, name).await == Some(true)
}

async fn ask(server: SocketAddrV4, name: &str) -> Option<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    // A connected socket receives only answers of that server, and reports an error if nothing listens there.
    socket.connect(server).await.ok()?;
    socket.send(&question(name)).await.ok()?;
    let mut answer = [0; 512];
    let length = tokio::time::timeout(ANSWER_PATIENCE, socket.recv(&mut answer));
    let length = length.await.ok()?.ok()?;
    answer.get(..length).map(is_positive)
}

/// A query of type A and class IN without recursion (RFC 1035, section 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x77, 0x66, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        // Labels have at most 63 octets; we generate all names.
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// A response with code 0 and at least one answer (RFC 1035, section 4.1.1).
fn is_positive(message: &[u8]) -> bool {
    matches!(message, [_, _, flags, code, _, _, high, low, ..]
        if flags & 0x80 != 0 && code % 16 == 0 && (*high, *low) != (0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_the_format_of_the_standard() {
        let message = question("a.bc");
        assert_eq!(message[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn only_a_response_with_answers_is_positive() {
        let mut answer = question("a");
        assert!(!is_positive(&answer));
        answer[2] = 0x80;
        assert!(!is_positive(&answer));
        answer[7] = 1;
        assert!(is_positive(&answer));
        answer[3] = 3;
        assert!(!is_positive(&answer));
        assert!(!is_positive(&answer[..5]));
    }
}
