//! Connections between nodes, as the agent sees them.

use std::io;
use std::net::{IpAddr, SocketAddr};

use async_trait::async_trait;
use futures::future::BoxFuture;
use waifud_hypervisor::ByteStream;
use waifud_pki::NodePeer;

/// A connection whose other end has proven which node it is.
pub type PeerConnection = (NodePeer, Box<dyn ByteStream>);

/// The node's peer port, and connections to those of other nodes.
#[async_trait]
pub trait PeerNetwork: Send + Sync {
    /// Begins to listen; `None` if this node has no peer port.
    async fn listen(&self) -> io::Result<Option<Box<dyn PeerListener>>>;

    /// What the port is called in messages, for example `TCP port 7374`.
    fn port_name(&self) -> String;

    /// Where other nodes reach the port. `own` is this node's address in its connection to waifud.
    fn endpoints(&self, own: IpAddr) -> Vec<SocketAddr>;

    /// Connects to a node, which must prove that it is the expected one.
    async fn connect(&self, to: SocketAddr, node: NodePeer) -> io::Result<Box<dyn ByteStream>>;
}

/// The open port.
#[async_trait]
pub trait PeerListener: Send {
    /// The next connection. Nothing is known of the caller but its address.
    async fn accept(&mut self) -> io::Result<IncomingPeer>;
}

/// A connection whose other end has proven nothing yet.
pub struct IncomingPeer {
    /// The caller's address.
    pub address: IpAddr,
    /// Completes when the caller has proven which node it is.
    pub handshake: BoxFuture<'static, io::Result<PeerConnection>>,
}

/// No peer port, and no connections to others: everything goes through waifud.
#[derive(Clone, Copy, Debug)]
pub struct NoPeers;

#[async_trait]
impl PeerNetwork for NoPeers {
    async fn listen(&self) -> io::Result<Option<Box<dyn PeerListener>>> {
        Ok(None)
    }

    fn port_name(&self) -> String {
        "none".to_owned()
    }

    fn endpoints(&self, _: IpAddr) -> Vec<SocketAddr> {
        Vec::new()
    }

    async fn connect(&self, _: SocketAddr, _: NodePeer) -> io::Result<Box<dyn ByteStream>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
