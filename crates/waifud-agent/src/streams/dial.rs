//! Connecting to a guest over TCP.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use waifud_network::linux::{self, GuestNic, ReachError};

/// A connection to a guest.
pub trait GuestConnection: AsyncRead + AsyncWrite + Send + Unpin {
    /// Ends the connection with a TCP reset instead of an orderly end.
    fn reset(self: Box<Self>);
}

/// Connects to guests. The agent chooses the address; an implementation connects to that guest or fails.
#[async_trait]
pub trait GuestDialer: Send + Sync {
    /// Opens a TCP connection to a guest's address through the guest's own network port.
    async fn dial(&self, nic: &GuestNic, port: u16)
    -> Result<Box<dyn GuestConnection>, ReachError>;
}

/// Connects through this node's guest ports ([`linux::connect`]).
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
        // Unsent data is discarded, and closing sends a reset (RFC 9293, section 3.10.4).
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "cannot reset a connection to a guest");
        }
    }
}
