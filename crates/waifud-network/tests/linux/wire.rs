//! Raw frames on one interface: sends forged frames like a malicious guest, and receives all frames.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, recv,
    send, sendto, socket,
};

use crate::frames;
use crate::namespace::Namespace;

/// Long enough for a busy machine; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A packet socket on one interface: sends complete frames and receives the frames of both directions.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub fn new(namespace: &Namespace, interface: &str) -> Self {
        let socket = namespace.run(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .unwrap();
            bind(socket.as_raw_fd(), &address(interface)).unwrap();
            socket
        });
        let wire = Self { socket };
        // Between the two calls above, the socket received frames of all interfaces.
        wire.seen();
        wire
    }

    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// The frames received since the last call, without waiting.
    pub fn seen(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(Errno::EAGAIN) => return frames,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// None of the frames since the last look at the wire contains these bytes.
    pub fn saw_nothing_of(&self, bytes: &[u8]) {
        let seen = self.seen();
        let found = seen.iter().find(|frame| frames::contains(frame, bytes));
        assert!(found.is_none(), "{found:x?}");
    }

    /// Waits for a frame that satisfies `wanted`, and returns all frames up to it.
    pub fn until(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    frames.push(buffer[..length].to_vec());
                    if wanted(&buffer[..length]) {
                        return frames;
                    }
                }
                Err(Errno::EAGAIN) => {
                    let left = end.saturating_duration_since(Instant::now());
                    assert!(!left.is_zero(), "{what} did not arrive in time");
                    wait_readable(&self.socket, left);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Sends echo requests through the namespace's own stack, one per second, until one is answered. One may get lost, for
/// example while the kernel resolves an address again.
pub fn ping(namespace: &Namespace, to: Ipv4Addr) {
    let payload = b"an echo request";
    let request = frames::echo(payload);
    let socket = namespace.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(
            AddressFamily::Inet,
            SockType::Raw,
            flags,
            SockProtocol::Icmp,
        )
        .unwrap()
    });
    let wire = Wire { socket };
    // The kernel passes complete packets: a header of 20 octets, then type 0 for an answer.
    let is_reply = |packet: &Vec<u8>| {
        packet[12..16] == to.octets() && packet[20] == 0 && frames::contains(packet, payload)
    };
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
        namespace.run(|| {
            let (from, flags) = (wire.socket.as_raw_fd(), MsgFlags::empty());
            sendto(from, &request, &address, flags).unwrap();
        });
        let next = Instant::now() + Duration::from_secs(1);
        loop {
            if wire.seen().iter().any(is_reply) {
                return;
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            wait_readable(&wire.socket, left);
        }
    }
    panic!("no echo reply arrived in time");
}

/// Waits until there is something to read or to accept, or until the time is over.
pub fn wait_readable(socket: &impl AsFd, patience: Duration) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::try_from(patience).unwrap()).unwrap();
}

fn address(interface: &str) -> LinkAddr {
    getifaddrs()
        .unwrap()
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .unwrap_or_else(|| panic!("no link {interface} with a MAC address"))
}

/// Waits until the condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "condition not met in time: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
