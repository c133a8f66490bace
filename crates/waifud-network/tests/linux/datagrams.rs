//! Single datagrams that carry a text: sent from an address, and found on a wire.

use std::net::{Ipv4Addr, UdpSocket};

use crate::frames::contains;
use crate::namespace::Namespace;
use crate::wire::Wire;

/// Sends a datagram to port 9 (discard, RFC 863).
pub fn send(namespace: &Namespace, from: Ipv4Addr, to: Ipv4Addr, text: &[u8]) {
    namespace.run(|| {
        // Any port: a process that another test has just forked may still hold a socket with a given one.
        let socket = UdpSocket::bind((from, 0)).unwrap();
        socket.send_to(text, (to, 9)).unwrap();
    });
}

/// The source address of the packet with this text.
pub fn source(wire: &Wire, text: &[u8]) -> Ipv4Addr {
    let seen = wire.until("the packet", |frame| contains(frame, text));
    let octets: [u8; 4] = seen.last().unwrap()[26..30].try_into().unwrap();
    octets.into()
}
