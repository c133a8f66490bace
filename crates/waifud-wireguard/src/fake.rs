//! Guests' connections without a tunnel, for tests of services: the same interface without packets and privileges.

use std::{io, net::SocketAddrV4};

use tokio::{io::DuplexStream, sync::mpsc};
use waifud_kit::labeled_stream::LabeledStream;

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
        let (service, guest) = LabeledStream::pair(source, BUFFER);
        self.0
            .send(service)
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

/// The service's end of a connection of [`FakeDialer::connect`], with the guest's address.
pub type FakeConnection = LabeledStream<SocketAddrV4>;

impl GuestStream for FakeConnection {
    fn source(&self) -> SocketAddrV4 {
        self.label
    }
}
