//! Connecting to a guest over TCP.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use waifud_network::linux::{self, GuestNic, ReachError};

/// A connection to a guest.
pub trait GuestConnection: AsyncRead + AsyncWrite + Send + Unpin {
    /// Ends it as the other side's breaking off is told in TCP: by a reset, not by an end.
    fn reset(self: Box<Self>);
}

/// Connects to guests. The agent decides where to; whoever implements this connects to the guest itself or to nothing.
#[async_trait]
pub trait GuestDialer: Send + Sync {
    /// A TCP connection to a guest's own address, through its own port.
    async fn dial(&self, nic: &GuestNic, port: u16)
    -> Result<Box<dyn GuestConnection>, ReachError>;
}

/// Over the guests' ports of this node ([`linux::connect`]).
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDialer;

#[async_trait]
impl GuestDialer for TcpDialer {
    async fn dial(
        &self,
        nic: &GuestNic,
        port: u16,
    ) -> Result<Box<dyn GuestConnection>, ReachError> {
        Ok(Box::new(linux::connect(nic, port).await?))
    }
}

impl GuestConnection for TcpStream {
    fn reset(self: Box<Self>) {
        // What is not sent yet is discarded, and closing sends a reset (RFC 9293, section 3.10.4).
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "a connection to a guest can't be reset");
        }
    }
}
