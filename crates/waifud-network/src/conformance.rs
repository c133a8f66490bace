//! The conformance tests that every [`GuestNetwork`], real or fake, must pass.
//!
//! The tests are functions that panic on a violation, so that any test can call them with any adapter. The given state
//! must have at least two ports, preferably also some on a bridge of the host, and must be valid on the adapter's host.
#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test suite: it panics on a violation"
)]

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::samples::{port_rule, remote};
use crate::{GuestNetwork, NetworkError, NetworkState, PortCounters, PortObservation};

/// Introduces a contradiction into a valid state.
type Contradiction = fn(&mut NetworkState);

/// Runs all tests, and leaves nothing behind.
pub async fn all(network: &dyn GuestNetwork, state: &NetworkState) {
    nothing_is_known_before_the_first_ensure(network, state).await;
    ensuring_twice_changes_nothing(network, state).await;
    ports_come_and_go(network, state).await;
    every_rule_of_a_firewall_is_counted(network, state).await;
    contradictions_are_refused_and_change_nothing(network, state).await;
    every_port_and_no_other_is_observed(network, state).await;
    own_bridge_and_subnet_are_not_host_facts(network, state).await;
    a_port_in_a_vlan_needs_a_vlan_aware_bridge(network, state).await;
    other_nodes_subnets_in_conflict_are_left_out(network, state).await;
    absence_can_be_ensured_at_any_time(network, state).await;
}

/// An adapter without a state has no ports, and removing nothing succeeds.
pub async fn nothing_is_known_before_the_first_ensure(
    network: &dyn GuestNetwork,
    state: &NetworkState,
) {
    network.ensure_absent().await.unwrap();
    for port in &state.ports {
        assert_eq!(network.counters(&port.tap).await.unwrap(), None);
    }
}

/// Ensuring is idempotent, and every port has counters from then on, whether its tap exists or not.
pub async fn ensuring_twice_changes_nothing(network: &dyn GuestNetwork, state: &NetworkState) {
    for _ in 0..2 {
        network.ensure(state).await.unwrap();
        for port in &state.ports {
            let counters = network.counters(&port.tap).await.unwrap();
            assert_eq!(counters, Some(PortCounters::default()), "{}", port.tap);
        }
    }
}

/// A port that was removed from the state is unknown; a port that is added again starts at zero.
pub async fn ports_come_and_go(network: &dyn GuestNetwork, state: &NetworkState) {
    network.ensure(state).await.unwrap();
    let mut fewer = state.clone();
    let gone = fewer.ports.remove(0);
    network.ensure(&fewer).await.unwrap();
    assert_eq!(network.counters(&gone.tap).await.unwrap(), None);
    assert!(
        network
            .counters(&fewer.ports[0].tap)
            .await
            .unwrap()
            .is_some()
    );
    network.ensure(state).await.unwrap();
    let counters = network.counters(&gone.tap).await.unwrap();
    assert_eq!(counters, Some(PortCounters::default()));
}

/// Each rule of a guest has a counter, from zero on; those of other guests and removed ones have none.
pub async fn every_rule_of_a_firewall_is_counted(network: &dyn GuestNetwork, state: &NetworkState) {
    let mut filtered = state.clone();
    let rules = ["in allow tcp 22", "in allow tcp 80-90"].map(|words| port_rule(words, None));
    let zeros: BTreeMap<_, _> = rules.iter().map(|rule| (rule.id, 0)).collect();
    filtered.ports[0].firewall.rules = rules.to_vec();
    for _ in 0..2 {
        network.ensure(&filtered).await.unwrap();
        for (index, port) in filtered.ports.iter().enumerate() {
            let counters = network.counters(&port.tap).await.unwrap().unwrap();
            let expected = if index == 0 {
                zeros.clone()
            } else {
                BTreeMap::new()
            };
            assert_eq!(counters.firewall.rules, expected);
        }
    }
    network.ensure(state).await.unwrap();
    let counters = network.counters(&state.ports[0].tap).await.unwrap();
    assert_eq!(counters, Some(PortCounters::default()));
}

/// Each contradiction is refused with that error, and the previous state stays in force.
pub async fn contradictions_are_refused_and_change_nothing(
    network: &dyn GuestNetwork,
    state: &NetworkState,
) {
    network.ensure(state).await.unwrap();
    let mut fewer = state.clone();
    fewer.ports.truncate(1);
    network.ensure(&fewer).await.unwrap();
    let absent = &state.ports[1].tap;

    let contradictions: [(&str, Contradiction); 7] = [
        ("one MAC on two ports", |s| {
            s.ports[1].mac = s.ports[0].mac;
        }),
        ("one address on two ports", |s| {
            s.ports[1].address = s.ports[0].address;
        }),
        ("the gateway's address", |s| s.ports[1].address = s.gateway),
        ("the gateway's MAC", |s| s.ports[1].mac = s.gateway_mac),
        ("an address outside", |s| {
            s.ports[1].address = [192, 0, 2, 1].into();
        }),
        ("a gateway outside", |s| s.gateway = [192, 0, 2, 1].into()),
        ("the lease of another port as a further address", |s| {
            s.ports[1].allow_addresses =
                vec![IpNet::from(std::net::IpAddr::V4(s.ports[0].address))];
        }),
    ];
    let on_a_lan: [(&str, Contradiction); 8] = [
        ("an identity for a port in a VLAN", |s| {
            s.lan[0].vlan = Some(20.try_into().unwrap());
            s.lan[0].identity = Some(crate::IDENTITIES.hosts().last().unwrap());
        }),
        ("one MAC on two ports", |s| s.lan[0].mac = s.ports[0].mac),
        ("one tap twice", |s| {
            s.lan[0].tap = s.ports[0].tap.clone();
        }),
        ("a bridge of waifud's own", |s| {
            s.lan[0].bridge.clone_from(&s.bridge);
        }),
        ("an invalid bridge name", |s| {
            s.lan[0].bridge = "br 0".into();
        }),
        ("one identity for two ports", |s| {
            let mut other = s.lan[0].clone();
            other.tap = waifud_types::TapName::of(other.instance, 7);
            other.mac = waifud_types::MacAddr::of_guest([9, 9, 9]);
            s.lan.push(other);
        }),
        ("an identity that is a port's address", |s| {
            s.lan[0].identity = Some(s.ports[0].address);
        }),
        ("all addresses as a source", |s| {
            s.lan[0].fixed = vec!["0.0.0.0/0".parse().unwrap()];
        }),
    ];
    let on_a_lan = on_a_lan.into_iter().filter(|_| !state.lan.is_empty());
    for (what, contradict) in contradictions.into_iter().chain(on_a_lan) {
        let mut contradictory = state.clone();
        contradict(&mut contradictory);
        let error = network.ensure(&contradictory).await.unwrap_err();
        assert!(
            matches!(error, NetworkError::Contradiction(_)),
            "{what}: {error}"
        );
        assert_eq!(network.counters(absent).await.unwrap(), None, "{what}");
    }
    network.ensure(state).await.unwrap();
}

/// One observation covers all ports of the state in force, none of which has requested its lease yet.
pub async fn every_port_and_no_other_is_observed(network: &dyn GuestNetwork, state: &NetworkState) {
    network.ensure(state).await.unwrap();
    let observations = network.observe_ports().await.unwrap();
    assert_eq!(observations.len(), state.ports.len() + state.lan.len());
    let taps = state.ports.iter().map(|port| &port.tap);
    for tap in taps.chain(state.lan.iter().map(|port| &port.tap)) {
        assert_eq!(observations[tap], PortObservation::default());
    }
    network.ensure_absent().await.unwrap();
    assert!(network.observe_ports().await.unwrap().is_empty());
}

/// Our own subnet is not reported as something that the host already routes; our bridge is one of its bridges.
pub async fn own_bridge_and_subnet_are_not_host_facts(
    network: &dyn GuestNetwork,
    state: &NetworkState,
) {
    network.ensure(state).await.unwrap();
    let facts = network.host_facts().await.unwrap();
    assert!(!facts.routes.contains(&state.subnet), "{:?}", facts.routes);
    assert!(facts.bridges.contains(&state.bridge), "{:?}", facts.bridges);
    let bridges = network.bridges().await.unwrap();
    assert_eq!(bridges.all, facts.bridges);
    assert_eq!(bridges.vlan_aware, facts.vlan_bridges);
    let mut aware = facts.vlan_bridges.iter();
    assert!(aware.all(|name| facts.bridges.contains(name)), "{facts:?}");
}

/// A port in a VLAN has no connection on a bridge that does not tell VLANs apart, and the reason says what to do. Its counters exist
/// anyway, and other ports are not affected.
pub async fn a_port_in_a_vlan_needs_a_vlan_aware_bridge(
    network: &dyn GuestNetwork,
    state: &NetworkState,
) {
    let mut with = state.clone();
    let Some(port) = with.lan.first_mut() else {
        return;
    };
    port.vlan = Some(20.try_into().unwrap());
    port.identity = None;
    let (tap, bridge) = (port.tap.clone(), port.bridge.clone());
    for _ in 0..2 {
        network.ensure(&with).await.unwrap();
        let aware = network.host_facts().await.unwrap().vlan_bridges;
        let observations = network.observe_ports().await.unwrap();
        for (other, observation) in &observations {
            assert_eq!(observation.counters, PortCounters::default());
            match &observation.trouble {
                None => assert!(*other != tap || aware.contains(&bridge), "{other}"),
                Some(why) => {
                    assert!(*other == tap && !aware.contains(&bridge), "{why}");
                    let remedy = format!("ip link set {bridge} type bridge vlan_filtering 1");
                    assert!(why.contains(&remedy), "{why}");
                }
            }
        }
        assert_eq!(observations.len(), with.ports.len() + with.lan.len());
    }
    network.ensure(state).await.unwrap();
    network.ensure_absent().await.unwrap();
}

/// A subnet of another node that overlaps this node's own is reported with the reason, and affects nothing else.
pub async fn other_nodes_subnets_in_conflict_are_left_out(
    network: &dyn GuestNetwork,
    state: &NetworkState,
) {
    let mut wrong = remote(2);
    wrong.subnet = state.subnet;
    let with = NetworkState {
        remote_subnets: vec![wrong, remote(3)],
        ..state.clone()
    };
    network.ensure(&with).await.unwrap();
    let refused = network.host_facts().await.unwrap().refused_subnets;
    assert_eq!(refused.keys().collect::<Vec<_>>(), [&state.subnet]);
    assert!(refused[&state.subnet].contains("node-2"), "{refused:?}");
    network.ensure(state).await.unwrap();
    let refused = network.host_facts().await.unwrap().refused_subnets;
    assert!(refused.is_empty(), "{refused:?}");
}

/// Removal is idempotent as well, and a later `ensure` starts from the beginning.
pub async fn absence_can_be_ensured_at_any_time(network: &dyn GuestNetwork, state: &NetworkState) {
    network.ensure(state).await.unwrap();
    for _ in 0..2 {
        network.ensure_absent().await.unwrap();
        for port in &state.ports {
            assert_eq!(network.counters(&port.tap).await.unwrap(), None);
        }
        let facts = network.host_facts().await.unwrap();
        assert!(!facts.bridges.contains(&state.bridge));
    }
    network.ensure(state).await.unwrap();
    network.ensure_absent().await.unwrap();
}
