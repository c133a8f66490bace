//! Guest subnets of other nodes, and addresses of guests that moved there: which of them this node can use.
//!
//! They come from the other nodes and from the host's routes, so a conflict is not a contradiction that refuses the whole
//! state. Only the subnet in conflict is left out, and reported with the reason.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::check::{check_interface_name, further_ranges, never_guests, overlap};
use crate::{NetworkState, RemoteSubnet};

/// The longest prefix of a subnet that has a gateway and a guest.
const PREFIX_MAX: u8 = 30;

/// The remote subnets that a fabric carries and that cannot be used, each with the reason in a sentence. `routes` are the
/// destinations of the host's routes, without those over our bridge and over fabrics.
pub(crate) fn refused(state: &NetworkState, routes: &[Ipv4Net]) -> BTreeMap<Ipv4Net, String> {
    let mut refused = BTreeMap::new();
    let carried = state.remote_subnets.iter();
    let carried: Vec<_> = carried.filter(|remote| remote.fabric.is_some()).collect();
    for &remote in &carried {
        if let Some(why) = conflict(state, routes, remote) {
            refused.entry(remote.subnet).or_insert(why);
        }
    }
    // An address takes precedence over the subnet that contains it.
    let (addresses, subnets): (Vec<_>, Vec<_>) =
        carried.iter().partition(|remote| remote.is_address());
    let pairs = overlapping(&addresses).into_iter();
    for (one, other) in pairs.chain(overlapping(&subnets)) {
        for (mine, theirs) in [(one, other), (other, one)] {
            let why = format!(
                "the subnet {} of node {} overlaps {} of node {}",
                mine.subnet, mine.node, theirs.subnet, theirs.node
            );
            refused.entry(mine.subnet).or_insert(why);
        }
    }
    refused
}

/// Removes refused subnets, and names of guests there.
pub(crate) fn leave_out(state: &mut NetworkState, refused: &BTreeMap<Ipv4Net, String>) {
    let is_refused = |address| refused.keys().any(|subnet| subnet.contains(address));
    let mut names = state.remote_names.iter();
    if names.any(|it| is_refused(&it.address)) {
        let kept = state.remote_names.iter();
        let kept = kept.filter(|it| !is_refused(&it.address));
        state.remote_names = kept.cloned().collect();
    }
    state
        .remote_subnets
        .retain(|remote| !refused.contains_key(&remote.subnet));
}

/// The conflict of one subnet with this node.
fn conflict(state: &NetworkState, routes: &[Ipv4Net], remote: &RemoteSubnet) -> Option<String> {
    let RemoteSubnet { node, subnet, .. } = remote;
    let subnet = *subnet;
    let what = if remote.is_address() {
        format!("the address {} of a guest on node {node}", subnet.addr())
    } else {
        format!("the subnet {subnet} of node {node}")
    };
    if !remote.is_address() && (subnet.trunc() != subnet || subnet.prefix_len() > PREFIX_MAX) {
        return Some(format!(
            "{what} has host bits set, or is too small for a gateway and a guest"
        ));
    }
    if let Some(range) = never_guests(subnet) {
        return Some(format!("{what} is in {range}, which cannot be routed"));
    }
    if let Some(fabric) = &remote.fabric
        && let Some(why) = unusable_fabric(state, fabric)
    {
        return Some(format!("{what}: {why}"));
    }
    if remote.is_address() {
        if let Some(owner) = owner_here(state, subnet.addr()) {
            return Some(format!("{what} is also that of {owner} on this node"));
        }
    } else if overlap(subnet, state.subnet) {
        return Some(format!(
            "{what} overlaps this node's own subnet {}",
            state.subnet
        ));
    }
    let ranges = state.ports.iter();
    let mut ranges = ranges.flat_map(|port| further_ranges(port).map(move |range| (port, range)));
    if let Some((port, range)) = ranges.find(|(_, range)| overlap(subnet, *range)) {
        return Some(format!(
            "{what} overlaps {range}, which instance {} may use",
            port.name
        ));
    }
    let route = routes.iter().find(|route| overlap(subnet, **route))?;
    Some(format!(
        "{what} overlaps {route}, which this host already has a route to"
    ))
}

/// What has the address on this node.
fn owner_here(state: &NetworkState, address: Ipv4Addr) -> Option<String> {
    if address == state.gateway {
        return Some("the gateway".to_owned());
    }
    let mut ports = state.ports.iter();
    let port = ports.find(|port| port.address == address)?;
    Some(format!("instance {}", port.name))
}

fn unusable_fabric(state: &NetworkState, fabric: &str) -> Option<String> {
    if let Err(error) = check_interface_name(fabric) {
        return Some(error.to_string());
    }
    let ours = [&state.bridge, &state.metadata_interface];
    ours.iter()
        .any(|name| *name == fabric)
        .then(|| format!("{fabric} is not the interface of a fabric"))
}

/// Pairs of subnets that overlap. Each subnet in conflict is in at least one pair.
fn overlapping<'a>(remotes: &[&'a RemoteSubnet]) -> Vec<(&'a RemoteSubnet, &'a RemoteSubnet)> {
    let mut sorted = remotes.to_vec();
    sorted.sort_by_key(|remote| (remote.subnet.network(), remote.subnet.prefix_len()));
    let mut pairs = Vec::new();
    // Two networks overlap only if one contains the other, and a network is sorted before those that it contains.
    let mut outer: Option<&RemoteSubnet> = None;
    for remote in sorted {
        match outer.filter(|outer| overlap(outer.subnet, remote.subnet)) {
            Some(outer) => pairs.push((outer, remote)),
            None => outer = Some(remote),
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples::{remote, remote_name, state};

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[track_caller]
    fn is_refused(remote: RemoteSubnet, routes: &[&str], words: &str) {
        let mut state = state(1);
        state.ports[0].allow_addresses = vec!["10.99.0.0/24".parse().unwrap()];
        let subnet = remote.subnet;
        state.remote_subnets = vec![remote];
        let routes: Vec<_> = routes.iter().map(|route| net(route)).collect();
        let refused = refused(&state, &routes);
        let why = refused.get(&subnet).unwrap();
        assert!(why.contains(words), "{why:?} lacks {words:?}");
        leave_out(&mut state, &refused);
        assert!(state.remote_subnets.is_empty());
    }

    #[test]
    fn subnets_in_conflict_are_refused_with_the_reason() {
        let own = ["192.168.1.0/24", "10.144.0.0/12"];
        for (subnet, fabric, routes, words) in [
            ("10.144.0.0/16", "fab0", &[][..], "own subnet 10.144.1.0/24"),
            ("10.144.1.128/25", "fab0", &[], "own subnet"),
            (
                "10.99.0.128/25",
                "fab0",
                &[],
                "which instance guest-0 may use",
            ),
            (
                "10.144.2.0/24",
                "fab0",
                &own,
                "overlaps 10.144.0.0/12, which this host already has a route to",
            ),
            ("10.144.2.1/24", "fab0", &[], "host bits"),
            ("10.144.2.0/31", "fab0", &[], "too small"),
            ("169.254.0.0/24", "fab0", &[], "cannot be routed"),
            ("10.144.2.0/24", "a\"b", &[], "interface"),
            (
                "10.144.2.0/24",
                "waifu0",
                &[],
                "not the interface of a fabric",
            ),
        ] {
            let remote = RemoteSubnet {
                subnet: net(subnet),
                fabric: Some(fabric.to_owned()),
                ..remote(2)
            };
            is_refused(remote, routes, words);
        }
    }

    #[test]
    fn two_overlapping_subnets_are_both_refused_and_others_are_kept() {
        let mut state = state(0);
        let wide = RemoteSubnet {
            subnet: net("10.144.2.0/23"),
            ..remote(7)
        };
        state.remote_subnets = vec![remote(3), remote(2), wide, remote(4)];
        let refused = refused(&state, &[net("192.168.1.0/24")]);
        assert_eq!(
            refused.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.144.2.0/23", "10.144.2.0/24", "10.144.3.0/24"]
        );
        leave_out(&mut state, &refused);
        assert_eq!(state.remote_subnets, [remote(4)]);
    }

    fn moved(node: u8, address: &str) -> RemoteSubnet {
        RemoteSubnet {
            subnet: net(&format!("{address}/32")),
            ..remote(node)
        }
    }

    #[test]
    fn an_address_of_a_guest_that_moved_may_be_in_any_subnet() {
        let mut state = state(1);
        state.remote_subnets = vec![
            remote(2),
            remote(3),
            moved(3, "10.144.1.77"),
            moved(3, "10.144.2.7"),
        ];
        assert!(refused(&state, &[]).is_empty());
    }

    #[test]
    fn an_address_that_this_node_or_two_others_have_is_refused() {
        is_refused(
            moved(2, "10.144.1.11"),
            &[],
            "also that of instance guest-0",
        );
        is_refused(moved(2, "10.144.1.1"), &[], "also that of the gateway");
        let mut state = state(0);
        let twice = [moved(2, "10.144.1.77"), moved(3, "10.144.1.77")];
        state.remote_subnets = twice.to_vec();
        let refused = refused(&state, &[]);
        leave_out(&mut state, &refused);
        assert!(state.remote_subnets.is_empty());
    }

    #[test]
    fn names_of_guests_in_a_refused_subnet_are_left_out() {
        let mut state = state(0);
        let overlapping = RemoteSubnet {
            subnet: net("10.144.1.128/25"),
            ..remote(3)
        };
        state.remote_subnets = vec![remote(2), overlapping];
        let (good, bad) = (remote_name("web", 2, 7), remote_name("db", 1, 200));
        state.remote_names = [good.clone(), bad].into();
        let refused = refused(&state, &[]);
        leave_out(&mut state, &refused);
        assert_eq!(state.remote_names[..], [good]);
    }

    #[test]
    fn a_subnet_without_a_fabric_is_never_in_conflict() {
        let mut state = state(0);
        let uncarried = RemoteSubnet {
            fabric: None,
            ..remote(1)
        };
        state.remote_subnets = vec![uncarried, remote(2)];
        assert!(refused(&state, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn the_accepted_subnets_never_overlap(subnets in proptest::collection::vec((0_u8..8, 20_u8..=26), 0..12)) {
            let mut state = state(0);
            let subnets = subnets.iter().enumerate();
            state.remote_subnets = subnets
                .map(|(index, (third, prefix))| RemoteSubnet {
                    subnet: Ipv4Net::new([10, 9, *third, 0].into(), *prefix).unwrap().trunc(),
                    ..remote(u8::try_from(index).unwrap())
                })
                .collect();
            let all = state.remote_subnets.clone();
            let refused = refused(&state, &[]);
            leave_out(&mut state, &refused);
            for (index, one) in all.iter().enumerate() {
                let alone = all
                    .iter()
                    .enumerate()
                    .all(|(other, with)| other == index || !overlap(one.subnet, with.subnet));
                prop_assert_eq!(state.remote_subnets.contains(one), alone);
            }
        }
    }
}
