//! A stream in memory together with a value, for fakes of connections: who is at the other end, or where a reset is counted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// One end of a stream in memory, with a value.
#[derive(Debug)]
pub struct LabeledStream<L> {
    /// The value.
    pub label: L,
    stream: DuplexStream,
}

impl<L> LabeledStream<L> {
    /// Both ends of a new stream, of which this one has the label. Each direction holds `buffer` bytes.
    pub fn pair(label: L, buffer: usize) -> (Self, DuplexStream) {
        let (stream, other) = tokio::io::duplex(buffer);
        (Self { label, stream }, other)
    }
}

impl<L: Unpin> AsyncRead for LabeledStream<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<L: Unpin> AsyncWrite for LabeledStream<L> {
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
