//! Ports on a bridge of the host: for each rule, a forged frame is dropped and counted.

use std::net::{Ipv4Addr, Ipv6Addr};

use waifud_network::PortCounters;

use crate::frames::{
    ARP, BROADCAST, IPV4, IPV6, Mac, VLAN, arp, contains, dhcp, echo, ethernet, icmpv6, ipv4, ipv6,
    neighbor, udp,
};
use crate::home::{Home, LanGuest, ROUTER, ROUTER_MAC, counters, lan_port, learned_by_kernel};
use crate::lab::{Lab, on_a_node};
use crate::wire::eventually;

const FORGED: &[u8] = b"a forged frame";
const VALID: &[u8] = b"a valid frame";
const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);
const NEIGHBOR: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 41);
const STRANGER_MAC: Mac = [0x52, 0x54, 0, 0, 0x77, 0x77];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x40);
const FOREIGN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

const REDIRECT: u8 = 137;
const ADVERT_OF_ROUTER: u8 = 134;
const SOLICIT: u8 = 135;
const ADVERT: u8 = 136;

struct Forged {
    what: &'static str,
    frame: Vec<u8>,
    counted: PortCounters,
}

fn spoofed(what: &'static str, frame: Vec<u8>) -> Forged {
    let counted = PortCounters {
        spoofed: 1,
        ..PortCounters::default()
    };
    Forged {
        what,
        frame,
        counted,
    }
}

fn multicast(payload: &[u8], from: Mac) -> Vec<u8> {
    ethernet([0x33, 0x33, 0, 0, 0, 1], from, IPV6, payload)
}

fn valid(guest: &LanGuest) -> Vec<u8> {
    let packet = ipv4(OWN, ROUTER, 1, &echo(VALID));
    ethernet(ROUTER_MAC, guest.mac(), IPV4, &packet)
}

/// Forged IPv4 and ARP packets of the guest whose assigned address is [`OWN`].
fn of_ipv4(mac: Mac) -> Vec<Forged> {
    let to_router =
        |from, payload: &[u8]| ethernet(ROUTER_MAC, mac, IPV4, &ipv4(from, ROUTER, 1, payload));
    let says = |operation, sender| {
        ethernet(
            BROADCAST,
            mac,
            ARP,
            &[&arp(operation, sender, (ROUTER_MAC, ROUTER))[..], FORGED].concat(),
        )
    };
    let datagram = |from, ports: (u16, u16), payload: &[u8]| {
        let packet = udp(ports.0, ports.1, payload);
        ethernet(
            BROADCAST,
            mac,
            IPV4,
            &ipv4(from, Ipv4Addr::BROADCAST, 17, &packet),
        )
    };
    let redirect = |kind: u8| [&[kind, 1, 0, 0, 192, 168, 1, 40], FORGED].concat();
    vec![
        spoofed(
            "an unassigned MAC address",
            ethernet(
                ROUTER_MAC,
                STRANGER_MAC,
                IPV4,
                &ipv4(OWN, ROUTER, 1, &echo(FORGED)),
            ),
        ),
        spoofed(
            "an unassigned address",
            to_router([192, 168, 1, 99].into(), &echo(FORGED)),
        ),
        spoofed("a neighbor's address", to_router(NEIGHBOR, &echo(FORGED))),
        spoofed("the router's address", to_router(ROUTER, &echo(FORGED))),
        spoofed(
            "an identity",
            to_router([240, 119, 0, 1].into(), &echo(FORGED)),
        ),
        spoofed(
            "metadata's address",
            to_router([169, 254, 169, 254].into(), &echo(FORGED)),
        ),
        spoofed(
            "the unspecified address",
            to_router(Ipv4Addr::UNSPECIFIED, &echo(FORGED)),
        ),
        spoofed("a redirect", to_router(OWN, &redirect(5))),
        spoofed("a router's advertisement", to_router(OWN, &redirect(9))),
        spoofed("ARP for the router", says(2, (mac, ROUTER))),
        spoofed("ARP for a neighbor", says(1, (mac, NEIGHBOR))),
        spoofed(
            "ARP with an unassigned MAC address",
            says(2, (STRANGER_MAC, OWN)),
        ),
        spoofed(
            "a reply without a sender address",
            says(2, (mac, Ipv4Addr::UNSPECIFIED)),
        ),
        spoofed("a DHCP server", datagram(OWN, (67, 68), FORGED)),
        spoofed("a DHCP relay", datagram(OWN, (67, 67), FORGED)),
        spoofed(
            "DHCP with another client's MAC address",
            datagram(OWN, (68, 67), &dhcp(7, STRANGER_MAC, FORGED)),
        ),
        spoofed(
            "DHCP from another guest's address",
            datagram(NEIGHBOR, (68, 67), &dhcp(7, mac, FORGED)),
        ),
        spoofed(
            "a packet without an address that is not a DHCP request",
            datagram(Ipv4Addr::UNSPECIFIED, (68, 69), FORGED),
        ),
    ]
}

/// Forged IPv6 packets of the guest with [`OWN6`], and frames of other protocols.
fn of_others(mac: Mac) -> Vec<Forged> {
    let says = |from, message: &[u8]| {
        multicast(&ipv6(from, ALL_NODES, 58, &[message, FORGED].concat()), mac)
    };
    let dhcp6 = ipv6(OWN6, ALL_NODES, 17, &udp(547, 546, FORGED));
    // A fragment header (RFC 8200, section 4.5) before destination options, which may hide an advertisement.
    let hidden = ipv6(
        OWN6,
        ALL_NODES,
        44,
        &[&[60, 0, 0, 1, 0, 0, 0, 1], FORGED].concat(),
    );
    // An advertisement after hop-by-hop options.
    let advert = icmpv6(ADVERT_OF_ROUTER, FORGED);
    let behind = ipv6(
        OWN6,
        ALL_NODES,
        0,
        &[&[58, 0, 1, 4, 0, 0, 0, 0], &advert[..]].concat(),
    );
    let other = |what, kind| {
        let counted = PortCounters {
            not_ipv4: 1,
            ..PortCounters::default()
        };
        let packet = [&[0, 7, 8, 0], &ipv4(OWN, ROUTER, 1, &echo(FORGED))[..]].concat();
        Forged {
            what,
            frame: ethernet(ROUTER_MAC, mac, kind, &packet),
            counted,
        }
    };
    vec![
        spoofed("an unused IPv6 address", says(FOREIGN6, &icmpv6(128, &[]))),
        spoofed(
            "another guest's link-local address",
            says("fe80::1".parse().unwrap(), &icmpv6(128, &[])),
        ),
        spoofed(
            "an IPv6 router",
            says(OWN6, &icmpv6(ADVERT_OF_ROUTER, &[64; 12])),
        ),
        spoofed("an IPv6 redirect", says(OWN6, &icmpv6(REDIRECT, &[0; 36]))),
        spoofed(
            "an advertisement of an unassigned address",
            says(OWN6, &neighbor(ADVERT, FOREIGN6)),
        ),
        spoofed(
            "an echo request without an IPv6 address",
            says(Ipv6Addr::UNSPECIFIED, &icmpv6(128, &[])),
        ),
        spoofed(
            "a solicitation for a multicast address",
            says(Ipv6Addr::UNSPECIFIED, &neighbor(SOLICIT, ALL_NODES)),
        ),
        spoofed("a DHCPv6 server", multicast(&dhcp6, mac)),
        spoofed("a fragment with unknown contents", multicast(&hidden, mac)),
        spoofed("an IPv6 router behind options", multicast(&behind, mac)),
        other("a VLAN tag", VLAN),
        other("a provider's tag", 0x88a8),
        other("802.1X", 0x888e),
    ]
}

/// A node with a home and two guests in it, both with addresses.
async fn neighbors(lab: &mut Lab) -> (Home, LanGuest, LanGuest) {
    let home = Home::new(lab, "br0", true).await;
    lab.state.lan = vec![lan_port(0, "br0"), lan_port(1, "br0")];
    lab.ensure().await;
    let guest = LanGuest::attach(lab, 0).await;
    let other = LanGuest::attach(lab, 1).await;
    guest.is_given(lab, &home, OWN);
    other.is_given(lab, &home, NEIGHBOR);
    let asks = ipv6(
        Ipv6Addr::UNSPECIFIED,
        ALL_NODES,
        58,
        &neighbor(SOLICIT, OWN6),
    );
    guest.wire.send(&multicast(&asks, guest.mac()));
    eventually("the IPv6 address is learned", || {
        learned_by_kernel(lab, &guest.port.tap).contains(&OWN6.into())
    });
    (home, guest, other)
}

#[test]
fn on_a_lan_every_forged_frame_is_dropped_and_counted() {
    on_a_node(0, |mut lab| async move {
        let (home, guest, _other) = neighbors(&mut lab).await;
        let all = of_ipv4(guest.mac())
            .into_iter()
            .chain(of_others(guest.mac()));
        for Forged {
            what,
            frame,
            counted,
        } in all
        {
            let before = counters(&lab, &guest.port.tap).await;
            home.wire.seen();
            guest.wire.send(&frame);
            guest.wire.send(&valid(&guest));
            let seen = home.wire.until("the valid frame", |f| contains(f, VALID));
            assert!(!seen.iter().any(|f| contains(f, FORGED)), "{what} passed");
            let after = counters(&lab, &guest.port.tap).await;
            let grown = PortCounters {
                spoofed: after.spoofed - before.spoofed,
                to_host: after.to_host - before.to_host,
                not_ipv4: after.not_ipv4 - before.not_ipv4,
                ..PortCounters::default()
            };
            assert_eq!(grown, counted, "{what}");
        }
    });
}

/// Shows that the rules drop the frames in the test above: without rules, they arrive.
#[test]
fn on_a_lan_without_rules_every_forged_frame_passes() {
    on_a_node(0, |mut lab| async move {
        let (home, guest, _other) = neighbors(&mut lab).await;
        lab.node.tool("nft", &["flush", "ruleset"]);
        for Forged { what, frame, .. } in of_ipv4(guest.mac())
            .into_iter()
            .chain(of_others(guest.mac()))
        {
            // Frames to the bridges' own multicast group are not forwarded (IEEE 802.1D, table 7-10).
            home.wire.seen();
            guest.wire.send(&frame);
            home.wire.until(what, |f| contains(f, FORGED));
        }
    });
}

#[test]
fn on_a_lan_all_packets_of_an_unlisted_port_are_dropped() {
    on_a_node(0, |mut lab| async move {
        let home = Home::new(&lab, "br0", true).await;
        lab.state.lan = vec![lan_port(0, "br0")];
        lab.ensure().await;
        let unknown = lan_port(9, "br0");
        let (_namespace, wire) = lab
            .attach_tap(&unknown.tap, unknown.mac, "br0", "off")
            .await;
        home.gives(unknown.mac.bytes(), OWN);
        let packet = ipv4(OWN, ROUTER, 1, &echo(FORGED));
        wire.send(&ethernet(ROUTER_MAC, unknown.mac.bytes(), IPV4, &packet));
        eventually("a frame of an unknown port", || {
            let list = ["list", "counter", "bridge", "waifud", "unknown-port"];
            lab.node.tool("nft", &list).contains("packets 1 ")
        });
        assert!(!home.wire.seen().iter().any(|f| contains(f, FORGED)));
    });
}
