//! The sockets for encrypted packets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket},
};

use gotatun::packet::{Packet, PacketBufPool};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

use crate::{
    WireguardError,
    wire::{DATAGRAM, Sealed},
};

/// The size of the socket's buffers in bytes. With the kernel's default of 208 KiB, packets are lost as soon as a few dozen
/// guests request large documents at once, and each loss costs a retransmission timeout of a second.
const BUFFER: usize = 7 << 20;
/// How many datagrams are received before other tasks run.
const BATCH: usize = 64;

/// A bound UDP socket and its reusable buffers.
pub(crate) struct DatagramSocket {
    socket: UdpSocket,
    pool: PacketBufPool<DATAGRAM>,
    /// Whether it is an IPv6 socket that also has the IPv4 addresses, in their mapped form.
    mapped: bool,
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
            UdpSocket::from_std(socket)
        };
        let socket = open().map_err(|source| WireguardError::Bind { address, source })?;
        Ok(Self {
            socket,
            pool: PacketBufPool::new(BATCH),
            mapped: address.is_ipv6(),
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits until a datagram can be received.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Receives at most [`BATCH`] datagrams and passes each to `each`.
    pub fn receive(&self, mut each: impl FnMut(Packet, SocketAddr)) {
        for _ in 0..BATCH {
            let mut packet = self.pool.get();
            match self.socket.try_recv_from(&mut packet) {
                Ok((length, from)) => {
                    packet.truncate(length);
                    each(
                        packet,
                        SocketAddr::new(from.ip().to_canonical(), from.port()),
                    );
                }
                // WouldBlock, or an error of an earlier datagram, which the next readiness resolves.
                Err(_) => return,
            }
        }
    }

    /// Sends packets. A full socket loses packets like any network; the inner TCP retransmits them.
    pub fn send(&self, sealed: &mut Vec<Sealed>) {
        for (packet, to) in sealed.drain(..) {
            let to = match to.ip() {
                IpAddr::V4(address) if self.mapped => {
                    SocketAddr::from((address.to_ipv6_mapped(), to.port()))
                }
                _ => to,
            };
            if let Err(error) = self.socket.try_send_to(&packet, to) {
                tracing::trace!(%error, "lost an encrypted packet");
            }
        }
    }
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
