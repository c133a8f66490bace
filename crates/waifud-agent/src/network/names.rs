//! The names of other nodes' instances that this node's guests resolve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use waifud_api::agent::{InstanceName, NodeNames, Peer};
use waifud_network::RemoteName;
use waifud_types::{Name, NodeId};

use crate::control_link::record::InstanceRecord;

/// Names that mean this machine wherever they are resolved (RFC 6761), so that no other node can give them a meaning.
const OWN: [&str; 1] = ["localhost"];

/// The names to resolve, sorted. Only addresses of the node that has published a name count. While an instance moves, its name
/// may be on two nodes: the newest publication applies, and an instance that waifud has placed on this node comes before all
/// others.
pub(crate) fn remote_names(
    published: &[Arc<NodeNames>],
    peers: &[Peer],
    records: &[InstanceRecord],
) -> Vec<RemoteName> {
    let own: BTreeSet<&str> = records.iter().filter_map(own_name).collect();
    let peers: BTreeMap<NodeId, &Peer> = peers.iter().map(|peer| (peer.id, peer)).collect();
    let mut published: Vec<_> = published
        .iter()
        .filter_map(|names| Some((names, *peers.get(&names.node)?)))
        .collect();
    published.sort_by_key(|(names, _)| (names.revision.number, names.node));
    let mut newest: BTreeMap<&Name, Vec<Ipv4Addr>> = BTreeMap::new();
    for (names, peer) in published {
        for InstanceName { name, addresses } in &names.names {
            let of_peer = |address: &&Ipv4Addr| {
                let mut its = peer.subnets.iter().chain(&peer.extra);
                its.any(|net| net.contains(*address))
            };
            let addresses: Vec<_> = addresses.iter().filter(of_peer).copied().collect();
            if !addresses.is_empty() && !OWN.contains(&name.as_str()) {
                newest.insert(name, addresses);
            }
        }
    }
    newest.retain(|name, _| !own.contains(name.as_str()));
    let names = newest.into_iter().flat_map(|(name, addresses)| {
        addresses.into_iter().map(|address| RemoteName {
            name: name.clone(),
            address,
        })
    });
    names.collect()
}

/// The name of an instance that waifud has placed on this node. One that only was in the slice may have a successor of the same
/// name elsewhere.
fn own_name(record: &InstanceRecord) -> Option<&str> {
    let owned = record.managed && !record.destroyed && !record.is_given_up();
    let instance = record.instance.as_ref().filter(|_| owned)?;
    Some(instance.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> NodeId {
        format!("01890a5d-ac96-774b-bcce-b302099a80{number:02x}")
            .parse()
            .unwrap()
    }

    fn peer(number: u8) -> Peer {
        Peer {
            id: id(number),
            name: format!("node{number}").parse().unwrap(),
            subnets: vec![format!("10.144.{number}.0/24").parse().unwrap()],
            extra: Vec::new(),
            public_key: None,
            endpoints: Vec::new(),
            reachable: true,
        }
    }

    fn names(node: u8, revision: u64, names: &[(&str, [u8; 4])]) -> Arc<NodeNames> {
        let names = names.iter();
        Arc::new(NodeNames {
            node: id(node),
            revision: format!("000000ab.{revision}").parse().unwrap(),
            names: names
                .map(|(name, address)| InstanceName {
                    name: name.parse().unwrap(),
                    addresses: vec![(*address).into()],
                })
                .collect(),
        })
    }

    #[track_caller]
    fn resolve(published: &[Arc<NodeNames>], records: &[InstanceRecord], expected: &[&str]) {
        let resolved = remote_names(published, &[peer(2), peer(3)], records);
        let shown: Vec<_> = resolved
            .iter()
            .map(|it| format!("{} {}", it.name, it.address))
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn names_of_all_peers_resolve_and_others_do_not() {
        let published = [
            names(2, 1, &[("web", [10, 144, 2, 7]), ("db", [10, 144, 2, 8])]),
            names(3, 2, &[("mail", [10, 144, 3, 7])]),
            names(4, 3, &[("gone", [10, 144, 4, 7])]),
        ];
        let expected = ["db 10.144.2.8", "mail 10.144.3.7", "web 10.144.2.7"];
        resolve(&published, &[], &expected);
    }

    #[test]
    fn a_node_publishes_only_its_own_addresses_and_no_name_of_the_machine() {
        let published = [names(
            2,
            1,
            &[
                ("web", [10, 144, 1, 1]),
                ("db", [10, 144, 3, 8]),
                ("localhost", [10, 144, 2, 9]),
            ],
        )];
        resolve(&published, &[], &[]);
    }

    #[test]
    fn of_two_nodes_with_one_name_the_newest_publication_applies() {
        let (old, new) = (("web", [10, 144, 2, 7]), ("web", [10, 144, 3, 7]));
        for (second, third, expected) in [(1, 2, "web 10.144.3.7"), (2, 1, "web 10.144.2.7")] {
            let published = [names(2, second, &[old]), names(3, third, &[new])];
            resolve(&published, &[], &[expected]);
        }
    }

    #[test]
    fn an_instance_of_this_node_comes_first_unless_it_has_left_the_slice() {
        let published = [names(2, 1, &[("web", [10, 144, 2, 7])])];
        let mut own = InstanceRecord::sample("web");
        resolve(&published, std::slice::from_ref(&own), &[]);
        own.managed = false;
        resolve(&published, &[own], &["web 10.144.2.7"]);
    }
}
