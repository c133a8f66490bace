//! The in-process end: sealed packets in on one UDP socket, guests' TCP connections out of [`Listener::accept`].

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{GuestListener, GuestStream, PeerConfig, ServerConfig, WireguardError};

/// A running server end. Dropping it ends the tunnel: open connections break, the listener ends.
#[derive(Debug)]
pub struct TunnelServer {
    address: SocketAddr,
}

impl TunnelServer {
    /// Opens the UDP socket and starts the stack, without a peer: until [`set_peer`](Self::set_peer) nobody is heard.
    /// Must be called inside a tokio runtime.
    pub fn start(config: ServerConfig) -> Result<(Self, Listener), WireguardError> {
        config.limits.check()?;
        crate::config::loopback(config.listen)?;
        Ok((
            Self {
                address: config.listen,
            },
            Listener { _private: () },
        ))
    }

    /// Where sealed packets are expected: the port that was taken if port 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Ensures that this is the one peer. The same peer again changes nothing; another key ends the old peer's
    /// connections; a narrower `allowed` ends those outside it. With an endpoint, a handshake is sent at once.
    pub fn set_peer(&self, peer: PeerConfig) -> Result<(), WireguardError> {
        peer.check()
    }

    /// Ensures that there is no peer: its connections are reset and nobody is heard.
    pub fn remove_peer(&self) {}

    /// What has happened so far.
    pub fn stats(&self) -> ServerStats {
        ServerStats::default()
    }
}

/// A snapshot of the server's counters. All but the gauges only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Time since the current session's handshake; `None` without a session.
    pub handshake_age: Option<Duration>,
    /// Sealed bytes received and accepted from the peer.
    pub received_bytes: u64,
    /// Sealed bytes sent to the peer.
    pub sent_bytes: u64,
    /// Connections now, half-open and closing ones included (gauge).
    pub connections: usize,
    /// Source addresses with at least one connection now (gauge).
    pub sources: usize,
    /// Connections handed to [`Listener::accept`] so far.
    pub accepted: u64,
    /// What was turned away, by cause.
    pub refused: Refusals,
}

/// Packets and connections turned away, by cause. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Datagrams that are not the peer's: wrong key, broken, replayed, or no peer is set.
    pub not_from_peer: u64,
    /// Packets whose inner source the peer may not use.
    pub source_not_allowed: u64,
    /// Inner packets that are no whole, plain IPv4: malformed, fragments, IPv6.
    pub malformed: u64,
    /// Packets for an inner address that is not the service's.
    pub not_for_us: u64,
    /// TCP to another port of the service's address; answered with a reset.
    pub other_port: u64,
    /// SYNs beyond [`StackLimits::max_per_source`](crate::StackLimits::max_per_source); dropped.
    pub per_source: u64,
    /// SYNs beyond [`StackLimits::max_connections`](crate::StackLimits::max_connections); dropped.
    pub global: u64,
    /// Connections that made place for a source that had fewer.
    pub evicted: u64,
    /// Connections that one of the four timeouts cut.
    pub timed_out: u64,
}

/// Guests' connections, in the order in which their handshakes completed.
#[derive(Debug)]
pub struct Listener {
    _private: (),
}

impl Listener {
    /// The next connection, or `None` once the [`TunnelServer`] is gone. Safe to cancel.
    pub async fn accept(&mut self) -> Option<Connection> {
        None
    }
}

impl GuestListener for Listener {
    type Stream = Connection;

    async fn accept(&mut self) -> Option<Connection> {
        Self::accept(self).await
    }
}

/// One guest's TCP connection. Dropping it closes it: what was written is still delivered, in the background.
#[derive(Debug)]
pub struct Connection {
    /// Inner address and port; the address was in the peer's allowed list.
    pub source: SocketAddrV4,
}

impl GuestStream for Connection {
    fn source(&self) -> SocketAddrV4 {
        self.source
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
