//! The guest subnets of other nodes, and why some cannot be used here. Also why this node's own subnet cannot.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use waifud_api::agent::Peer;
use waifud_network::fabric::AppliedFabric;
use waifud_network::{HostNetworkFacts, RemoteSubnet};
use waifud_types::Timestamp;
use waifud_types::node::condition_kind;
use waifud_types::status::Condition;

use crate::condition::condition;

/// How many subnets a condition describes.
const SHOWN: usize = 3;

/// The subnets of all peers and the further addresses of their guests, with the interface that the fabric reaches them over.
/// Without addresses of this node's guests (`local`).
pub(crate) fn remote_subnets(
    peers: &[Peer],
    local: &BTreeSet<Ipv4Addr>,
    fabric: &AppliedFabric,
) -> Vec<RemoteSubnet> {
    let subnets = peers.iter().flat_map(|peer| {
        let further = further_addresses(peer, local);
        let all = peer.subnets.iter().copied().chain(further);
        all.map(move |subnet| (peer, subnet))
    });
    let remote = subnets.map(|(peer, subnet)| {
        let path = fabric.paths.get(&peer.name);
        RemoteSubnet {
            node: peer.name.clone(),
            subnet,
            fabric: path.map(|path| path.interface.clone()),
            shared: path.is_some_and(|path| !path.dedicated),
        }
    });
    remote.collect()
}

/// The addresses of a peer's guests that are not in its subnets, without those of this node's guests.
pub(crate) fn further_addresses(
    peer: &Peer,
    local: &BTreeSet<Ipv4Addr>,
) -> impl Iterator<Item = Ipv4Net> {
    let single = peer.extra.iter().filter(|net| net.prefix_len() == 32);
    single.filter(|net| !local.contains(&net.addr())).copied()
}

/// Set while the guests' subnet overlaps another network of this node. waifud chooses another one if no instance has an address
/// of it.
pub(crate) fn own_subnet_conflict(
    subnet: Ipv4Net,
    host: &HostNetworkFacts,
    now: Timestamp,
) -> Option<Condition> {
    let other = host.overlapping(subnet)?;
    let message = format!(
        "the guests' subnet {subnet} overlaps {other}, which this host also has a route to; no new instances are placed here"
    );
    let kind = condition_kind::SUBNET;
    Some(condition(kind, false, "subnet-conflict", message, now))
}

/// Set while subnets of other nodes are in conflict with this node.
pub(crate) fn subnet_conflict(host: &HostNetworkFacts, now: Timestamp) -> Option<Condition> {
    let reasons: Vec<_> = host.refused_subnets.values().map(String::as_str).collect();
    let shown = reasons.get(..SHOWN).unwrap_or(&reasons);
    if shown.is_empty() {
        return None;
    }
    let further = match reasons.len() - shown.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let message = format!(
        "guests of this node cannot reach guests of other nodes by their own address: {}{further}",
        shown.join("; ")
    );
    Some(condition(
        condition_kind::REMOTE_SUBNETS,
        false,
        "subnet-conflict",
        message,
        now,
    ))
}

#[cfg(test)]
mod tests {
    use waifud_network::fabric::FabricPath;

    use super::*;

    #[test]
    fn every_subnet_of_every_peer_is_in_the_state() {
        let peer = |name: &str, subnets: &[&str], extra: &[&str]| Peer {
            id: waifud_types::NodeId::generate(),
            name: name.parse().unwrap(),
            subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
            extra: extra.iter().map(|net| net.parse().unwrap()).collect(),
            public_key: None,
            endpoints: Vec::new(),
            reachable: false,
        };
        let peers = [
            peer("birch", &["10.144.2.0/24", "10.144.3.0/24"], &[]),
            // The second address is that of a guest of this node, and the third is not one of a guest.
            peer(
                "cedar",
                &[],
                &["10.144.9.7/32", "10.144.9.8/32", "10.144.8.0/24"],
            ),
        ];
        let shown = |fabric: &AppliedFabric| {
            let local = [[10, 144, 9, 8].into()].into();
            let remote = remote_subnets(&peers, &local, fabric).into_iter();
            let shown =
                remote.map(|r| format!("{} {} {:?} {}", r.node, r.subnet, r.fabric, r.shared));
            shown.collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&AppliedFabric::default()),
            [
                "birch 10.144.2.0/24 None false",
                "birch 10.144.3.0/24 None false",
                "cedar 10.144.9.7/32 None false"
            ]
        );
        let path = FabricPath {
            interface: "eth0".to_owned(),
            dedicated: false,
        };
        let fabric = AppliedFabric {
            paths: [("birch".parse().unwrap(), path)].into(),
            ..AppliedFabric::default()
        };
        assert_eq!(shown(&fabric)[0], "birch 10.144.2.0/24 Some(\"eth0\") true");
    }

    #[test]
    fn an_overlap_of_the_own_subnet_is_a_condition() {
        let routes = ["0.0.0.0/0", "192.0.2.0/24", "10.144.0.0/16"];
        let mut host = HostNetworkFacts {
            routes: routes.iter().map(|net| net.parse().unwrap()).collect(),
            ..HostNetworkFacts::default()
        };
        let subnet = "10.144.1.0/24".parse().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let condition = own_subnet_conflict(subnet, &host, now).unwrap();
        assert!(!condition.ok && condition.kind == "subnet");
        assert!(
            condition
                .message
                .contains("10.144.1.0/24 overlaps 10.144.0.0/16")
        );
        host.routes.pop();
        assert!(own_subnet_conflict(subnet, &host, now).is_none());
    }

    #[test]
    fn a_conflict_is_a_condition_with_the_first_reasons() {
        let now = Timestamp::UNIX_EPOCH;
        let mut host = HostNetworkFacts::default();
        assert!(subnet_conflict(&host, now).is_none());
        for index in 2..7 {
            let subnet = format!("10.144.{index}.0/24").parse().unwrap();
            let why = format!("reason {index}");
            host.refused_subnets.insert(subnet, why);
        }
        let condition = subnet_conflict(&host, now).unwrap();
        assert!(!condition.ok);
        let message = condition.message;
        assert!(
            message.ends_with("reason 2; reason 3; reason 4; and 2 more"),
            "{message}"
        );
    }
}
