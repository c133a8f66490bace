//! Ports that want an address of the host's own, or of a router of its: what they want is left out, and is said.
//!
//! What the host has is not part of the state that it is asked for, and changes without us. So it is no contradiction
//! that refuses the whole state; only the port that asks for it is in trouble, and its rules do not let it have it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use waifud_types::TapName;

use crate::check::{fixed_v4, further_ranges};
use crate::{HostAddresses, NetworkState};

/// The ports that want such an address, each with the reason in a sentence.
pub(crate) fn troubles(state: &NetworkState, host: &HostAddresses) -> BTreeMap<TapName, String> {
    let lan = state.lan.iter();
    let lan = lan.flat_map(|port| fixed_v4(port).map(move |range| (&port.tap, range)));
    let routed = state.ports.iter();
    let routed = routed.flat_map(|port| further_ranges(port).map(move |range| (&port.tap, range)));
    let mut troubles = BTreeMap::new();
    for (tap, range) in lan.chain(routed) {
        if let Some(why) = owner(state, host, range) {
            troubles.entry(tap.clone()).or_insert(why);
        }
    }
    troubles
}

/// The state without what the host has.
pub(crate) fn without(state: &NetworkState, host: &HostAddresses) -> NetworkState {
    let mut rest = state.clone();
    let may_stay = |range: &IpNet| match range {
        IpNet::V4(range) => owner(state, host, *range).is_none(),
        IpNet::V6(_) => true,
    };
    for port in &mut rest.lan {
        port.fixed.retain(may_stay);
    }
    for port in &mut rest.ports {
        port.allow_addresses.retain(may_stay);
    }
    rest
}

/// Whose address is in the range, in a sentence.
fn owner(state: &NetworkState, host: &HostAddresses, range: Ipv4Net) -> Option<String> {
    let first = |of: &[Ipv4Addr]| of.iter().copied().find(|address| range.contains(address));
    let whose = match (first(&host.own), first(&host.routers)) {
        (Some(address), _) if address != state.gateway => {
            format!("{address} is this node's own address")
        }
        (_, Some(address)) => format!("{address} is a router of this node"),
        _ => return None,
    };
    Some(if range.prefix_len() == 32 {
        format!("{whose}: no guest can have it")
    } else {
        format!("{whose}: no guest can have {range}, which holds it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{lan_port, port, state};

    fn host() -> HostAddresses {
        HostAddresses {
            own: vec![[192, 168, 1, 2].into(), [10, 144, 1, 1].into()],
            routers: vec![[192, 168, 1, 1].into()],
        }
    }

    fn wanting(ranges: &[&str]) -> NetworkState {
        let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mut state = state(0);
        let mut lan = lan_port(0);
        lan.fixed.clone_from(&ranges);
        state.lan = vec![lan, lan_port(1)];
        let mut routed = port(0);
        routed.allow_addresses = ranges;
        state.ports = vec![routed, port(1)];
        state
    }

    #[test]
    fn a_port_that_wants_what_the_host_or_its_router_has_is_in_trouble_and_does_not_get_it() {
        for (range, words) in [
            ("192.168.1.2/32", "192.168.1.2 is this node's own address"),
            ("192.168.1.1/32", "192.168.1.1 is a router of this node"),
            ("192.168.1.0/30", "192.168.1.0/30, which holds it"),
            ("192.0.0.0/8", "this node's own address"),
        ] {
            let state = wanting(&["203.0.113.7/32", range, "fd00::/64"]);
            let troubles = troubles(&state, &host());
            assert_eq!(troubles.len(), 2, "{range}: {troubles:?}");
            for tap in [&state.lan[0].tap, &state.ports[0].tap] {
                assert!(troubles[tap].contains(words), "{range}: {troubles:?}");
            }
            let rest = without(&state, &host());
            let kept = ["203.0.113.7/32", "fd00::/64"].map(|range| range.parse().unwrap());
            assert_eq!(rest.lan[0].fixed, kept, "{range}");
            assert_eq!(rest.ports[0].allow_addresses, kept, "{range}");
        }
    }

    #[test]
    fn what_nobody_has_stays() {
        let state = wanting(&["192.168.1.3/32", "192.168.1.64/26", "fd00::/64"]);
        assert!(troubles(&state, &host()).is_empty());
        assert_eq!(without(&state, &host()), state);
    }
}
