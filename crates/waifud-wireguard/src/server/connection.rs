//! The interface of a service: the listener, and each connection as a byte stream.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddrV4,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::Shared;
use crate::{
    GuestListener, GuestStream,
    stack::{FlowId, Stack},
};

/// Guests' connections, in the order in which their handshakes completed.
pub struct Listener {
    shared: Arc<Shared>,
}

impl Listener {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The next connection, or `None` once the [`TunnelServer`](crate::TunnelServer) is gone. Safe to cancel.
    pub async fn accept(&mut self) -> Option<Connection> {
        std::future::poll_fn(|cx| {
            let id = ready!(self.shared.drive(|stack, _| stack.poll_accept(cx)));
            Poll::Ready(id.map(|id| Connection {
                source: id.source,
                id,
                shared: Arc::clone(&self.shared),
            }))
        })
        .await
    }
}

/// Guests that try to connect from now on are refused; accepted connections continue.
impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.drive(Stack::stop_listening);
    }
}

impl GuestListener for Listener {
    type Stream = Connection;

    async fn accept(&mut self) -> Option<Connection> {
        Self::accept(self).await
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// A guest's TCP connection. Dropping it closes it; written data is still delivered in the background.
///
/// Reads return `ConnectionReset` after a reset by the guest, a timeout, or the end of the tunnel.
pub struct Connection {
    /// Inner address and port; the address was in the peer's allowed list.
    pub source: SocketAddrV4,
    id: FlowId,
    shared: Arc<Shared>,
}

impl GuestStream for Connection {
    fn source(&self) -> SocketAddrV4 {
        self.source
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared
            .drive(|stack, now| stack.poll_read(self.id, cx, buf, now))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared
            .drive(|stack, now| stack.poll_write(self.id, cx, &[IoSlice::new(bytes)], now))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared
            .drive(|stack, now| stack.poll_write(self.id, cx, parts, now))
    }

    /// Allows a server to write a large document without a copy for each connection.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Written bytes are sent immediately, so there is nothing to flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.drive(|stack, now| stack.shutdown(self.id, now));
        Poll::Ready(Ok(()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.drive(|stack, now| stack.release(self.id, now));
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}
