//! Guests' connections without a tunnel, for tests of services: the same interface without packets and privileges.

use std::{
    io,
    net::SocketAddrV4,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
};

use crate::{GuestListener, GuestStream};

/// The buffer size of each direction of a fake connection.
const BUFFER: usize = 64 << 10;

/// A dialer and the listener of its connections. Dropping all dialers ends the listener.
pub fn listener() -> (FakeDialer, FakeListener) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (FakeDialer(sender), FakeListener(receiver))
}

/// The guests' side.
#[derive(Debug, Clone)]
pub struct FakeDialer(mpsc::UnboundedSender<FakeConnection>);

impl FakeDialer {
    /// Connects as `source`. Fails with `ConnectionRefused` once the listener is dropped.
    pub fn connect(&self, source: SocketAddrV4) -> io::Result<DuplexStream> {
        let (guest, service) = duplex(BUFFER);
        self.0
            .send(FakeConnection {
                source,
                stream: service,
            })
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(guest)
    }
}

/// The service's side.
#[derive(Debug)]
pub struct FakeListener(mpsc::UnboundedReceiver<FakeConnection>);

impl GuestListener for FakeListener {
    type Stream = FakeConnection;

    async fn accept(&mut self) -> Option<FakeConnection> {
        self.0.recv().await
    }
}

/// The service's end of a connection of [`FakeDialer::connect`].
#[derive(Debug)]
pub struct FakeConnection {
    source: SocketAddrV4,
    stream: DuplexStream,
}

impl GuestStream for FakeConnection {
    fn source(&self) -> SocketAddrV4 {
        self.source
    }
}

impl AsyncRead for FakeConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FakeConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
