//! Chooses the peers that can be used.
//!
//! An address of a guest that moved is left out silently: the guests' network says why ([`crate::remote`]).
//!
//! The state comes from other nodes, so a peer in conflict with this node, or with another peer, is left out with a reason, and
//! the others are applied.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use waifud_types::{FabricKind, Name};

use super::{FabricClient, FabricPeer, FabricState};
use crate::check::overlap;

/// The usable peers, and why others are not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Peers that can be used.
    pub peers: Vec<FabricPeer>,
    /// Why others cannot be used, in a sentence.
    pub troubles: BTreeMap<Name, String>,
    /// Clients whose key and address no node has.
    pub clients: Vec<FabricClient>,
}

/// The plan for a state. `own_key` is this node's public key, `routes` are the destinations of the host's routes without ours.
pub fn plan(state: &FabricState, own_key: &str, routes: &[Ipv4Net]) -> Plan {
    let mut plan = Plan::default();
    let mut keys = BTreeSet::from([own_key]);
    for peer in &state.peers {
        let unusable = conflict(state, routes, &plan.peers, peer).or_else(|| match state.kind {
            FabricKind::Wireguard => key_conflict(peer, &keys),
            FabricKind::Static => peer
                .endpoints
                .is_empty()
                .then(|| "it has not reported an address".to_owned()),
            FabricKind::None | FabricKind::Other => None,
        });
        if let Some(why) = unusable {
            plan.troubles.insert(peer.node.clone(), why);
            continue;
        }
        keys.extend(peer.public_key.as_deref());
        let mut peer = peer.clone();
        peer.extra.retain(|extra| {
            let mut before = plan.peers.iter().flat_map(|peer| &peer.extra);
            let is_gateway = extra.contains(&state.gateway);
            !is_gateway
                && !routes.iter().any(|route| overlap(*extra, *route))
                && !before.any(|other| overlap(*extra, *other))
        });
        plan.peers.push(peer);
    }
    if state.kind == FabricKind::Wireguard {
        let clients = state.clients.iter();
        let usable = clients.filter(|client| {
            let address = Ipv4Net::from(client.address);
            let subnets = plan.peers.iter().flat_map(|peer| &peer.subnets);
            let mut others = subnets.chain(routes).chain([&state.subnet]);
            !keys.contains(client.public_key.as_str())
                && !others.any(|other| overlap(*other, address))
        });
        plan.clients = usable.cloned().collect();
    }
    plan
}

fn conflict(
    state: &FabricState,
    routes: &[Ipv4Net],
    before: &[FabricPeer],
    peer: &FabricPeer,
) -> Option<String> {
    for subnet in &peer.subnets {
        if overlap(*subnet, state.subnet) {
            return Some(format!(
                "its subnet {subnet} overlaps this node's own subnet {}",
                state.subnet
            ));
        }
        if let Some(route) = routes.iter().find(|route| overlap(*subnet, **route)) {
            return Some(format!(
                "its subnet {subnet} overlaps {route}, which this host already has a route to"
            ));
        }
        let overlapping = |other: &&FabricPeer| other.subnets.iter().any(|o| overlap(*subnet, *o));
        if let Some(other) = before.iter().find(overlapping) {
            return Some(format!(
                "its subnet {subnet} overlaps one of node {}",
                other.node
            ));
        }
    }
    None
}

fn key_conflict(peer: &FabricPeer, keys: &BTreeSet<&str>) -> Option<String> {
    match peer.public_key.as_deref() {
        None => Some(
            "it has not reported a WireGuard key; its waifud-agentd may be of an earlier version"
                .to_owned(),
        ),
        Some(key) if keys.contains(key) => Some(
            "its WireGuard key is that of another node; was its disk copied? Remove mesh.key in its state directory and \
             restart waifud-agentd there"
                .to_owned(),
        ),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{peer, state};
    use super::*;

    fn troubles(plan: &Plan) -> Vec<(&str, &str)> {
        let all = plan.troubles.iter();
        all.map(|(node, why)| (node.as_str(), why.as_str()))
            .collect()
    }

    #[test]
    fn a_peer_in_conflict_is_left_out_with_the_reason_and_others_are_kept() {
        let mut state = state(FabricKind::Wireguard, &[2, 3, 4, 5, 6, 7]);
        state.peers[1].subnets = vec!["10.144.1.128/25".parse().unwrap()];
        state.peers[2].subnets = vec!["10.144.2.0/23".parse().unwrap()];
        state.peers[3].public_key = None;
        state.peers[4].public_key = state.peers[0].public_key.clone();
        let routes = ["10.144.7.0/24".parse().unwrap()];
        let plan = plan(&state, "own", &routes);
        assert_eq!(plan.peers, [peer(2)]);
        let shown = troubles(&plan);
        for (index, (node, words)) in [
            ("node-3", "overlaps this node's own subnet 10.144.1.0/24"),
            ("node-4", "overlaps one of node node-2"),
            ("node-5", "has not reported a WireGuard key"),
            ("node-6", "was its disk copied"),
            ("node-7", "this host already has a route to"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(shown[index].0, node);
            assert!(shown[index].1.contains(words), "{shown:?}");
        }
    }

    #[test]
    fn a_peer_with_this_nodes_own_key_is_not_used() {
        let state = state(FabricKind::Wireguard, &[2]);
        let own = state.peers[0].public_key.clone().unwrap();
        assert!(plan(&state, &own, &[]).peers.is_empty());
    }

    #[test]
    fn routes_need_an_address_and_no_key() {
        let mut state = state(FabricKind::Static, &[2, 3]);
        state.peers[0].public_key = None;
        state.peers[1].endpoints.clear();
        let plan = plan(&state, "own", &[]);
        assert_eq!(plan.peers.len(), 1);
        assert_eq!(
            troubles(&plan),
            [("node-3", "it has not reported an address")]
        );
    }
}
