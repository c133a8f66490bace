//! Metadata requests of guests on a bridge of the host: identified by the port only.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use waifud_network::GuestNetwork;

use crate::frames::{ARP, BROADCAST, IPV4, arp, contains, echo, ethernet, ipv4, udp};
use crate::home::{Home, LanGuest, NODE, ROUTER, ROUTER_MAC, counters, guest_at_home, lan_port};
use crate::lab::{Lab, METADATA, on_a_node};
use crate::lifecycle::drifts;
use crate::reach::{accept, greeter, greets};
use crate::wire::{PATIENCE, Wire, eventually, ping};

const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);
const SERVICE: SocketAddrV4 = SocketAddrV4::new(METADATA, 80);
const FORGED: &[u8] = b"a forged frame";
const IDENTITY: Ipv4Addr = Ipv4Addr::new(240, 119, 0, 1);

/// The metadata service sees the address that stands for the guest's port.
fn is_identified(guest: &LanGuest, server: &TcpListener) {
    let seen = greets(&guest.namespace, SERVICE, server);
    assert_eq!(Some(seen), guest.port.identity);
}

/// A home behind `br0`, two ports there in the state, and the metadata service.
async fn two_ports_at_home(lab: &mut Lab) -> Home {
    lab.connect_metadata().await;
    lab.state.lan = vec![lan_port(0, "br0"), lan_port(1, "br0")];
    Home::new(lab, "br0", true).await
}

#[test]
fn a_guest_on_a_lan_is_identified_by_its_port() {
    on_a_node(1, |mut lab| async move {
        let home = two_ports_at_home(&mut lab).await;
        lab.ensure().await;
        let server = greeter(&lab.metadata, SERVICE);
        for (index, address, next) in [
            (0, OWN, [192, 168, 1, 60].into()),
            (1, [192, 168, 1, 41].into(), [192, 168, 1, 61].into()),
        ] {
            let guest = LanGuest::attach(&lab, index).await;
            guest.is_given(&lab, &home, address);
            home.wire.seen();
            is_identified(&guest, &server);
            ping(&guest.namespace, METADATA);
            // No frame of it reached the home network, where the guest's router is.
            home.wire.saw_nothing_of(&METADATA.octets());
            // With another address, the guest has the same identity.
            guest.namespace.ip("addr flush dev eth0");
            guest.is_given(&lab, &home, next);
            is_identified(&guest, &server);
        }
        // A guest on `default` is still identified by its address.
        let routed = lab.attach(0).await;
        assert_eq!(
            greets(&routed.namespace, SERVICE, &server),
            routed.address()
        );
    });
}

#[test]
fn two_lans_with_the_same_range_are_separate_and_a_bridge_needs_no_address() {
    on_a_node(0, |mut lab| async move {
        lab.connect_metadata().await;
        for scope in ["all", "default"] {
            let file = format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter");
            std::fs::write(file, "1").unwrap();
        }
        let one = Home::new(&lab, "br0", false).await;
        let other = Home::new(&lab, "br1", false).await;
        lab.state.lan = vec![lan_port(0, "br0"), lan_port(1, "br1")];
        lab.ensure().await;
        let server = greeter(&lab.metadata, SERVICE);
        let guests = [
            LanGuest::attach(&lab, 0).await,
            LanGuest::attach(&lab, 1).await,
        ];
        for (guest, home) in guests.iter().zip([&one, &other]) {
            guest.is_given(&lab, home, OWN);
        }
        for guest in &guests {
            is_identified(guest, &server);
        }
    });
}

#[test]
fn metadata_is_reachable_again_after_a_bridge_gets_another_mac_address() {
    on_a_node(0, |mut lab| async move {
        let (home, guest) = guest_at_home(&mut lab, OWN).await;
        ping(&guest.namespace, METADATA);
        let mut drift = lab.network.drift();
        lab.node.ip("link set br0 address 02:00:00:00:00:77");
        drifts(&mut drift, "").await;
        // Until then, packets that did not reach the host did not go to the home network instead.
        let packet = ipv4(OWN, METADATA, 1, &echo(FORGED));
        guest
            .wire
            .send(&ethernet(ROUTER_MAC, guest.mac(), IPV4, &packet));
        lab.ensure().await;
        ping(&guest.namespace, METADATA);
        home.wire.saw_nothing_of(FORGED);
    });
}

#[test]
fn a_guest_with_an_on_link_route_to_169_254_0_0_16_reaches_metadata() {
    on_a_node(0, |mut lab| async move {
        let (home, guest) = guest_at_home(&mut lab, OWN).await;
        guest.namespace.ip("route add 169.254.0.0/16 dev eth0");
        home.wire.seen();
        let server = greeter(&lab.metadata, SERVICE);
        is_identified(&guest, &server);
        home.wire.saw_nothing_of(&METADATA.octets());
        // Machines in the home network get no answer.
        let question = arp(1, (ROUTER_MAC, ROUTER), ([0; 6], METADATA));
        home.wire
            .send(&ethernet(BROADCAST, ROUTER_MAC, ARP, &question));
        let valid = arp(1, (ROUTER_MAC, ROUTER), ([0; 6], NODE));
        home.wire
            .send(&ethernet(BROADCAST, ROUTER_MAC, ARP, &valid));
        let of = |address: Ipv4Addr| {
            move |frame: &[u8]| {
                frame[12..14] == [8, 6] && frame[21] == 2 && frame[28..32] == address.octets()
            }
        };
        let seen = home.wire.until("an answer for the node", of(NODE));
        assert!(!seen.iter().any(|frame| of(METADATA)(frame)));
    });
}

#[test]
fn only_metadata_requests_are_accepted_at_a_port_and_refusals_are_counted() {
    on_a_node(0, |mut lab| async move {
        let home = two_ports_at_home(&mut lab).await;
        // Its documents come from a disk.
        lab.state.lan[1].identity = None;
        lab.ensure().await;
        let guest = LanGuest::attach(&lab, 0).await;
        let other = LanGuest::attach(&lab, 1).await;
        guest.is_given(&lab, &home, OWN);
        other.is_given(&lab, &home, [192, 168, 1, 41].into());
        let inside = Wire::new(&lab.metadata, "eth0");
        let mut refused = 0;
        for (protocol, payload) in [
            (17, udp(80, 80, FORGED)),
            (6, [&[9, 9, 0, 22][..], &[0; 16], FORGED].concat()),
        ] {
            let packet = ipv4(OWN, METADATA, protocol, &payload);
            guest
                .wire
                .send(&ethernet(ROUTER_MAC, guest.mac(), IPV4, &packet));
            refused += 1;
        }
        // A fragment does not contain the destination port.
        let mut fragment = ipv4(OWN, METADATA, 6, FORGED);
        fragment[6] = 0x20;
        guest
            .wire
            .send(&ethernet(ROUTER_MAC, guest.mac(), IPV4, &fragment));
        // The address that stands for a port is not the address of any machine.
        let packet = ipv4(OWN, [240, 119, 0, 2].into(), 1, &echo(FORGED));
        guest
            .wire
            .send(&ethernet(ROUTER_MAC, guest.mac(), IPV4, &packet));
        refused += 2;
        ping(&guest.namespace, METADATA);
        assert_eq!(counters(&lab, &guest.port.tap).await.to_host, refused);
        assert_eq!(counters(&lab, &guest.port.tap).await.spoofed, 0);
        let asked = other
            .namespace
            .run(|| TcpStream::connect_timeout(&SERVICE.into(), Duration::from_millis(300)));
        assert!(asked.is_err());
        assert!(counters(&lab, &other.port.tap).await.to_host > 0);
        assert!(!inside.seen().iter().any(|frame| contains(frame, FORGED)));
        home.wire.saw_nothing_of(FORGED);
    });
}

#[test]
fn no_machine_on_the_lan_can_use_a_ports_identity_or_the_metadata_address() {
    on_a_node(0, |mut lab| async move {
        let (home, guest) = guest_at_home(&mut lab, OWN).await;
        ping(&guest.namespace, METADATA);
        let link = lab.node.ip("-o link show br0");
        let mac = link.split_once("link/ether ").unwrap().1;
        let mac: waifud_types::MacAddr = mac[..17].parse().unwrap();
        let bridge_mac = mac.bytes();
        let inside = Wire::new(&lab.metadata, "eth0");
        let asks = |from| {
            ethernet(
                bridge_mac,
                ROUTER_MAC,
                IPV4,
                &ipv4(from, METADATA, 1, &echo(FORGED)),
            )
        };
        let plays = |to| {
            ethernet(
                guest.mac(),
                ROUTER_MAC,
                IPV4,
                &ipv4(METADATA, to, 1, &echo(FORGED)),
            )
        };
        guest.wire.seen();
        for frame in [
            asks(IDENTITY),
            asks(OWN),
            asks(ROUTER),
            plays(OWN),
            plays(IDENTITY),
            ethernet(
                bridge_mac,
                ROUTER_MAC,
                IPV4,
                &ipv4(ROUTER, IDENTITY, 1, &echo(FORGED)),
            ),
            ethernet(
                guest.mac(),
                ROUTER_MAC,
                ARP,
                &[
                    &arp(2, (ROUTER_MAC, METADATA), (guest.mac(), OWN))[..],
                    FORGED,
                ]
                .concat(),
            ),
        ] {
            home.wire.send(&frame);
        }
        // Valid frames on the same paths, to ensure that all others were processed.
        ping(&home.namespace, OWN);
        ping(&home.namespace, NODE);
        ping(&guest.namespace, METADATA);
        for (wire, who) in [(&inside, "metadata"), (&guest.wire, "the guest")] {
            let heard = wire.seen();
            assert!(!heard.iter().any(|frame| contains(frame, FORGED)), "{who}");
        }
    });
}

#[test]
fn answers_reach_the_port_even_if_the_bridge_learned_its_mac_address_elsewhere() {
    on_a_node(0, |mut lab| async move {
        let (home, guest) = guest_at_home(&mut lab, OWN).await;
        let server = greeter(&lab.metadata, SERVICE);
        let mut client = guest
            .namespace
            .run(|| TcpStream::connect_timeout(&SERVICE.into(), PATIENCE).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut answering, _) = accept(&server);
        // A machine in the home network sends with the guest's MAC address, so the bridge sends its frames there.
        let learns = |port: &str| {
            eventually("the bridge has learned the address there", || {
                let known = lab.node.tool("bridge", &["fdb", "show", "br", "br0"]);
                known.lines().any(|line| {
                    line.starts_with(&guest.port.mac.to_string()) && line.contains(port)
                })
            });
        };
        let lure = ethernet(BROADCAST, guest.mac(), 0x88b5, FORGED);
        home.wire.send(&lure);
        learns("dev cbr0 ");
        home.wire.seen();
        answering.write_all(b"a secret document").unwrap();
        let dropped = Wire::new(&lab.node, "br0");
        dropped.until("the answer at the bridge", |frame| {
            contains(frame, b"a secret document")
        });
        ping(&home.namespace, NODE);
        home.wire.saw_nothing_of(b"a secret document");
        // Once the guest sends a frame, it receives the answer.
        let word = arp(1, (guest.mac(), OWN), ([0; 6], ROUTER));
        guest
            .wire
            .send(&ethernet(BROADCAST, guest.mac(), ARP, &word));
        let mut text = [0; 17];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"a secret document");
    });
}
