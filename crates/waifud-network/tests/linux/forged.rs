//! One test for each rule of guests' ports: a forged frame is dropped and counted, and a valid one passes.
//!
//! The tests need no timeouts to show that a frame is dropped. They send a valid frame after the forged one through the
//! same port. When the valid frame arrives behind the bridge, the forged one would have arrived before it.

use std::net::Ipv4Addr;

use waifud_network::PortCounters;

use crate::frames::{
    ARP, BROADCAST, IPV4, IPV6, Mac, VLAN, arp, contains, dhcp, echo, ethernet, ipv4, udp,
};
use crate::lab::{GATEWAY, GATEWAY_MAC, Guest, Lab, on_a_node, port, with_a_guest};
use crate::wire::Wire;

const FORGED: &[u8] = b"a forged frame";
const VALID: &[u8] = b"a valid frame";
const NEIGHBOR: Ipv4Addr = Ipv4Addr::new(10, 144, 1, 12);
const NEIGHBOR_MAC: Mac = [0x52, 0x54, 0, 0, 0, 2];
const STRANGER_MAC: Mac = [0x52, 0x54, 0, 0, 0x77, 0x77];

#[derive(Clone, Copy)]
enum Counted {
    AsSpoofed,
    AsNotIpv4,
    AsNothing,
}

fn valid(guest: &Guest) -> Vec<u8> {
    let packet = ipv4(guest.address(), GATEWAY, 1, &echo(VALID));
    ethernet(GATEWAY_MAC, guest.mac(), IPV4, &packet)
}

/// Sends `forged` from the first guest and expects it to be dropped.
async fn is_dropped(lab: &Lab, guest: &Guest, forged: &[u8], marker: &[u8], how: Counted) {
    let behind = Wire::new(&lab.node, &lab.state.bridge);
    let before = lab.counters(&guest.port.tap).await;
    guest.wire.send(forged);
    guest.wire.send(&valid(guest));
    let seen = behind.until("the valid frame", |frame| contains(frame, VALID));
    assert!(
        !seen.iter().any(|frame| contains(frame, marker)),
        "the forged frame passed"
    );
    let mut expected = before;
    match how {
        Counted::AsSpoofed => expected.spoofed += 1,
        Counted::AsNotIpv4 => expected.not_ipv4 += 1,
        Counted::AsNothing => {}
    }
    assert_eq!(lab.counters(&guest.port.tap).await, expected);
}

fn forged_frame_is_dropped(how: Counted, forge: fn(&Guest) -> Vec<u8>) {
    with_a_guest(2, move |lab, guest| async move {
        is_dropped(&lab, &guest, &forge(&guest), FORGED, how).await;
    });
}

fn own_ipv4(guest: &Guest, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4(guest.address(), GATEWAY, protocol, payload)
}

/// An echo request to the gateway from these addresses.
fn to_gateway(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let packet = ipv4(address, GATEWAY, 1, &echo(FORGED));
    ethernet(GATEWAY_MAC, mac, IPV4, &packet)
}

#[test]
fn a_guest_may_send_with_its_own_mac_and_address() {
    with_a_guest(2, |lab, guest| async move {
        let behind = Wire::new(&lab.node, &lab.state.bridge);
        guest.wire.send(&valid(&guest));
        behind.until("the valid frame", |frame| contains(frame, VALID));
        // It is answered, after the gateway has resolved the MAC address.
        guest.wire.until("the answer", |frame| {
            contains(frame, VALID) && frame[..6] == guest.mac()
        });
        assert_eq!(lab.counters(&guest.port.tap).await, PortCounters::default());
    });
}

/// Shows that the rules drop the frames in the other tests: without rules, they arrive.
#[test]
fn without_rules_the_forged_frames_would_pass() {
    with_a_guest(2, |lab, guest| async move {
        lab.node.tool("nft", &["flush", "ruleset"]);
        let behind = Wire::new(&lab.node, &lab.state.bridge);
        let packet = own_ipv4(&guest, 1, &echo(FORGED));
        let neighbors = ipv4(NEIGHBOR, GATEWAY, 1, &echo(FORGED));
        let tagged = [&[0, 7, 8, 0], packet.as_slice()].concat();
        let claim = arp(2, (guest.mac(), NEIGHBOR), (GATEWAY_MAC, GATEWAY));
        let answer = ipv4(
            guest.address(),
            Ipv4Addr::BROADCAST,
            17,
            &udp(67, 68, FORGED),
        );
        for (from, kind, payload) in [
            (STRANGER_MAC, IPV4, &packet),
            (guest.mac(), IPV4, &neighbors),
            (guest.mac(), VLAN, &tagged),
            (guest.mac(), ARP, &claim),
            (guest.mac(), IPV4, &answer),
            (guest.mac(), IPV6, &FORGED.to_vec()),
        ] {
            guest.wire.send(&ethernet(GATEWAY_MAC, from, kind, payload));
            // The kernel removes tags before packet sockets receive the frame.
            let tail = &payload[payload.len().saturating_sub(14)..];
            behind.until("the forged frame", |frame| contains(frame, tail));
        }
    });
}

/// Every kernel reports its multicast groups before it has an address (RFC 3376, section 4.2.13). These reports do not
/// affect other machines, and counting them would cause false alarms.
#[test]
fn group_reports_without_an_address_are_dropped_and_not_counted_as_spoofed() {
    forged_frame_is_dropped(Counted::AsNothing, |guest| {
        let all_routers = [224, 0, 0, 22].into();
        let packet = ipv4(Ipv4Addr::UNSPECIFIED, all_routers, 2, FORGED);
        ethernet([1, 0, 0x5e, 0, 0, 22], guest.mac(), IPV4, &packet)
    });
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        to_gateway(guest.mac(), Ipv4Addr::UNSPECIFIED)
    });
}

#[test]
fn an_unassigned_mac_address_is_dropped() {
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        to_gateway(STRANGER_MAC, guest.address())
    });
}

#[test]
fn a_neighbors_mac_is_dropped() {
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        to_gateway(NEIGHBOR_MAC, guest.address())
    });
}

#[test]
fn an_unassigned_ip_address_is_dropped() {
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        to_gateway(guest.mac(), [203, 0, 113, 9].into())
    });
}

#[test]
fn a_neighbors_address_is_dropped() {
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        to_gateway(guest.mac(), NEIGHBOR)
    });
}

#[test]
fn the_gateways_address_is_dropped() {
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        let packet = ipv4(GATEWAY, NEIGHBOR, 1, &echo(FORGED));
        ethernet(GATEWAY_MAC, guest.mac(), IPV4, &packet)
    });
}

#[test]
fn packets_without_an_address_are_dropped_unless_they_are_dhcp_requests() {
    forged_frame_is_dropped(Counted::AsSpoofed, |guest| {
        let packet = ipv4(
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            17,
            &udp(68, 69, FORGED),
        );
        ethernet(BROADCAST, guest.mac(), IPV4, &packet)
    });
}

#[test]
fn arp_with_a_neighbors_address_is_dropped() {
    with_a_guest(2, |lab, guest| async move {
        for operation in [1, 2] {
            let claim = arp(operation, (guest.mac(), NEIGHBOR), (GATEWAY_MAC, GATEWAY));
            let frame = ethernet(BROADCAST, guest.mac(), ARP, &claim);
            is_dropped(&lab, &guest, &frame, &claim, Counted::AsSpoofed).await;
        }
    });
}

#[test]
fn arp_with_the_gateways_address_is_dropped() {
    with_a_guest(2, |lab, guest| async move {
        let claim = arp(2, (guest.mac(), GATEWAY), (NEIGHBOR_MAC, NEIGHBOR));
        let frame = ethernet(BROADCAST, guest.mac(), ARP, &claim);
        is_dropped(&lab, &guest, &frame, &claim, Counted::AsSpoofed).await;
    });
}

#[test]
fn arp_with_a_wrong_senders_mac_is_dropped() {
    with_a_guest(2, |lab, guest| async move {
        let claim = arp(2, (STRANGER_MAC, guest.address()), (GATEWAY_MAC, GATEWAY));
        let frame = ethernet(GATEWAY_MAC, guest.mac(), ARP, &claim);
        is_dropped(&lab, &guest, &frame, &claim, Counted::AsSpoofed).await;
    });
}

#[test]
fn arp_with_unusual_header_fields_is_dropped() {
    with_a_guest(2, |lab, guest| async move {
        let valid = arp(1, (guest.mac(), guest.address()), ([0; 6], GATEWAY));
        // Hardware type, protocol type, both lengths, operation.
        for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 3)] {
            let mut odd = valid.clone();
            odd[at] = value;
            let frame = ethernet(BROADCAST, guest.mac(), ARP, &odd);
            is_dropped(&lab, &guest, &frame, &odd, Counted::AsSpoofed).await;
        }
        let behind = Wire::new(&lab.node, &lab.state.bridge);
        guest
            .wire
            .send(&ethernet(BROADCAST, guest.mac(), ARP, &valid));
        behind.until("valid ARP", |frame| contains(frame, &valid));
    });
}

#[test]
fn a_probe_for_an_address_in_use_passes() {
    with_a_guest(2, |lab, guest| async move {
        let behind = Wire::new(&lab.node, &lab.state.bridge);
        // An ARP probe has no sender address (RFC 5227, section 2.1.1).
        let probe = arp(
            1,
            (guest.mac(), Ipv4Addr::UNSPECIFIED),
            ([0; 6], guest.address()),
        );
        guest
            .wire
            .send(&ethernet(BROADCAST, guest.mac(), ARP, &probe));
        behind.until("the probe", |frame| contains(frame, &probe));
        // A reply without a sender address is not a probe.
        let answer = arp(
            2,
            (guest.mac(), Ipv4Addr::UNSPECIFIED),
            (GATEWAY_MAC, GATEWAY),
        );
        let frame = ethernet(GATEWAY_MAC, guest.mac(), ARP, &answer);
        is_dropped(&lab, &guest, &frame, &answer, Counted::AsSpoofed).await;
    });
}

#[test]
fn ipv6_is_dropped_and_not_counted_as_spoofed() {
    forged_frame_is_dropped(Counted::AsNotIpv4, |guest| {
        let mut packet = vec![0x60, 0, 0, 0, 0, 14, 59, 64];
        packet.resize(40, 0xfe);
        packet.extend(FORGED);
        ethernet([0x33, 0x33, 0, 0, 0, 1], guest.mac(), IPV6, &packet)
    });
}

#[test]
fn frames_with_a_vlan_tag_are_dropped_regardless_of_their_contents() {
    with_a_guest(2, |lab, guest| async move {
        let packet = own_ipv4(&guest, 1, &echo(FORGED));
        let question = arp(1, (guest.mac(), guest.address()), ([0; 6], GATEWAY));
        let q_in_q: &[u8] = &[&[0, 7, 0x81, 0, 0, 8, 8, 0], packet.as_slice()].concat();
        for (kind, tagged, marker) in [
            (VLAN, [&[0, 7, 8, 0], packet.as_slice()].concat(), FORGED),
            (VLAN, [&[0, 0, 8, 0], packet.as_slice()].concat(), FORGED),
            (0x88a8, [&[0, 7, 8, 0], packet.as_slice()].concat(), FORGED),
            (VLAN, q_in_q.to_vec(), FORGED),
            (
                VLAN,
                [&[0, 7, 8, 6], question.as_slice()].concat(),
                &question,
            ),
        ] {
            let frame = ethernet(GATEWAY_MAC, guest.mac(), kind, &tagged);
            is_dropped(&lab, &guest, &frame, marker, Counted::AsNotIpv4).await;
        }
    });
}

#[test]
fn other_protocols_are_dropped() {
    // PPPoE discovery, 802.1X, Realtek's loop detection.
    for kind in [0x8863, 0x888e, 0x8899] {
        with_a_guest(2, move |lab, guest| async move {
            let frame = ethernet(BROADCAST, guest.mac(), kind, FORGED);
            is_dropped(&lab, &guest, &frame, FORGED, Counted::AsNotIpv4).await;
        });
    }
}

#[test]
fn a_guest_cannot_act_as_a_dhcp_server() {
    with_a_guest(2, |lab, guest| async move {
        for to in [68, 67, 1024] {
            let packet = ipv4(
                guest.address(),
                Ipv4Addr::BROADCAST,
                17,
                &udp(67, to, FORGED),
            );
            let frame = ethernet(BROADCAST, guest.mac(), IPV4, &packet);
            is_dropped(&lab, &guest, &frame, FORGED, Counted::AsSpoofed).await;
        }
    });
}

#[test]
fn dhcp_requests_with_another_clients_mac_address_are_dropped() {
    with_a_guest(2, |lab, guest| async move {
        // Decline, release and discover messages in the neighbor's name: without an address and from the own address.
        for kind in [1, 4, 7] {
            for from in [Ipv4Addr::UNSPECIFIED, guest.address()] {
                let message = dhcp(kind, NEIGHBOR_MAC, FORGED);
                let packet = ipv4(from, Ipv4Addr::BROADCAST, 17, &udp(68, 67, &message));
                let frame = ethernet(BROADCAST, guest.mac(), IPV4, &packet);
                is_dropped(&lab, &guest, &frame, FORGED, Counted::AsSpoofed).await;
            }
        }
        // Truncated before the MAC address that it claims.
        let packet = ipv4(guest.address(), GATEWAY, 17, &udp(68, 67, FORGED));
        let frame = ethernet(BROADCAST, guest.mac(), IPV4, &packet);
        is_dropped(&lab, &guest, &frame, FORGED, Counted::AsSpoofed).await;
    });
}

#[test]
fn all_packets_of_an_unknown_port_are_dropped() {
    with_a_guest(2, |mut lab, guest| async move {
        // In no state, although its name has our prefix and its MAC address and IP address would be valid.
        let unlisted = lab.attach_as(&port(9)).await;
        lab.state.ports.push(port(9));
        let behind = Wire::new(&lab.node, &lab.state.bridge);
        let packet = ipv4(unlisted.address(), GATEWAY, 1, &echo(FORGED));
        unlisted
            .wire
            .send(&ethernet(GATEWAY_MAC, unlisted.mac(), IPV4, &packet));
        let question = arp(1, (unlisted.mac(), unlisted.address()), ([0; 6], GATEWAY));
        unlisted
            .wire
            .send(&ethernet(BROADCAST, unlisted.mac(), ARP, &question));
        let unknown = || {
            let list = ["list", "counter", "bridge", "waifud", "unknown-port"];
            lab.node.tool("nft", &list)
        };
        // Another port has another queue, so the test waits for the counter instead of the other port's frame.
        crate::wire::eventually("two frames of an unknown port", || {
            unknown().contains("packets 2 ")
        });
        guest.wire.send(&valid(&guest));
        let seen = behind.until("the valid frame", |frame| contains(frame, VALID));
        assert!(!seen.iter().any(|frame| contains(frame, FORGED)));
        assert!(!seen.iter().any(|frame| contains(frame, &question)));
        // The port is known from now on.
        lab.ensure().await;
        unlisted.wire.send(&valid(&unlisted));
        behind.until("the valid frame", |frame| {
            contains(frame, VALID) && frame[6..12] == unlisted.mac()
        });
    });
}

#[test]
fn packets_from_additional_addresses_of_a_guest_pass() {
    on_a_node(2, |mut lab| async move {
        lab.state.ports[0].allow_addresses = vec![
            "10.99.0.0/24".parse().unwrap(),
            "10.144.1.200/32".parse().unwrap(),
        ];
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let neighbor = lab.attach(1).await;
        let behind = Wire::new(&lab.node, &lab.state.bridge);
        for from in [[10, 99, 0, 77], [10, 144, 1, 200]] {
            let packet = ipv4(from.into(), GATEWAY, 1, &echo(VALID));
            guest
                .wire
                .send(&ethernet(GATEWAY_MAC, guest.mac(), IPV4, &packet));
            behind.until("a further address", |frame| {
                contains(frame, VALID) && frame[26..30] == from
            });
            let claim = arp(2, (guest.mac(), from.into()), (GATEWAY_MAC, GATEWAY));
            guest
                .wire
                .send(&ethernet(GATEWAY_MAC, guest.mac(), ARP, &claim));
            behind.until("ARP of a further address", |frame| contains(frame, &claim));

            let packet = ipv4(from.into(), GATEWAY, 1, &echo(FORGED));
            let frame = ethernet(GATEWAY_MAC, neighbor.mac(), IPV4, &packet);
            is_dropped(&lab, &neighbor, &frame, FORGED, Counted::AsSpoofed).await;
        }
        // Replies are routed: the range leads to the guest.
        let route = lab.node.ip("route get 10.99.0.77");
        assert!(route.contains("via 10.144.1.11 dev waifu0"), "{route}");
    });
}
