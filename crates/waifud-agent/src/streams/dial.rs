//! Connecting to a guest over TCP.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use waifud_hypervisor::ByteStream;

/// A guest on this very machine answers in microseconds; a dropped packet is repeated after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to guests. The agent decides where to; whoever implements this only does it.
#[async_trait]
pub trait GuestDialer: Send + Sync {
    /// A TCP connection to a guest's own address.
    async fn dial(&self, address: Ipv4Addr, port: u16) -> io::Result<Box<dyn ByteStream>>;
}

/// Over the node's network.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDialer;

#[async_trait]
impl GuestDialer for TcpDialer {
    async fn dial(&self, address: Ipv4Addr, port: u16) -> io::Result<Box<dyn ByteStream>> {
        let connect = TcpStream::connect(SocketAddrV4::new(address, port));
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // Key presses are small and wait for nothing.
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
