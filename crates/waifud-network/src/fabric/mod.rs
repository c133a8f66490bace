//! The fabric: what carries packets between this node's guests and those of other nodes.
//!
//! [`Fabric::ensure`] takes the complete desired state and applies it, like the guests' network. It sets routes to other
//! nodes' guest subnets and, for a mesh, the WireGuard link below them ([`MeshDevice`]). It says on which interface packets of
//! each node arrive; the guests' network accepts them only there ([`crate::RemoteSubnet`]).
//!
//! A further kind of fabric is a new module beside those in `linux::fabric`, and a value of [`FabricKind`].
//!
//! Modules: [`plan()`] chooses the peers that can be used and is pure. [`fake`] is a fake for tests, [`conformance`] the tests
//! that both pass.

pub mod conformance;
pub mod fake;
mod plan;

pub use plan::{Plan, plan};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use waifud_types::{FabricKind, MeshBackend, Name};

use crate::NetworkError;

/// The desired fabric of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FabricState {
    /// The kind. [`FabricKind::Other`] is refused.
    pub kind: FabricKind,
    /// The guests' subnet on this node.
    pub subnet: Ipv4Net,
    /// The gateway's address: the source of the host's own packets to guests of other nodes.
    pub gateway: Ipv4Addr,
    /// The guests' bridge.
    pub bridge: String,
    /// The other nodes.
    pub peers: Vec<FabricPeer>,
    /// Machines that are not nodes and reach guests through the mesh. Other fabrics ignore them.
    pub clients: Vec<FabricClient>,
}

/// A machine that is not a node and reaches guests through the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FabricClient {
    /// Its only address.
    pub address: Ipv4Addr,
    /// Its WireGuard public key.
    pub public_key: String,
}

/// Another node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FabricPeer {
    /// Its name.
    pub node: Name,
    /// The subnets of its guests.
    pub subnets: Vec<Ipv4Net>,
    /// Further addresses of its guests. They take precedence over subnets.
    pub extra: Vec<Ipv4Net>,
    /// Its WireGuard public key.
    pub public_key: Option<String>,
    /// Where it may be reached, in order of preference.
    pub endpoints: Vec<SocketAddr>,
}

/// The interface at which packets of a node's guests arrive.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FabricPath {
    /// Its name.
    pub interface: String,
    /// Whether it carries only packets of nodes. False for an uplink, which also leads elsewhere.
    pub dedicated: bool,
}

/// The applied fabric.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AppliedFabric {
    /// The path of each node whose guests can be reached.
    pub paths: BTreeMap<Name, FabricPath>,
    /// Why others cannot be reached, in a sentence.
    pub troubles: BTreeMap<Name, String>,
    /// The path of clients, if there are any.
    pub clients: Option<FabricPath>,
    /// Which WireGuard carries the mesh, if there is one.
    pub backend: Option<MeshBackend>,
    /// Whether an interface was created, so that its settings and its part of the firewall are missing.
    pub fresh: bool,
}

/// The fabric of one node.
#[async_trait]
pub trait Fabric: Send + Sync {
    /// This node's WireGuard public key.
    fn public_key(&self) -> String;

    /// The addresses and ports at which other nodes may reach this one, in order of preference. `own` is its address in its
    /// connection to waifud. If that is one of this host alone, the address of the default route is used.
    fn endpoints(&self, own: IpAddr) -> Vec<SocketAddr>;

    /// Applies the state. May be repeated. Afterwards nothing of another kind is left.
    async fn ensure(&self, state: &FabricState) -> Result<AppliedFabric, NetworkError>;

    /// The time since the last handshake with each node of the mesh; `None` if there was none. Empty without a mesh.
    async fn handshakes(&self) -> Result<BTreeMap<Name, Option<Duration>>, NetworkError>;

    /// Removes everything. Returns what was removed, as text.
    async fn remove(&self) -> Result<Vec<String>, NetworkError>;
}

/// A peer of the WireGuard link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeshPeer {
    /// Its public key.
    pub public_key: String,
    /// Where it may be reached, in order of preference.
    pub endpoints: Vec<SocketAddr>,
    /// The inner addresses that it may send from, and that are sent to it.
    pub allowed: Vec<Ipv4Net>,
}

/// The applied link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppliedMesh {
    /// Whether it was created.
    pub fresh: bool,
    /// Which WireGuard it is.
    pub backend: MeshBackend,
}

/// The WireGuard link below a mesh. It outlives this process.
#[async_trait]
pub trait MeshDevice: Send + Sync {
    /// Name of the link.
    fn interface(&self) -> &str;

    /// This node's public key.
    fn public_key(&self) -> String;

    /// The UDP port.
    fn port(&self) -> u16;

    /// Makes the link exist with these peers and this MTU. Packets of peers that stay are not lost.
    async fn ensure(&self, peers: Vec<MeshPeer>, mtu: u16) -> Result<AppliedMesh, NetworkError>;

    /// The time since the last handshake by public key; `None` if there was none. Empty if there is no link.
    async fn handshakes(&self) -> Result<BTreeMap<String, Option<Duration>>, NetworkError>;

    /// Removes the link. Returns whether there was one.
    async fn remove(&self) -> Result<bool, NetworkError>;
}
