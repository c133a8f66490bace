//! The loopback socket that sealed packets travel over.

use std::{
    io,
    net::{SocketAddr, UdpSocket as StdSocket},
};

use gotatun::packet::{Packet, PacketBufPool};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UdpSocket;

use crate::{
    WireguardError,
    wire::{DATAGRAM, Sealed},
};

/// Room for bursts on either side, in bytes. The kernel's default of 208 KiB loses packets as soon as some dozen guests
/// fetch large documents at once, and each loss costs a retransmission timeout of a second.
const BUFFER: usize = 7 << 20;
/// Datagrams taken from the socket before others get a turn.
const BATCH: usize = 64;

/// A bound UDP socket and its reusable buffers.
pub(crate) struct LoopbackSocket {
    socket: UdpSocket,
    pool: PacketBufPool<DATAGRAM>,
}

impl LoopbackSocket {
    /// Opens the socket; must be called inside a tokio runtime. Refuses addresses that are not loopback.
    pub fn bind(address: SocketAddr) -> Result<Self, WireguardError> {
        crate::config::loopback(address)?;
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
        })
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits until there is something to receive.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Takes what has arrived, at most [`BATCH`] datagrams, and hands each to `each`.
    pub fn receive(&self, mut each: impl FnMut(Packet, SocketAddr)) {
        for _ in 0..BATCH {
            let mut packet = self.pool.get();
            match self.socket.try_recv_from(&mut packet) {
                Ok((length, from)) => {
                    packet.truncate(length);
                    each(packet, from);
                }
                // WouldBlock, or an error that belongs to an earlier datagram: the next readiness tells.
                Err(_) => return,
            }
        }
    }

    /// Sends what it can. A full socket loses packets like any network; TCP inside repeats them.
    pub fn send(&self, sealed: &mut Vec<Sealed>) {
        for (packet, to) in sealed.drain(..) {
            if let Err(error) = self.socket.try_send_to(&packet, to) {
                tracing::trace!(%error, "a sealed packet was lost");
            }
        }
    }
}

/// Root may go beyond `net.core.rmem_max`; others get as much as it allows. Less than asked for is slower, not wrong.
fn enlarge(socket: &StdSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &BUFFER);
    }
}
