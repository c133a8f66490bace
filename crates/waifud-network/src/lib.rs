//! The guests' network: bridge, leases and DHCP, firewall, and a fake.
//!
//! One verb carries it: [`GuestNetwork::ensure`] takes everything that should be and makes it so, at once for what is
//! seen from outside (rules are replaced in one transaction, before a port that needs them exists). Calling it again
//! repairs what somebody else changed, and changes nothing when nobody did. Whoever holds the desired state listens
//! to [`GuestNetwork::drift`] to know when.
//!
//! What a frame meets on its way from a guest:
//!
//! ```text
//!  guest ── tap wf-… ── waifu0 ── routes ─┬─ the host itself: DHCP, DNS and ping of the gateway, nothing else
//!             │            │              ├─ published ports of the host: on to the guest that they lead to
//!             │            │              ├─ other guests: through the gateway, which answers ARP for them
//!             │            │              ├─ 169.254.169.254:80: the metadata interface, by a table of its own
//!             │            │              └─ the outside: with the host's address, over the uplink
//!             │            └─ table inet waifud: what may reach the host, and what is forwarded
//!             └─ table bridge waifud: own MAC, own addresses, IPv4 and ARP only; an unknown tap is dropped
//! ```
//!
//! A guest on a bridge that the host already has ([`LanPort`]) is switched into that network as any machine of it: its
//! MAC is pinned, and so are its addresses, which the rules learn themselves. Of what it sends only what is meant for
//! 169.254.169.254 comes to us: it goes on with the source that stands for its port ([`IDENTITIES`]).
//!
//! Ports on `default` are isolated: guests never see each other's frames, nor frames of the host that are not theirs. There is no
//! IPv6 on that network yet. Forwarding is switched on per interface, for guests' sake only; the host's own way to
//! 169.254.169.254 stays what it was.
//!
//! Where to find what: [`check()`] refuses states that contradict themselves; `ruleset` and `dhcp` turn a state into
//! text and are pure; [`linux`] does it; [`fake`] plays it; [`conformance`] is what both pass.

mod check;
pub mod conformance;
mod dhcp;
pub mod fake;
mod foreign;
mod host_addresses;
pub mod linux;
mod ruleset;
#[cfg(test)]
mod testing;

pub use check::check;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::broadcast;
use waifud_types::spec::{Protocol, PublishSpec};
use waifud_types::{InstanceId, MacAddr, Name, TapName, Timestamp};

/// Addresses that stand for ports on bridges of the host's own. Class E (RFC 1112, section 4: reserved for future use):
/// no home, no provider's network and no guest has them, and they never leave the node.
pub const IDENTITIES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 119, 0, 0), 16);

/// Everything that should be on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkState {
    /// The bridge of the `default` network, such as `waifu0`.
    pub bridge: String,
    /// The guests' subnet.
    pub subnet: Ipv4Net,
    /// The gateway's address, with the subnet's prefix on the bridge.
    pub gateway: Ipv4Addr,
    /// The gateway's MAC address, the same on all nodes.
    pub gateway_mac: MacAddr,
    /// The interface that leads to metadatad; packets of guests to 169.254.169.254 are routed to it, nobody else's.
    pub metadata_interface: String,
    /// MTU of guests' nics.
    pub mtu: u16,
    /// The DNS domain of guests, such as `waifu.internal`.
    pub domain: String,
    /// Ports of guests on `default`, whether their taps exist yet or not.
    pub ports: Vec<Port>,
    /// Ports of guests on bridges that the host already has, whether their taps exist yet or not.
    pub lan: Vec<LanPort>,
}

/// One guest's port on a bridge of the host's own: the only MAC address that may speak there. Whoever serves addresses
/// on that network is not ours, so a guest's own address is learned at the port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LanPort {
    /// The instance.
    pub instance: InstanceId,
    /// The instance's name, for people.
    pub name: Name,
    /// The tap.
    pub tap: TapName,
    /// The bridge that it joins, such as `br0`.
    pub bridge: String,
    /// The only source MAC address.
    pub mac: MacAddr,
    /// The address that somebody gave it, which is one of `fixed`; null where it is to be learned.
    pub given: Option<Ipv4Addr>,
    /// Source addresses that need not be learned: the one that somebody gave, and further ones that were allowed.
    pub fixed: Vec<IpNet>,
    /// The address that stands for the instance towards metadatad, which sees no other; null where documents do not
    /// come through this port.
    pub identity: Option<Ipv4Addr>,
}

/// One guest's port: the only MAC and addresses that may speak there, and its lease.
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
    /// Its lease and only source address.
    pub address: Ipv4Addr,
    /// Further source addresses.
    pub allow_addresses: Vec<IpNet>,
    /// Ports of the node's addresses that lead here.
    pub publish: Vec<PublishSpec>,
}

/// What is found on this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNetworkFacts {
    /// Bridges that exist.
    pub bridges: Vec<String>,
    /// Links by name that can't carry a network of guests though somebody may take them for a bridge that can, and why.
    pub unfit_bridges: BTreeMap<String, String>,
    /// Networks that routes lead to, our own excepted.
    pub routes: Vec<Ipv4Net>,
    /// Others' chains that drop forwarded packets (Docker, ufw, firewalld): names for people.
    pub foreign_firewalls: Vec<String>,
    /// Others' chains that guests are let through by a marked rule of ours.
    pub let_through: Vec<String>,
    /// Why that could not be done; guests' own rules are in force all the same.
    pub firewall_trouble: Option<String>,
}

/// Addresses that a guest may not have because they are this host's or its routers'.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostAddresses {
    /// The host's own, on any interface but our bridge.
    pub own: Vec<Ipv4Addr>,
    /// Of routers that its routes lead through.
    pub routers: Vec<Ipv4Addr>,
}

/// Packets that a port's rules dropped, by reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortCounters {
    /// Packets dropped because their source was not the port's own.
    pub spoofed: u64,
    /// Packets to the host that guests may not send. On a bridge of the host's own, those to 169.254.169.254 that are
    /// not for metadata: all else is the host's firewall's business.
    pub to_host: u64,
    /// Frames of other protocols: VLAN tags and others, on `default` IPv6 too. Honest guests send some.
    pub not_ipv4: u64,
}

/// What was seen at one port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PortObservation {
    /// What its rules have dropped.
    pub counters: PortCounters,
    /// When its lease was confirmed last; null when it holds none. A guest that asked for a shorter lease than it may
    /// have makes this earlier than it was.
    pub acknowledged: Option<Timestamp>,
    /// Addresses that were learned at it, the IPv4 address in use first and the others sorted; always none on `default`,
    /// where waifud gives them.
    pub learned: Vec<IpAddr>,
    /// Why nothing gets through it, in a sentence, such as that its bridge is gone.
    pub trouble: Option<String>,
}

/// Something outside changed what is ours: call `ensure` again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkDrift {
    /// What was seen, for the log.
    pub what: String,
}

/// What went wrong. Messages are fit for users; causes are in `source`.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A tool is missing, failed or took too long.
    #[error("{tool} failed: {message}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What it said.
        message: String,
    },
    /// The kernel refused a change of a link, an address, a route or a rule.
    #[error("{what} was refused by the kernel: {message}")]
    Kernel {
        /// The change.
        what: String,
        /// Its words.
        message: String,
    },
    /// The state contradicts itself: one MAC or address on two ports.
    #[error("{0}")]
    Contradiction(String),
    /// The subnet overlaps what the host already routes.
    #[error("subnet {subnet} overlaps {other}, which this host already routes to")]
    Overlap {
        /// Ours.
        subnet: Ipv4Net,
        /// The host's.
        other: Ipv4Net,
    },
    /// The filesystem said no.
    #[error("{what} failed")]
    Io {
        /// The call and its file.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The guests' network of one node.
#[async_trait]
pub trait GuestNetwork: Send + Sync {
    /// What this host already has.
    async fn host_facts(&self) -> Result<HostNetworkFacts, NetworkError>;

    /// [`HostNetworkFacts::bridges`] alone, which is cheap enough to be asked every few seconds.
    async fn bridges(&self) -> Result<Vec<String>, NetworkError>;

    /// Makes the node's network be exactly this. Rules and leases are in force when it returns.
    async fn ensure(&self, state: &NetworkState) -> Result<(), NetworkError>;

    /// Removes everything of ours: tables, rules, routes, dnsmasq, the bridge.
    async fn ensure_absent(&self) -> Result<(), NetworkError>;

    /// Ports that programs of the host listen on, on other addresses than loopback.
    async fn listeners(&self) -> Result<BTreeSet<(Protocol, u16)>, NetworkError>;

    /// What the rules of a port have dropped; `None` when the port is unknown.
    async fn counters(&self, tap: &TapName) -> Result<Option<PortCounters>, NetworkError>;

    /// What was seen at every port of the state that was ensured last: one look for all. Empty when there is none.
    async fn sights(&self) -> Result<BTreeMap<TapName, PortObservation>, NetworkError>;

    /// Drift from now on (rules flushed, bridge gone, dnsmasq dead).
    fn drift(&self) -> broadcast::Receiver<NetworkDrift>;
}
