//! The interface for services: a listener whose connections have the address of their guest.

use std::net::SocketAddrV4;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream from a guest with a verified address.
pub trait GuestStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The guest's address and port inside the tunnel.
    fn source(&self) -> SocketAddrV4;
}

/// A source of guests' connections: the tunnel, or [`fake`](crate::fake) in tests.
pub trait GuestListener: Send + 'static {
    /// The type of its connections.
    type Stream: GuestStream;

    /// The next connection, or `None` once the tunnel has ended. Cancel-safe: no connection is lost.
    fn accept(&mut self) -> impl Future<Output = Option<Self::Stream>> + Send;
}
