//! Ports with an address that the host or one of its routers has: their rules leave the address out, and report it.
//!
//! The host's addresses are not part of the desired state and change independently of it. So such an address is not a
//! contradiction, for which the complete state would be refused. Only the port with that address is affected.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use waifud_types::TapName;

use crate::check::{fixed_v4, further_ranges};
use crate::{HostAddresses, NetworkState};

/// The ports with such an address, each with the reason in a sentence.
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

/// The state without addresses of the host and its routers.
pub(crate) fn without(state: &NetworkState, host: &HostAddresses) -> NetworkState {
    let mut rest = state.clone();
    let allowed = |range: &IpNet| match range {
        IpNet::V4(range) => owner(state, host, *range).is_none(),
        IpNet::V6(_) => true,
    };
    for port in &mut rest.lan {
        port.fixed.retain(allowed);
    }
    for port in &mut rest.ports {
        port.allow_addresses.retain(allowed);
    }
    rest
}

/// Which address of the host or of a router is in the range, in a sentence.
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
        format!("{whose} and cannot be used by a guest")
    } else {
        format!("{whose}, so {range} cannot be used by a guest")
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
    fn an_address_of_the_host_or_a_router_is_left_out_and_reported() {
        for (range, words) in [
            ("192.168.1.2/32", "192.168.1.2 is this node's own address"),
            ("192.168.1.1/32", "192.168.1.1 is a router of this node"),
            ("192.168.1.0/30", "192.168.1.0/30 cannot be used by a guest"),
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
    fn other_addresses_stay() {
        let state = wanting(&["192.168.1.3/32", "192.168.1.64/26", "fd00::/64"]);
        assert!(troubles(&state, &host()).is_empty());
        assert_eq!(without(&state, &host()), state);
    }
}
