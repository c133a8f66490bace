//! The sockets for encrypted packets.
//!
//! Consecutive datagrams of one size for one address are sent with one call (`UDP_SEGMENT`), and the kernel may return several
//! datagrams of one sender at once (`UDP_GRO`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket},
    os::fd::AsRawFd,
    sync::Mutex,
};

use gotatun::packet::{Packet, PacketBufPool};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::{io::Interest, net::UdpSocket};
use waifud_kit::sync::lock;

use crate::{
    WireguardError,
    wire::{DATAGRAM, Sealed},
};

/// The size of the socket's buffers in bytes. With the kernel's default of 208 KiB, packets are lost as soon as a few dozen
/// guests request large documents at once, and each loss costs a retransmission timeout of a second.
const BUFFER: usize = 7 << 20;
/// How many datagrams are received before other tasks run. The last call may exceed it.
const BATCH: usize = 128;
/// How many datagrams the kernel accepts at once (`UDP_MAX_SEGMENTS` of older kernels).
const AT_ONCE: usize = 64;
/// How many bytes it accepts at once, without the headers of IP and UDP.
const BYTES_AT_ONCE: usize = 65_000;
/// The most that the kernel returns at once.
const RECEIVED_AT_ONCE: usize = 65_536;

/// A bound UDP socket and its reusable buffers.
pub(crate) struct DatagramSocket {
    socket: UdpSocket,
    pool: PacketBufPool<DATAGRAM>,
    /// Whether it is an IPv6 socket that also has the IPv4 addresses, in their mapped form.
    mapped: bool,
    received: Mutex<Received>,
}

/// The buffers of one call.
struct Received {
    bytes: Box<[u8]>,
    control: Vec<u8>,
}

impl DatagramSocket {
    /// Opens a socket. Must be called inside a tokio runtime. Refuses addresses other than loopback.
    pub fn bind_loopback(address: SocketAddr) -> Result<Self, WireguardError> {
        crate::config::loopback(address)?;
        Self::bind(address)
    }

    /// Opens a socket on every address of the host, IPv4 and, where the host has it, IPv6. Must be called inside a tokio
    /// runtime.
    pub fn bind_all(port: u16) -> Result<Self, WireguardError> {
        let both = Self::bind((Ipv6Addr::UNSPECIFIED, port).into());
        match both {
            Err(WireguardError::Bind { source, .. }) if !is_taken(&source) => {
                Self::bind((Ipv4Addr::UNSPECIFIED, port).into())
            }
            other => other,
        }
    }

    fn bind(address: SocketAddr) -> Result<Self, WireguardError> {
        let open = || {
            let socket = StdSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            enlarge(&socket);
            if let Err(error) = setsockopt(&socket, sockopt::UdpGroSegment, &true) {
                tracing::debug!(%error, "the kernel returns each datagram alone");
            }
            UdpSocket::from_std(socket)
        };
        let socket = open().map_err(|source| WireguardError::Bind { address, source })?;
        Ok(Self {
            socket,
            pool: PacketBufPool::new(2 * BATCH),
            mapped: address.is_ipv6(),
            received: Mutex::new(Received {
                bytes: vec![0; RECEIVED_AT_ONCE].into_boxed_slice(),
                control: nix::cmsg_space!(i32),
            }),
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits until a datagram can be received.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Receives about [`BATCH`] datagrams at most and passes each to `each`.
    pub fn receive(&self, mut each: impl FnMut(Packet, SocketAddr)) {
        let mut buffers = lock(&self.received);
        let mut count = 0;
        while count < BATCH {
            let Received { bytes, control } = &mut *buffers;
            let received = self.socket.try_io(Interest::READABLE, || {
                receive_once(&self.socket, bytes, control)
            });
            // WouldBlock, or an error of an earlier datagram, which the next readiness resolves.
            let Ok((length, from, size)) = received else {
                return;
            };
            count += 1;
            let Some(from) = from else { continue };
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let received = bytes.get(..length).unwrap_or_default();
            for datagram in received.chunks(size.max(1)) {
                let mut packet = self.pool.get();
                // A longer one is none of the peers'; its rest is dropped, and it does not decrypt.
                let length = datagram.len().min(packet.len());
                packet.truncate(length);
                packet.copy_from_slice(datagram.get(..length).unwrap_or_default());
                count += 1;
                each(packet, from);
            }
        }
    }

    /// Sends packets. A full socket loses packets like any network; the inner TCP retransmits them.
    pub fn send(&self, sealed: &mut Vec<Sealed>) {
        let mut rest = sealed.as_slice();
        while let Some((_, to)) = rest.first() {
            let (now, later) = rest.split_at(run(rest));
            let to = self.outer(*to);
            // A datagram that is too large for the path, or a device that cannot compute checksums, fails this way only.
            let together = now.len() > 1 && self.send_together(now, to);
            if !together {
                for (packet, _) in now {
                    if let Err(error) = self.socket.try_send_to(packet, to) {
                        tracing::trace!(%error, "lost an encrypted packet");
                    }
                }
            }
            rest = later;
        }
        sealed.clear();
    }

    /// An address as this socket has it.
    fn outer(&self, to: SocketAddr) -> SocketAddr {
        match to.ip() {
            IpAddr::V4(address) if self.mapped => {
                SocketAddr::from((address.to_ipv6_mapped(), to.port()))
            }
            _ => to,
        }
    }

    /// Sends a [`run`] with one call. Returns whether the kernel supports it; a full socket loses them.
    fn send_together(&self, run: &[Sealed], to: SocketAddr) -> bool {
        let Some(Ok(size)) = run.first().map(|(first, _)| u16::try_from(first.len())) else {
            return false;
        };
        let mut parts = [IoSlice::new(&[]); AT_ONCE];
        for ((packet, _), part) in run.iter().zip(&mut parts) {
            *part = IoSlice::new(packet);
        }
        let parts = parts.get(..run.len()).unwrap_or_default();
        let to = SockaddrStorage::from(to);
        let sent = self.socket.try_io(Interest::WRITABLE, || {
            let size = [ControlMessage::UdpGsoSegments(&size)];
            let flags = MsgFlags::MSG_DONTWAIT;
            sendmsg(self.socket.as_raw_fd(), parts, &size, flags, Some(&to))?;
            Ok(())
        });
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::trace!(%error, "lost encrypted packets");
                true
            }
            Ok(()) => true,
        }
    }
}

/// How many of the first datagrams can be sent with one call: those for one address and of one size; the last one may be smaller.
fn run(sealed: &[Sealed]) -> usize {
    let Some((first, to)) = sealed.first() else {
        return 0;
    };
    let most = AT_ONCE.min(BYTES_AT_ONCE / first.len().max(1)).max(1);
    let mut count = 1;
    for (packet, other) in sealed.iter().take(most).skip(1) {
        if other != to || packet.len() > first.len() {
            break;
        }
        count += 1;
        if packet.len() < first.len() {
            break;
        }
    }
    count
}

/// Receives once: the number of bytes, their sender, and the size of each datagram but the last.
fn receive_once(
    socket: &UdpSocket,
    bytes: &mut [u8],
    control: &mut [u8],
) -> io::Result<(usize, Option<SocketAddr>, usize)> {
    let mut parts = [IoSliceMut::new(bytes)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let size = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let length = received.bytes;
    let from = received.address.as_ref().and_then(address_of);
    Ok((length, from, size.unwrap_or(length)))
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
}

/// Sets the buffer sizes. Root may exceed `net.core.rmem_max`; others get at most that. Smaller buffers are only slower.
fn enlarge(socket: &StdSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &BUFFER);
    }
}

/// Whether another program has the address.
pub(crate) fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;

    use super::*;

    fn datagram(length: usize) -> Packet {
        let byte = u8::try_from(length % 251).unwrap();
        Packet::from_bytes(BytesMut::from(&vec![byte; length][..]))
    }

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn a_run_has_one_address_and_one_size_but_for_its_last_datagram() {
        let runs = |datagrams: &[(usize, u16)]| {
            let sealed: Vec<Sealed> = datagrams
                .iter()
                .map(|(length, port)| (datagram(*length), to(*port)))
                .collect();
            let mut rest = sealed.as_slice();
            let mut runs = Vec::new();
            while !rest.is_empty() {
                runs.push(run(rest));
                rest = rest.split_at(run(rest)).1;
            }
            runs
        };
        assert_eq!(runs(&[(100, 1), (100, 1), (60, 1), (100, 1)]), [3, 1]);
        assert_eq!(runs(&[(100, 1), (100, 2), (100, 2), (101, 2)]), [1, 2, 1]);
        assert_eq!(runs(&[(60, 1), (60, 1), (0, 1), (0, 1)]), [3, 1]);
        assert_eq!(runs(&[(100, 1); 130]), [64, 64, 2]);
        assert_eq!(runs(&[(1452, 1); 50]), [44, 6]);
    }

    #[tokio::test]
    async fn datagrams_that_are_sent_together_arrive_one_by_one() {
        let localhost = SocketAddr::from(([127, 0, 0, 1], 0));
        let from = DatagramSocket::bind_loopback(localhost).unwrap();
        let at = DatagramSocket::bind_loopback(localhost).unwrap();
        let lengths = [1452, 1452, 1452, 700, 32, 32, 1999];
        let address = at.local_address().unwrap();
        let mut sealed: Vec<_> = lengths.map(|it| (datagram(it), address)).into();
        from.socket.writable().await.unwrap();
        assert!(from.send_together(&sealed[..4], address));
        sealed.drain(..4);
        from.send(&mut sealed);
        assert!(sealed.is_empty());
        let mut received = Vec::new();
        while received.len() < lengths.len() {
            let readable = tokio::time::timeout(Duration::from_secs(30), at.readable());
            readable.await.unwrap().unwrap();
            at.receive(|packet, from| received.push((packet.to_vec(), from)));
        }
        let source = from.local_address().unwrap();
        for ((packet, from), length) in received.iter().zip(lengths) {
            assert_eq!((&packet[..], *from), (&datagram(length)[..], source));
        }
    }
}
