//! Devices of a running domain that people talk to: its serial console and its screen.

use tokio::io::{AsyncRead, AsyncWrite};

/// A device that bytes go to and come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// The first serial port.
    Console,
    /// The screen, speaking RFB (RFC 6143).
    Screen,
}

/// Bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> ByteStream for T {}
