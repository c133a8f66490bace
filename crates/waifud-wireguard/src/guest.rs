//! The border to the services: a source of connections, each of which knows which guest it came from.

use std::net::SocketAddrV4;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream from a guest whose inner address is proven, not claimed.
pub trait GuestStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Address and port of the guest inside the tunnel.
    fn source(&self) -> SocketAddrV4;
}

/// Where guests' connections come from: the tunnel, or [`fake`](crate::fake) in tests.
pub trait GuestListener: Send + 'static {
    /// What it hands out.
    type Stream: GuestStream;

    /// The next connection, or `None` once the tunnel is gone. Safe to cancel: no connection is lost.
    fn accept(&mut self) -> impl Future<Output = Option<Self::Stream>> + Send;
}
