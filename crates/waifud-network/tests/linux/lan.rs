//! Guests on a bridge of the host: learned addresses, their persistence, and changes of the bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use waifud_network::{GuestNetwork, conformance};

use crate::frames::{IPV4, IPV6, Mac, contains, echo, ethernet, ipv4, ipv6, neighbor};
use crate::home::{
    Home, LanGuest, NODE, ROUTER, ROUTER_MAC, forwards, lan_port, learned, learned_by_kernel,
};
use crate::lab::{Lab, on_a_node, set_bridge_netfilter};
use crate::lifecycle::{drifts, host};
use crate::wire::{eventually, ping};

const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x40);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const SOLICIT: u8 = 135;
const ADVERT: u8 = 136;

/// A home behind `br0`, and a node with this number of ports on it, none of them attached.
async fn at_home(lab: &mut Lab, guests: u8) -> Home {
    let home = Home::new(lab, "br0", true).await;
    lab.state.lan = (0..guests).map(|index| lan_port(index, "br0")).collect();
    lab.ensure().await;
    home
}

/// A home with two guests.
async fn two_at_home(lab: &mut Lab) -> (Home, LanGuest, LanGuest) {
    let home = at_home(lab, 2).await;
    let one = LanGuest::attach(lab, 0).await;
    let other = LanGuest::attach(lab, 1).await;
    (home, one, other)
}

fn asks_whether_taken(guest: &LanGuest, address: Ipv6Addr) {
    let packet = ipv6(
        Ipv6Addr::UNSPECIFIED,
        ALL_NODES,
        58,
        &neighbor(SOLICIT, address),
    );
    send6(&guest.wire, guest.mac(), &packet);
}

fn send6(wire: &crate::wire::Wire, from: Mac, packet: &[u8]) {
    wire.send(&ethernet([0x33, 0x33, 0, 0, 0, 1], from, IPV6, packet));
}

/// Sends a valid frame from the guest; its arrival shows that all frames before it were processed.
fn is_through(home: &Home, guest: &LanGuest) {
    let packet = ipv6(
        Ipv6Addr::UNSPECIFIED,
        ALL_NODES,
        58,
        &[133, 0, 0, 0, 0, 0, 0, 0, 0x77],
    );
    home.wire.seen();
    send6(&guest.wire, guest.mac(), &packet);
    home.wire
        .until("a router solicitation", |frame| contains(frame, &packet));
}

/// The same in the other direction.
fn has_arrived(home: &Home, guest: &LanGuest) {
    let packet = ipv4(ROUTER, OWN, 1, &echo(b"the last of them"));
    guest.wire.seen();
    home.wire
        .send(&ethernet(guest.mac(), ROUTER_MAC, IPV4, &packet));
    guest.wire.until("the router's frame", |frame| {
        contains(frame, b"the last of them")
    });
}

#[test]
fn the_linux_network_with_ports_on_a_lan_passes_the_conformance_tests() {
    on_a_node(3, |mut lab| async move {
        let _home = Home::new(&lab, "br0", true).await;
        lab.state.lan = vec![lan_port(0, "br0"), lan_port(1, "br0")];
        conformance::all(lab.network.as_ref(), &lab.state).await;
    });
}

#[test]
fn the_lans_dhcp_server_serves_a_guest_and_its_address_is_learned() {
    on_a_node(0, |mut lab| async move {
        let home = at_home(&mut lab, 2).await;
        let guest = LanGuest::attach(&lab, 0).await;
        let server = crate::dhcp::Server::start(&home.namespace, ROUTER);
        let given = crate::dhcp::lease_on_a_lan(&guest.wire, guest.mac(), ROUTER);
        drop(server);
        assert_eq!(learned(&lab, &guest.port.tap).await, [IpAddr::V4(given)]);
        assert!(learned(&lab, &lab.state.lan[1].tap).await.is_empty());
        guest.takes(given);
        ping(&guest.namespace, ROUTER);
        ping(&home.namespace, given);
        // The host is reachable too: its own firewall decides about packets from its network.
        ping(&guest.namespace, NODE);
        assert_eq!(
            lab.counters(&guest.port.tap).await,
            waifud_network::PortCounters::default()
        );
    });
}

#[test]
fn the_later_of_two_leases_is_in_use_and_the_earlier_one_ends_after_an_hour() {
    on_a_node(0, |mut lab| async move {
        let home = at_home(&mut lab, 1).await;
        let guest = LanGuest::attach(&lab, 0).await;
        let (day, hour, later) = ([192, 168, 1, 10], [192, 168, 1, 11], [192, 168, 1, 20]);
        guest.is_given(&lab, &home, later.into());
        for (address, left) in [(day, "29d"), (hour, "29d23h50m")] {
            let number = u32::from_be_bytes(address);
            let element = format!(
                "{{ \"{}\" . {number:#x} timeout 30d expires {left} }}",
                guest.port.tap
            );
            let add = ["add", "element", "bridge", "waifud", "learned4", &element];
            lab.node.tool("nft", &add);
        }
        let expected = [later, hour].map(|address| IpAddr::V4(address.into()));
        assert_eq!(learned(&lab, &guest.port.tap).await, expected);
        // Reloaded rules contain the same addresses and no expired ones.
        lab.node.tool("nft", &["flush", "ruleset"]);
        lab.ensure().await;
        assert_eq!(learned(&lab, &guest.port.tap).await, expected);
        assert_eq!(learned_by_kernel(&lab, &guest.port.tap).len(), 2);
    });
}

#[test]
fn guests_on_one_lan_reach_each_other_also_with_br_netfilter() {
    for bridge_netfilter in [false, true] {
        on_a_node(0, |mut lab| async move {
            if !set_bridge_netfilter(&lab.node, bridge_netfilter) {
                return;
            }
            let (home, one, other) = two_at_home(&mut lab).await;
            one.is_given(&lab, &home, OWN);
            other.is_given(&lab, &home, [192, 168, 1, 41].into());
            ping(&one.namespace, [192, 168, 1, 41].into());
            ping(&other.namespace, ROUTER);
        });
    }
}

#[test]
fn answers_to_other_mac_addresses_and_reserved_addresses_are_not_learned() {
    on_a_node(0, |mut lab| async move {
        let (home, one, other) = two_at_home(&mut lab).await;
        let second = Ipv4Addr::new(192, 168, 1, 41);
        one.is_given(&lab, &home, OWN);
        home.gives([0x52, 0x54, 0, 9, 9, 9], [192, 168, 1, 99].into());
        // Addresses of another port and of the host, and addresses with a special meaning.
        for taken in [
            OWN,
            NODE,
            Ipv4Addr::UNSPECIFIED,
            [127, 0, 0, 1].into(),
            [169, 254, 169, 254].into(),
            [224, 0, 0, 1].into(),
            [240, 119, 0, 2].into(),
        ] {
            home.gives(other.mac(), taken);
        }
        other.is_given(&lab, &home, second);
        assert_eq!(learned(&lab, &one.port.tap).await, [IpAddr::V4(OWN)]);
        assert_eq!(learned(&lab, &other.port.tap).await, [IpAddr::V4(second)]);
        // The first port keeps its address when it requests it again.
        home.gives(one.mac(), OWN);
        has_arrived(&home, &one);
        assert_eq!(learned(&lab, &one.port.tap).await, [IpAddr::V4(OWN)]);
    });
}

#[test]
fn a_configured_address_is_allowed_without_learning_and_never_learned_elsewhere() {
    on_a_node(0, |mut lab| async move {
        let home = Home::new(&lab, "br0", true).await;
        lab.state.lan = vec![lan_port(0, "br0"), lan_port(1, "br0")];
        lab.state.lan[0].fixed = vec!["192.168.1.40/32".parse().unwrap()];
        lab.ensure().await;
        let (one, other) = (
            LanGuest::attach(&lab, 0).await,
            LanGuest::attach(&lab, 1).await,
        );
        one.takes(OWN);
        ping(&one.namespace, ROUTER);
        home.gives(other.mac(), OWN);
        has_arrived(&home, &other);
        assert!(learned_by_kernel(&lab, &other.port.tap).is_empty());
    });
}

#[test]
fn an_ipv6_address_belongs_to_the_first_port_that_claims_it() {
    on_a_node(0, |mut lab| async move {
        let (home, one, other) = two_at_home(&mut lab).await;
        asks_whether_taken(&one, OWN6);
        is_through(&home, &one);
        asks_whether_taken(&other, OWN6);
        is_through(&home, &other);
        assert_eq!(learned(&lab, &one.port.tap).await, [IpAddr::V6(OWN6)]);
        assert!(learned(&lab, &other.port.tap).await.is_empty());
        // It may send from this address and from the link-local address derived from its MAC address.
        for from in [OWN6, "fe80::5054:ff:fe00:101".parse().unwrap()] {
            let packet = ipv6(from, ALL_NODES, 58, &neighbor(ADVERT, from));
            home.wire.seen();
            send6(&one.wire, one.mac(), &packet);
            home.wire
                .until("its advertisement", |frame| contains(frame, &packet));
        }
    });
}

#[test]
fn an_ipv6_address_that_another_machine_defends_is_not_learned() {
    on_a_node(0, |mut lab| async move {
        let home = at_home(&mut lab, 1).await;
        let guest = LanGuest::attach(&lab, 0).await;
        asks_whether_taken(&guest, OWN6);
        is_through(&home, &guest);
        let defense = ipv6(OWN6, ALL_NODES, 58, &neighbor(ADVERT, OWN6));
        send6(&home.wire, ROUTER_MAC, &defense);
        has_arrived(&home, &guest);
        assert!(learned(&lab, &guest.port.tap).await.is_empty());
    });
}

#[test]
fn the_number_of_ipv6_addresses_learned_at_a_port_is_limited() {
    on_a_node(0, |mut lab| async move {
        let home = at_home(&mut lab, 2).await;
        let (greedy, other) = (
            LanGuest::attach(&lab, 0).await,
            LanGuest::attach(&lab, 1).await,
        );
        for last in 0..200 {
            asks_whether_taken(&greedy, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, last));
        }
        is_through(&home, &greedy);
        let count = learned(&lab, &greedy.port.tap).await.len();
        assert!((10..=40).contains(&count), "{count}");
        asks_whether_taken(&other, OWN6);
        is_through(&home, &other);
        assert_eq!(learned(&lab, &other.port.tap).await, [IpAddr::V6(OWN6)]);
    });
}

#[test]
fn learned_addresses_survive_new_rules_a_restart_and_a_flush() {
    on_a_node(1, |mut lab| async move {
        let home = at_home(&mut lab, 2).await;
        let guest = LanGuest::attach(&lab, 0).await;
        guest.is_given(&lab, &home, OWN);
        asks_whether_taken(&guest, OWN6);
        is_through(&home, &guest);
        let all = [IpAddr::V4(OWN), IpAddr::V6(OWN6)];
        assert_eq!(learned(&lab, &guest.port.tap).await, all);
        // Rules are replaced.
        lab.state.ports[0].allow_addresses = vec!["10.99.0.1/32".parse().unwrap()];
        lab.ensure().await;
        assert_eq!(learned_by_kernel(&lab, &guest.port.tap), all);
        // Learning changes no rule, so neither this adapter nor its successor loads rules again.
        let rules = lab.ruleset_without_elements();
        lab.ensure().await;
        let heir = lab.restarted();
        heir.ensure(&lab.state).await.unwrap();
        assert_eq!(lab.ruleset_without_elements(), rules);
        // An administrator restarts the host's firewall.
        lab.node.tool("nft", &["flush", "ruleset"]);
        let heir = lab.restarted();
        heir.ensure(&lab.state).await.unwrap();
        assert_eq!(learned_by_kernel(&lab, &guest.port.tap), all);
        ping(&guest.namespace, ROUTER);
        // When a port is removed, its learned addresses are removed too.
        let port = lab.state.lan.remove(0);
        heir.ensure(&lab.state).await.unwrap();
        lab.state.lan.insert(0, port);
        heir.ensure(&lab.state).await.unwrap();
        assert!(learned_by_kernel(&lab, &guest.port.tap).is_empty());
    });
}

#[test]
fn a_missing_bridge_is_reported_and_does_not_affect_other_guests() {
    on_a_node(1, |mut lab| async move {
        let home = Home::new(&lab, "br0", true).await;
        lab.state.lan = vec![lan_port(0, "br0"), lan_port(1, "br9")];
        lab.ensure().await;
        let observations = lab.network.observe_ports().await.unwrap();
        let trouble = |index: usize| observations[&lab.state.lan[index].tap].trouble.clone();
        assert_eq!(trouble(0), None);
        assert_eq!(trouble(1).as_deref(), Some("this node has no bridge br9"));
        let guest = LanGuest::attach(&lab, 0).await;
        guest.is_given(&lab, &home, OWN);
        ping(&guest.namespace, ROUTER);
    });
}

#[test]
fn a_bridge_that_was_created_again_gets_its_ports_back() {
    on_a_node(0, |mut lab| async move {
        lab.connect_metadata().await;
        let home = at_home(&mut lab, 1).await;
        let guest = LanGuest::attach(&lab, 0).await;
        guest.is_given(&lab, &home, OWN);
        let mut drift = lab.network.drift();
        lab.node.ip("link del br0");
        drifts(&mut drift, "return routes").await;
        lab.ensure().await;
        lab.node.ip("link add br0 type bridge");
        lab.node.ip("link set br0 up");
        lab.node.ip("link set cbr0 master br0");
        drifts(&mut drift, "").await;
        lab.ensure().await;
        let tap = &guest.port.tap;
        forwards(&lab, tap.as_str());
        forwards(&lab, "cbr0");
        let link = lab.node.ip(&format!("-d link show {tap}"));
        assert!(
            link.contains("master br0") && link.contains("isolated off"),
            "{link}"
        );
        ping(&guest.namespace, ROUTER);
        ping(&guest.namespace, crate::lab::METADATA);
    });
}

#[test]
fn removal_restores_a_host_with_a_lan() {
    on_a_node(1, |mut lab| async move {
        lab.connect_metadata().await;
        let _home = Home::new(&lab, "br0", true).await;
        let look = |lab: &Lab| {
            let neighbors = lab.node.ip("neigh show nud permanent");
            let forwards = lab.node.sysctl("ipv4/conf/br0/forwarding");
            host(lab) + &neighbors + &forwards
        };
        let before = look(&lab);
        lab.state.lan = vec![lan_port(0, "br0")];
        lab.ensure().await;
        assert_ne!(look(&lab), before);
        // Without ports of guests, the bridge is not monitored.
        let with_default_only = {
            lab.state.lan.clear();
            lab.ensure().await;
            lab.node.ip("rule")
                + &lab.node.ip("neigh show proxy dev br0")
                + &lab.node.sysctl("ipv4/conf/br0/forwarding")
        };
        assert!(
            !with_default_only.contains("240.119"),
            "{with_default_only}"
        );
        assert!(with_default_only.ends_with('0'), "{with_default_only}");
        lab.state.lan = vec![lan_port(0, "br0")];
        lab.ensure().await;
        lab.network.ensure_absent().await.unwrap();
        assert_eq!(look(&lab), before);
        eventually("the bridge is still there", || {
            lab.node.ip("link show br0").contains("br0")
        });
    });
}
