//! The peers of the kernel's link, without I/O: what a dump says, and which changes lead to the desired peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::Ipv4Net;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};

use super::{KEEPALIVE, MeshPeer};
use crate::{PublicKey, kernel};

/// The largest number of addresses in one message, and of peers. The length of an attribute has 16 bits; one address takes 28
/// bytes, a peer about 80.
const ADDRESSES_MAX: usize = 256;
const PEERS_MAX: usize = 128;

/// A device as the kernel describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub public_key: Option<PublicKey>,
    pub port: u16,
    pub peers: BTreeMap<PublicKey, Present>,
}

/// A peer as the kernel describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    pub endpoint: Option<SocketAddr>,
    /// The last handshake: the time since 1970 by the host's clock.
    pub handshake: Option<Duration>,
    pub received: u64,
    pub sent: u64,
    pub allowed: BTreeSet<Ipv4Net>,
}

impl Device {
    /// Merges the attributes of all messages of a dump.
    pub fn of(attributes: Vec<WireguardAttribute>) -> Self {
        let mut device = Self::default();
        for attribute in attributes {
            match attribute {
                WireguardAttribute::PublicKey(key) => device.public_key = Some(key.into()),
                WireguardAttribute::ListenPort(port) => device.port = port,
                WireguardAttribute::Peers(peers) => {
                    for peer in peers {
                        device.add(peer);
                    }
                }
                _ => {}
            }
        }
        device
    }

    fn add(&mut self, peer: WireguardPeer) {
        let key = peer.iter().find_map(|attribute| match attribute {
            WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from(*key)),
            _ => None,
        });
        let Some(key) = key else { return };
        // A peer with many addresses continues in the next message, with its key and further addresses only.
        let present = self.peers.entry(key).or_default();
        for attribute in peer.0 {
            match attribute {
                WireguardPeerAttribute::Endpoint(endpoint) => present.endpoint = Some(endpoint),
                WireguardPeerAttribute::LastHandshake(at) => {
                    let seconds = u64::try_from(at.seconds).unwrap_or(0);
                    let nanos = u32::try_from(at.nano_seconds).unwrap_or(0);
                    let at = Duration::new(seconds, nanos);
                    present.handshake = (!at.is_zero()).then_some(at);
                }
                WireguardPeerAttribute::RxBytes(bytes) => present.received = bytes,
                WireguardPeerAttribute::TxBytes(bytes) => present.sent = bytes,
                WireguardPeerAttribute::AllowedIps(nets) => {
                    present.allowed.extend(nets.iter().filter_map(net));
                }
                _ => {}
            }
        }
    }
}

fn net(allowed: &WireguardAllowedIp) -> Option<Ipv4Net> {
    let (mut address, mut length) = (None, None);
    for attribute in allowed.iter() {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(IpAddr::V4(ip)) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(cidr) => length = Some(*cidr),
            _ => {}
        }
    }
    Ipv4Net::new(address?, length?).ok()
}

/// A change of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub key: PublicKey,
    pub kind: Kind,
    pub endpoint: Option<SocketAddr>,
    /// Addresses that it gets. If another peer has one of them, that peer loses it.
    pub allowed: Vec<Ipv4Net>,
}

/// Kinds of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Add,
    Update,
    Remove,
}

impl Change {
    pub fn endpoint(key: PublicKey, endpoint: SocketAddr) -> Self {
        Self {
            endpoint: Some(endpoint),
            ..Self::new(key, Kind::Update)
        }
    }

    fn new(key: PublicKey, kind: Kind) -> Self {
        Self {
            key,
            kind,
            endpoint: None,
            allowed: Vec::new(),
        }
    }

    fn attributes(self) -> WireguardPeer {
        let mut attributes = vec![WireguardPeerAttribute::PublicKey(*self.key.as_bytes())];
        match self.kind {
            Kind::Add => attributes.push(WireguardPeerAttribute::PersistentKeepalive(KEEPALIVE)),
            Kind::Update => attributes.push(WireguardPeerAttribute::Flags(
                WireguardPeerFlags::UpdateOnly,
            )),
            Kind::Remove => {
                attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe));
            }
        }
        attributes.extend(self.endpoint.map(WireguardPeerAttribute::Endpoint));
        if !self.allowed.is_empty() {
            let nets = self.allowed.into_iter().map(kernel::allowed).collect();
            attributes.push(WireguardPeerAttribute::AllowedIps(nets));
        }
        WireguardPeer(attributes)
    }
}

/// The changes from the present peers to the wanted ones, in an order that leaves no gap: no address that stays is without its
/// peer at any time. `endpoints` are those to be set. `decoy` is a key of no peer: one with it takes the addresses that a
/// peer loses, and is removed with them, because kernels before 6.16 remove only all addresses of a peer at once.
pub(super) fn changes(
    present: &BTreeMap<PublicKey, Present>,
    wanted: &[MeshPeer],
    endpoints: &BTreeMap<PublicKey, SocketAddr>,
    decoy: PublicKey,
) -> Vec<Change> {
    let owners =
        |(key, nets): (PublicKey, Vec<Ipv4Net>)| nets.into_iter().map(move |net| (net, key));
    let before: BTreeMap<Ipv4Net, PublicKey> = present
        .iter()
        .map(|(key, peer)| (*key, peer.allowed.iter().copied().collect()))
        .flat_map(owners)
        .collect();
    // If two peers have the same addresses, the last one gets them, as in userspace.
    let after: BTreeMap<Ipv4Net, PublicKey> = wanted
        .iter()
        .map(|peer| {
            (
                peer.public_key,
                peer.allowed.iter().map(Ipv4Net::trunc).collect(),
            )
        })
        .flat_map(owners)
        .collect();
    let mut gained = BTreeMap::<PublicKey, Vec<Ipv4Net>>::new();
    for (net, key) in &after {
        if before.get(net) != Some(key) {
            gained.entry(*key).or_default().push(*net);
        }
    }
    let stay: BTreeSet<PublicKey> = wanted.iter().map(|peer| peer.public_key).collect();
    let lost = before
        .iter()
        .filter(|(net, key)| stay.contains(key) && !after.contains_key(net));
    let lost: Vec<_> = lost.map(|(net, _)| *net).collect();

    let mut changes = Vec::new();
    for key in &stay {
        let kind = if present.contains_key(key) {
            Kind::Update
        } else {
            Kind::Add
        };
        let change = Change {
            endpoint: endpoints.get(key).copied(),
            allowed: gained.remove(key).unwrap_or_default(),
            ..Change::new(*key, kind)
        };
        let changes_nothing = change == Change::new(*key, Kind::Update);
        if !changes_nothing {
            changes.push(change);
        }
    }
    if !lost.is_empty() {
        changes.push(Change {
            allowed: lost,
            ..Change::new(decoy, Kind::Add)
        });
        changes.push(Change::new(decoy, Kind::Remove));
    }
    let gone = present.keys().filter(|key| !stay.contains(key));
    changes.extend(gone.map(|key| Change::new(*key, Kind::Remove)));
    changes
}

/// The changes as attributes, in messages of a size that the kernel accepts.
pub(super) fn batches(changes: Vec<Change>) -> Vec<Vec<WireguardPeer>> {
    let mut batches = Vec::new();
    let (mut batch, mut addresses) = (Vec::new(), 0);
    for change in changes {
        let mut parts = Vec::new();
        let mut rest = change;
        while rest.allowed.len() > ADDRESSES_MAX {
            let tail = rest.allowed.split_off(ADDRESSES_MAX);
            let key = rest.key;
            parts.push(rest);
            rest = Change {
                allowed: tail,
                ..Change::new(key, Kind::Update)
            };
        }
        parts.push(rest);
        for part in parts {
            let of_part = part.allowed.len();
            if batch.len() == PEERS_MAX || addresses + of_part > ADDRESSES_MAX {
                batches.push(std::mem::take(&mut batch));
                addresses = 0;
            }
            addresses += of_part;
            batch.push(part.attributes());
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
#[path = "kernel_peers_tests.rs"]
mod tests;
