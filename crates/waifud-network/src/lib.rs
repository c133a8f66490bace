//! The guests' network: bridge, leases and DHCP, firewall, and a fake.
//!
//! [`GuestNetwork::ensure`] takes the complete desired state and applies it. Rules are replaced in one transaction, before
//! a port that needs them exists. A second call repairs what others have changed, and changes nothing if everything is as
//! desired. The owner of the desired state subscribes to [`GuestNetwork::drift`] to know when to call it again.
//!
//! The path of a frame from a guest:
//!
//! ```text
//!  guest ── tap wf-… ── waifu0 ── routes ─┬─ the host: only DHCP, DNS and ping of the gateway
//!             │            │              ├─ published ports of the host: forwarded to their guest
//!             │            │              ├─ other guests: through the gateway, which answers ARP for them
//!             │            │              ├─ guests of other nodes: with the guest's own address ([`RemoteSubnet`])
//!             │            │              ├─ 169.254.169.254:80: the metadata interface, by our own routing table; port 8169,
//!             │            │              │  for reports, leads there too, or is refused while metadatad hangs
//!             │            │              └─ the outside: with the host's address, over the uplink
//!             │            └─ table inet waifud: what may reach the host and what is forwarded, and the guests' firewalls
//!             └─ table bridge waifud: own MAC and addresses, only IPv4 and ARP; drops unknown taps
//! ```
//!
//! A guest on a bridge that the host already has ([`LanPort`]) is an ordinary machine of that network. Its MAC address is
//! fixed, and its IP addresses are restricted to those that the rules have learned at its port. Only its packets to
//! 169.254.169.254 are taken from the bridge; they get the source address that stands for the port ([`IDENTITIES`]).
//!
//! Ports on `default` are isolated: a guest never receives frames of other guests, nor frames of the host for other
//! guests. That network has no IPv6 yet. Forwarding is enabled per interface and only for guests. The host's own route to
//! 169.254.169.254 is not changed.
//!
//! Modules: [`check()`] refuses states that contradict themselves. `ruleset` and `dhcp` turn a state into text and are
//! pure. [`linux`] applies it. [`fake`] is a fake for tests, [`conformance`] the tests that both pass, and [`samples`]
//! makes states for tests.

mod check;
pub mod conformance;
mod dhcp;
pub mod fabric;
pub mod fake;
mod firewall;
mod foreign;
mod host_addresses;
pub mod linux;
mod remote;
mod ruleset;
pub mod samples;
mod served;
mod vlan;

pub use check::check;
pub use firewall::{FirewallCounters, PortFirewall, PortRule};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::broadcast;
use waifud_types::spec::{Protocol, PublishSpec};
use waifud_types::{InstanceId, MacAddr, Name, TapName, Timestamp, VlanId};

/// Addresses that stand for ports on bridges of the host. They are from class E (RFC 1112, section 4: reserved for future
/// use), so no network and no guest uses them, and they never leave the node.
pub const IDENTITIES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 119, 0, 0), 16);

/// The address that cloud-init reads metadata from (link-local, RFC 3927).
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The desired network of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkState {
    /// The bridge of the `default` network, for example `waifu0`.
    pub bridge: String,
    /// The guests' subnet.
    pub subnet: Ipv4Net,
    /// The gateway's address. It is on the bridge, with the subnet's prefix length.
    pub gateway: Ipv4Addr,
    /// The gateway's MAC address, the same on all nodes.
    pub gateway_mac: MacAddr,
    /// The interface to metadatad. Only guests' packets to 169.254.169.254 are routed to it.
    pub metadata_interface: String,
    /// MTU of guests' nics.
    pub mtu: u16,
    /// The DNS domain of guests, for example `waifu.internal`.
    pub domain: String,
    /// Ports of guests on `default`. Their taps need not exist yet.
    pub ports: Vec<Port>,
    /// Ports of guests on bridges that the host already has. Their taps need not exist yet.
    pub lan: Vec<LanPort>,
    /// Whether guests' connections to [`REPORT_PORT`](waifud_types::template::REPORT_PORT) are reset. Otherwise they lead
    /// to port 80 of metadatad.
    pub refuse_reports: bool,
    /// Guest subnets of other nodes, and addresses of guests that moved there and kept them. One in conflict with this node is
    /// left out; see [`HostNetworkFacts::refused_subnets`].
    pub remote_subnets: Vec<RemoteSubnet>,
    /// Names of other nodes' guests, which guests of this node resolve. Those in a subnet that is left out are left out, too.
    pub remote_names: Arc<[RemoteName]>,
}

/// The name of a guest of another node. A port of this node with the same name is not found by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteName {
    /// The name, without the domain.
    pub name: Name,
    /// The address that it resolves to, and back.
    pub address: Ipv4Addr,
}

/// A guest subnet of another node, or one address of a guest there that is not in that node's subnet, because the guest moved.
/// Guests keep their own address towards it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteSubnet {
    /// The node's name, for messages.
    pub node: Name,
    /// The subnet, or a single address as a network of 32 bits. An address may be in another subnet, also in this node's own.
    pub subnet: Ipv4Net,
    /// The interface of the fabric that connects the nodes. Only packets that arrive there may have a source address of the
    /// subnet. `None` without a fabric: the subnet then changes nothing.
    pub fabric: Option<String>,
    /// Whether other packets arrive there, too: for an uplink that also leads elsewhere. Otherwise, connections to guests over
    /// the interface can only come from a remote subnet.
    pub shared: bool,
}

/// One guest's port on a bridge of the host. Only the guest's MAC address may send there. The network's own DHCP server
/// assigns the guest's address, so the rules learn it at the port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LanPort {
    /// The instance.
    pub instance: InstanceId,
    /// The instance's name, for messages.
    pub name: Name,
    /// The tap.
    pub tap: TapName,
    /// The bridge that it joins, for example `br0`.
    pub bridge: String,
    /// The VLAN of its frames on the bridge, which must be VLAN-aware. `None`: the bridge's default.
    pub vlan: Option<VlanId>,
    /// The only source MAC address.
    pub mac: MacAddr,
    /// The address that the instance's spec sets, which is also in `fixed`. `None` if it is learned.
    pub given: Option<Ipv4Addr>,
    /// Source addresses that are allowed without being learned: `given`, and the spec's further addresses.
    pub fixed: Vec<IpNet>,
    /// The address that stands for the instance towards metadatad. `None` if the instance does not read its metadata
    /// through this port. A port in a VLAN has none: the node's answers leave in the bridge's own VLAN.
    pub identity: Option<Ipv4Addr>,
}

/// One guest's port on `default`: the only MAC address and IP addresses that may send there, and its lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The instance.
    pub instance: InstanceId,
    /// The instance's name: its host name in DHCP and DNS.
    pub name: Name,
    /// The tap.
    pub tap: TapName,
    /// The only source MAC address.
    pub mac: MacAddr,
    /// The address of its lease, which is its only source address besides `allow_addresses`.
    pub address: Ipv4Addr,
    /// The subnet that the address belongs to, if it is not this node's: the guest moved here and kept its address. The gateway of
    /// that subnet, its first host address, stands for this node at the port.
    pub home: Option<Ipv4Net>,
    /// Further source addresses.
    pub allow_addresses: Vec<IpNet>,
    /// Ports of the node's addresses that are forwarded to the guest.
    pub publish: Vec<PublishSpec>,
    /// Which connections the guest may accept and open.
    pub firewall: PortFirewall,
}

impl NetworkState {
    /// Whether a port is in a VLAN.
    pub(crate) fn has_vlans(&self) -> bool {
        self.lan.iter().any(|port| port.vlan.is_some())
    }

    /// The subnets that guests with an address of another node's subnet come from.
    pub fn homes(&self) -> BTreeSet<Ipv4Net> {
        self.ports.iter().filter_map(|port| port.home).collect()
    }
}

impl RemoteSubnet {
    /// Whether this is the address of one guest.
    pub fn is_address(&self) -> bool {
        self.subnet.prefix_len() == 32
    }
}

/// The gateway of a guests' subnet: its first host address.
pub fn gateway_of(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.network())
}

/// The network of this host as found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNetworkFacts {
    /// Bridges that exist.
    pub bridges: Vec<String>,
    /// Those of them on which ports can be in a VLAN.
    pub vlan_bridges: Vec<String>,
    /// Links that cannot carry guests although they look like bridges that could: name and reason.
    pub unfit_bridges: BTreeMap<String, String>,
    /// Destination networks of the host's routes, without ours.
    pub routes: Vec<Ipv4Net>,
    /// Chains of other firewalls that drop forwarded packets (Docker, ufw, firewalld), as text.
    pub foreign_firewalls: Vec<String>,
    /// Chains of other firewalls in which our marked rule accepts guests' packets.
    pub accepting_chains: Vec<String>,
    /// Why those rules could not be added. The guests' own rules are in force even then.
    pub firewall_error: Option<String>,
    /// Guest subnets of other nodes that the last `ensure` left out, each with the reason in a sentence.
    pub refused_subnets: BTreeMap<Ipv4Net, String>,
}

/// The bridges of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bridges {
    /// [`HostNetworkFacts::bridges`].
    pub all: Vec<String>,
    /// [`HostNetworkFacts::vlan_bridges`].
    pub vlan_aware: Vec<String>,
}

/// An address of the host at which other machines resolve guests' names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsAddress {
    /// The address and the port.
    pub address: SocketAddrV4,
    /// Why names do not resolve there.
    pub trouble: Option<DnsTrouble>,
}

/// Why guests' names do not resolve at an address of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DnsTrouble {
    /// The host does not have the address, at present.
    NoAddress,
    /// Another program has the port.
    PortTaken,
    /// The error in a sentence.
    Failed(String),
}

impl HostNetworkFacts {
    /// The first network of the host's routes that overlaps `subnet`.
    pub fn overlapping(&self, subnet: Ipv4Net) -> Option<Ipv4Net> {
        let mut routes = self.routes.iter().copied();
        routes.find(|route| route.prefix_len() > 0 && check::overlap(*route, subnet))
    }
}

/// Addresses that no guest may have, because this host or one of its routers has them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostAddresses {
    /// The host's addresses on all interfaces except our bridge.
    pub own: Vec<Ipv4Addr>,
    /// The routers of its routes.
    pub routers: Vec<Ipv4Addr>,
}

/// How many packets the rules of a port have dropped, by reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// The source address was not one of the port.
    pub spoofed: u64,
    /// The packet was to the host and not for a service that guests may use. On a bridge of the host, only packets to
    /// 169.254.169.254 that are not metadata requests; the host's own firewall decides about all others.
    pub to_host: u64,
    /// The frame had another protocol, for example a VLAN tag, or IPv6 on `default`. Ordinary guests send some of these.
    pub not_ipv4: u64,
    /// Packets that the guest's firewall has matched.
    pub firewall: FirewallCounters,
}

/// The observed state of one port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortObservation {
    /// Dropped packets.
    pub counters: PortCounters,
    /// When its lease was last confirmed; `None` without a lease. Too early if the guest requested a shorter lease than
    /// the configured one.
    pub acknowledged: Option<Timestamp>,
    /// Addresses learned at the port: the IPv4 address in use first, then the others sorted. Always empty on `default`,
    /// where waifud assigns the address.
    pub learned: Vec<IpAddr>,
    /// Why the port has no connection, in a sentence: for example, its bridge is gone.
    pub trouble: Option<String>,
}

/// Something other than us changed the guests' network: call `ensure` again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkDrift {
    /// What was found, for the log.
    pub what: String,
}

/// An error of the guests' network. Messages are written for users; the cause is in `source`.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A tool is missing, failed or timed out.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The tool's name.
        tool: &'static str,
        /// Its error message.
        message: String,
    },
    /// The kernel refused a change of a link, an address, a route or a rule.
    #[error("the kernel refused {what}: {message}")]
    Kernel {
        /// What was refused, for example "adding a route".
        what: String,
        /// The kernel's error.
        message: String,
    },
    /// The state contradicts itself: for example, two ports have the same address.
    #[error("{0}")]
    Contradiction(String),
    /// The subnet overlaps what the host already routes.
    #[error("subnet {subnet} overlaps {other}, which this host already has a route to")]
    Overlap {
        /// The guests' subnet.
        subnet: Ipv4Net,
        /// The destination of the host's route.
        other: Ipv4Net,
    },
    /// Another program has the UDP port of the mesh.
    #[error(
        "another program has UDP port {port}, which the mesh needs; stop it, or set `mesh_port` in agentd.toml"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// An operation on a file or socket failed.
    #[error("{what} failed")]
    Io {
        /// The operation and its file.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// The guests' network of one node.
#[async_trait]
pub trait GuestNetwork: Send + Sync {
    /// The host's bridges, routes and other firewalls.
    async fn host_facts(&self) -> Result<HostNetworkFacts, NetworkError>;

    /// The bridges of [`HostNetworkFacts`] alone: cheap enough to be called every few seconds.
    async fn bridges(&self) -> Result<Bridges, NetworkError>;

    /// Applies the state. Rules and leases are in force when it returns.
    async fn ensure(&self, state: &NetworkState) -> Result<(), NetworkError>;

    /// Removes everything that waifud added: firewall tables, routing rules, routes, dnsmasq and the bridge.
    async fn ensure_absent(&self) -> Result<(), NetworkError>;

    /// The host's addresses at which other machines resolve guests' names, as the last `ensure` left them. Failures there
    /// affect nothing else.
    async fn dns(&self) -> Vec<DnsAddress>;

    /// Ports that programs of the host listen on, except on loopback addresses.
    async fn listeners(&self) -> Result<BTreeSet<(Protocol, u16)>, NetworkError>;

    /// Dropped packets of one port; `None` if the port is unknown.
    async fn counters(&self, tap: &TapName) -> Result<Option<PortCounters>, NetworkError>;

    /// Observes all ports of the last ensured state in one pass. Empty if no state was ensured.
    async fn observe_ports(&self) -> Result<BTreeMap<TapName, PortObservation>, NetworkError>;

    /// Drift from now on, for example flushed rules, a deleted bridge or a dead dnsmasq.
    fn drift(&self) -> broadcast::Receiver<NetworkDrift>;
}
