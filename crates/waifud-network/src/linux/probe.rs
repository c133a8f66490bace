//! Asking dnsmasq for one name, to know what it has read.
//!
//! A signal says "read again" and answers nothing. So every load of leases carries a name of its own
//! ([`crate::dhcp::mark`]): once that resolves, names and leases are in force, since dnsmasq reads them in one go.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::UdpSocket;

/// It reads again within a millisecond; the pauses between questions grow from there.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// An answer comes from the same host. A datagram may be dropped all the same.
const ANSWER_PATIENCE: Duration = Duration::from_millis(100);

/// Waits until `server` knows `name`, at most for `patience`.
pub(super) async fn knows(server: Ipv4Addr, name: &str, patience: Duration) -> bool {
    let asking = async {
        let mut pause = FIRST_PAUSE;
        while ask(server, name).await != Some(true) {
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
        }
    };
    tokio::time::timeout(patience, asking).await.is_ok()
}

async fn ask(server: Ipv4Addr, name: &str) -> Option<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    // Connected: only that server's answers are received, and its absence is an error at once.
    socket.connect((server, 53)).await.ok()?;
    socket.send(&question(name)).await.ok()?;
    let mut answer = [0; 512];
    let length = tokio::time::timeout(ANSWER_PATIENCE, socket.recv(&mut answer));
    let length = length.await.ok()?.ok()?;
    answer.get(..length).map(is_positive)
}

/// RFC 1035, section 4.1: one question of type A, class IN, recursion not desired.
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0x77, 0x66, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        // Labels are at most 63 octets; the names asked for are our own.
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// RFC 1035, section 4.1.1: a response, code 0, with at least one answer.
fn is_positive(message: &[u8]) -> bool {
    matches!(message, [_, _, flags, code, _, _, high, low, ..]
        if flags & 0x80 != 0 && code % 16 == 0 && (*high, *low) != (0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_as_the_standard_says() {
        let message = question("a.bc");
        assert_eq!(message[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn only_a_response_with_answers_is_a_yes() {
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
