//! Devices of a running domain that users connect to: the serial console and the screen.

use tokio::io::{AsyncRead, AsyncWrite};

/// A device with a byte stream in each direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The serial console.
    Console,
    /// The screen, speaking RFB (RFC 6143).
    Screen,
}

/// Bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> ByteStream for T {}
