//! Standard output that can be closed, so that the reader sees its end while this process continues.

use std::fs::OpenOptions;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWrite, Stdout};

/// Standard output. Shutting it down replaces it with /dev/null, so that the descriptor stays in use.
#[derive(Debug)]
pub struct ClosingStdout(Stdout);

impl Default for ClosingStdout {
    fn default() -> Self {
        Self(tokio::io::stdout())
    }
}

impl AsyncWrite for ClosingStdout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_flush(cx))?;
        let nothing = OpenOptions::new().write(true).open("/dev/null")?;
        Poll::Ready(nix::unistd::dup2_stdout(nothing).map_err(io::Error::from))
    }
}
