//! Firewalls of guests, with real packets. A dropped packet is shown by a valid one that follows it and arrives.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};

use waifud_network::{FirewallCounters, GuestNetwork, PortRule};
use waifud_types::firewall::FirewallAction::{Allow, Deny};
use waifud_types::firewall::FirewallDirection::{In, Out};
use waifud_types::firewall::FirewallProtocol::{Icmp, Tcp, Udp};
use waifud_types::firewall::{FirewallAction, FirewallDirection, FirewallProtocol, FirewallRule};
use waifud_types::spec::{Protocol, PublishSpec};

use crate::dns::{A, ask, found};
use crate::frames::contains;
use crate::lab::{GATEWAY, Guest, Lab, OUTSIDE, UPLINK, on_a_node, with_metadata};
use crate::lifecycle::drifts;
use crate::namespace::Namespace;
use crate::reach::{accept, greeter, greets, is_greeted, metadata_answers};
use crate::wire::{PATIENCE, Wire, ping};

const SECOND: Ipv4Addr = Ipv4Addr::new(10, 144, 1, 12);
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 144, 1, 13);

fn rule(
    direction: FirewallDirection,
    action: FirewallAction,
    protocol: Option<FirewallProtocol>,
    ports: &[&str],
    peer: Option<Ipv4Addr>,
) -> PortRule {
    let text = FirewallRule {
        direction,
        action,
        protocol,
        ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
        peer: peer.map(|address| address.to_string().parse().unwrap()),
    };
    PortRule {
        id: text.id(),
        direction,
        action,
        protocol,
        ports: text.ports,
        peers: peer.map(|address| vec![address.into()]),
    }
}

/// Sends a packet to a UDP port.
fn send(from: &Namespace, to: (Ipv4Addr, u16), text: &[u8]) {
    from.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.send_to(text, to).unwrap();
    });
}

/// A packet that arrives at the wire.
fn passes(wire: &Wire, from: &Namespace, to: (Ipv4Addr, u16), text: &[u8]) {
    send(from, to, text);
    wire.until("the packet", |frame| contains(frame, text));
}

/// A packet that does not, unlike the one to `open` that follows it.
fn is_dropped(wire: &Wire, from: &Namespace, to: (Ipv4Addr, u16), open: (Ipv4Addr, u16)) {
    send(from, to, b"a forbidden packet");
    send(from, open, b"an allowed packet");
    let seen = wire.until("the allowed packet", |frame| {
        contains(frame, b"an allowed packet")
    });
    let passed = seen
        .iter()
        .any(|frame| contains(frame, b"a forbidden packet"));
    assert!(!passed, "a packet to {to:?} passed");
}

async fn packets(lab: &Lab, guest: &Guest, rule: &PortRule) -> u64 {
    let counters = lab.counters(&guest.port.tap).await.firewall;
    counters.rules.get(&rule.id).copied().unwrap_or_default()
}

/// Shows that the rules drop the packets in the other tests: without rules, they arrive.
#[test]
fn without_rules_all_packets_between_guests_and_to_the_outside_pass() {
    on_a_node(2, |lab| async move {
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        let outside = Wire::new(&lab.outside, "eth0");
        passes(&second.wire, &first.namespace, (SECOND, 7), b"to a guest");
        passes(&outside, &first.namespace, (OUTSIDE, 7), b"to the outside");
        assert_eq!(
            lab.counters(&first.port.tap).await.firewall,
            FirewallCounters::default()
        );
    });
}

#[test]
fn a_guest_that_denies_connections_by_default_accepts_those_that_rules_allow() {
    on_a_node(3, |mut lab| async move {
        let to_port = rule(In, Allow, Some(Udp), &["7", "100-200"], Some(SECOND));
        let firewall = &mut lab.state.ports[0].firewall;
        firewall.incoming = Deny;
        firewall.rules = vec![
            to_port.clone(),
            rule(In, Allow, Some(Udp), &["8"], Some(THIRD)),
        ];
        lab.ensure().await;
        let (first, second, third) = (
            lab.attach(0).await,
            lab.attach(1).await,
            lab.attach(2).await,
        );
        let (own, wire) = (first.address(), &first.wire);
        let open = (own, 7);
        passes(wire, &second.namespace, open, b"to a port");
        passes(
            wire,
            &second.namespace,
            (own, 200),
            b"to the end of a range",
        );
        is_dropped(wire, &second.namespace, (own, 201), open);
        is_dropped(wire, &second.namespace, (own, 8), open);
        is_dropped(wire, &third.namespace, (own, 7), (own, 8));
        assert_eq!(packets(&lab, &first, &to_port).await, 4);
        let dropped = lab.counters(&first.port.tap).await.firewall;
        assert_eq!((dropped.incoming, dropped.outgoing), (3, 0));
        // Others are not affected.
        passes(
            &second.wire,
            &third.namespace,
            (SECOND, 7),
            b"to another guest",
        );
    });
}

#[test]
fn the_first_rule_that_matches_decides() {
    on_a_node(2, |mut lab| async move {
        let deny = rule(In, Deny, Some(Udp), &["7"], None);
        let allow = rule(In, Allow, None, &[], Some(SECOND));
        lab.state.ports[0].firewall.rules = vec![deny.clone(), allow.clone()];
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        let own = first.address();
        is_dropped(&first.wire, &second.namespace, (own, 7), (own, 8));
        assert_eq!(packets(&lab, &first, &deny).await, 1);
        assert_eq!(packets(&lab, &first, &allow).await, 1);

        lab.state.ports[0].firewall.rules.reverse();
        lab.ensure().await;
        passes(
            &first.wire,
            &second.namespace,
            (own, 7),
            b"in the other order",
        );
        assert_eq!(packets(&lab, &first, &deny).await, 1, "counters continue");
    });
}

#[test]
fn rules_for_outgoing_connections_apply_to_guests_and_to_the_outside() {
    on_a_node(2, |mut lab| async move {
        let denied = rule(Out, Deny, Some(Udp), &["7"], Some(OUTSIDE));
        lab.state.ports[0].firewall.rules =
            vec![denied.clone(), rule(Out, Deny, None, &[], Some(SECOND))];
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        let outside = Wire::new(&lab.outside, "eth0");
        is_dropped(&outside, &first.namespace, (OUTSIDE, 7), (OUTSIDE, 8));
        assert_eq!(packets(&lab, &first, &denied).await, 1);
        // The wire of the other guest shows that nothing has arrived there, after something that arrives.
        send(&first.namespace, (SECOND, 7), b"a forbidden packet");
        ping(&first.namespace, GATEWAY);
        second.wire.saw_nothing_of(b"a forbidden packet");

        lab.state.ports[0].firewall.rules.clear();
        lab.state.ports[0].firewall.outgoing = Deny;
        lab.ensure().await;
        send(&first.namespace, (OUTSIDE, 8), b"another forbidden one");
        passes(
            &outside,
            &second.namespace,
            (OUTSIDE, 8),
            b"of another guest",
        );
        outside.saw_nothing_of(b"another forbidden one");
        let firewall = lab.counters(&first.port.tap).await.firewall;
        assert_eq!((firewall.incoming, firewall.outgoing), (0, 1));
    });
}

#[test]
fn answers_pass_in_both_directions() {
    on_a_node(2, |mut lab| async move {
        for port in &mut lab.state.ports {
            port.firewall.incoming = Deny;
        }
        lab.state.ports[1].firewall.outgoing = Deny;
        lab.state.ports[1].firewall.rules = vec![rule(In, Allow, Some(Tcp), &["80"], None)];
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        let server = greeter(&second.namespace, (SECOND, 80));
        let seen = is_greeted(&first, SocketAddrV4::new(SECOND, 80), &server);
        assert_eq!(seen, first.address());
        let server = greeter(&lab.outside, (OUTSIDE, 80));
        let seen = is_greeted(&first, SocketAddrV4::new(OUTSIDE, 80), &server);
        assert_eq!(seen, UPLINK);
    });
}

#[test]
fn a_new_rule_ends_an_established_connection() {
    on_a_node(2, |mut lab| async move {
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        let own = first.address();
        let server = greeter(&first.namespace, (own, 80));
        let mut client = second.namespace.run(|| {
            TcpStream::connect_timeout(&SocketAddrV4::new(own, 80).into(), PATIENCE).unwrap()
        });
        let (mut stream, _) = accept(&server);
        client.write_all(b"before").unwrap();
        let mut text = [0; 6];
        stream.read_exact(&mut text).unwrap();

        let denied = rule(In, Deny, Some(Tcp), &["80"], None);
        lab.state.ports[0].firewall.rules = vec![denied.clone()];
        lab.ensure().await;
        client.write_all(b"a forbidden text").unwrap();
        send(&second.namespace, (own, 7), b"an allowed packet");
        let seen = first.wire.until("the allowed packet", |frame| {
            contains(frame, b"an allowed packet")
        });
        let passed = seen
            .iter()
            .any(|frame| contains(frame, b"a forbidden text"));
        assert!(!passed, "the connection goes on");
        assert!(packets(&lab, &first, &denied).await >= 1);

        // It continues once the rule is gone, because the client sends its text again.
        lab.state.ports[0].firewall.rules.clear();
        lab.ensure().await;
        let mut text = [0; 16];
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"a forbidden text");
    });
}

#[test]
fn dns_ping_of_the_gateway_metadata_and_connections_of_the_host_work_whatever_the_rules() {
    with_metadata(2, |mut lab, guest| async move {
        let firewall = &mut lab.state.ports[0].firewall;
        (firewall.incoming, firewall.outgoing) = (Deny, Deny);
        firewall.rules = vec![
            rule(In, Deny, None, &[], None),
            rule(Out, Deny, None, &[], None),
        ];
        lab.ensure().await;
        ping(&guest.namespace, GATEWAY);
        assert_eq!(ask(&guest, "guest-1", A), found("10.144.1.12"));
        metadata_answers(&lab, &guest);
        let server = greeter(&guest.namespace, (guest.address(), 22));
        let from = Namespace::current();
        let seen = greets(&from, SocketAddrV4::new(guest.address(), 22), &server);
        assert_eq!(seen, GATEWAY);
        let firewall = lab.counters(&guest.port.tap).await.firewall;
        assert!(
            firewall.rules.values().all(|packets| *packets == 0),
            "{firewall:?}"
        );
    });
}

#[test]
fn a_published_port_needs_a_rule_for_the_guests_port() {
    on_a_node(1, |mut lab| async move {
        lab.state.ports[0].publish = vec![PublishSpec {
            port: 80,
            guest_port: 8080,
            protocol: Protocol::Tcp,
        }];
        lab.state.ports[0].firewall.incoming = Deny;
        lab.state.ports[0].firewall.rules =
            vec![rule(In, Allow, Some(Tcp), &["8080"], Some(OUTSIDE))];
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let server = greeter(&guest.namespace, (guest.address(), 8080));
        let web = SocketAddrV4::new(UPLINK, 80);
        assert_eq!(greets(&lab.outside, web, &server), OUTSIDE);

        lab.state.ports[0].firewall.rules = vec![rule(In, Allow, Some(Tcp), &["80"], None)];
        lab.ensure().await;
        lab.outside.run(|| {
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_NONBLOCK,
                None,
            )
            .unwrap();
            let to = nix::sys::socket::SockaddrIn::from(web);
            let outcome = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to);
            assert_eq!(outcome, Err(nix::errno::Errno::EINPROGRESS));
        });
        let dropped = async { while lab.counters(&guest.port.tap).await.firewall.incoming == 0 {} };
        tokio::time::timeout(PATIENCE, dropped).await.unwrap();
    });
}

#[test]
fn further_addresses_have_the_same_rules() {
    on_a_node(2, |mut lab| async move {
        let further = Ipv4Addr::new(10, 99, 0, 7);
        lab.state.ports[0].allow_addresses = vec!["10.99.0.0/24".parse().unwrap()];
        lab.state.ports[0].firewall.incoming = Deny;
        lab.state.ports[0].firewall.outgoing = Deny;
        lab.state.ports[0].firewall.rules = vec![rule(In, Allow, Some(Udp), &["8"], None)];
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        first.namespace.ip(&format!("addr add {further}/32 dev lo"));
        is_dropped(&first.wire, &second.namespace, (further, 7), (further, 8));
        first.namespace.run(|| {
            let socket = UdpSocket::bind((further, 0)).unwrap();
            socket
                .send_to(b"from a further address", (SECOND, 7))
                .unwrap();
        });
        ping(&first.namespace, GATEWAY);
        second.wire.saw_nothing_of(b"from a further address");
        assert_eq!(lab.counters(&first.port.tap).await.firewall.outgoing, 1);
    });
}

#[test]
fn ping_is_a_protocol_of_its_own() {
    on_a_node(2, |mut lab| async move {
        let icmp = rule(In, Allow, Some(Icmp), &[], None);
        lab.state.ports[0].firewall.incoming = Deny;
        lab.state.ports[0].firewall.rules = vec![icmp.clone()];
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        ping(&second.namespace, first.address());
        assert!(packets(&lab, &first, &icmp).await >= 1);
    });
}

#[test]
fn a_chain_that_was_flushed_by_hand_is_repaired() {
    on_a_node(2, |mut lab| async move {
        lab.state.ports[0].firewall.incoming = Deny;
        lab.state.ports[0].firewall.rules = vec![rule(In, Allow, Some(Udp), &["8"], None)];
        let mut drift = lab.network.drift();
        lab.ensure().await;
        let (first, second) = (lab.attach(0).await, lab.attach(1).await);
        let (before, own) = (lab.ruleset(), first.address());
        let chain = format!("firewall-{}-in", first.port.tap);
        lab.node
            .tool("nft", &["flush", "chain", "inet", "waifud", &chain]);
        passes(&first.wire, &second.namespace, (own, 7), b"without rules");
        drifts(&mut drift, "rules were changed").await;
        lab.ensure().await;
        is_dropped(&first.wire, &second.namespace, (own, 7), (own, 8));
        let without_handles = |text: &str| {
            let lines = text
                .lines()
                .map(|line| line.split(" # handle").next().unwrap().to_owned());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(without_handles(&lab.ruleset()), without_handles(&before));
    });
}

#[test]
fn nft_accepts_every_form_of_a_rule() {
    on_a_node(1, |mut lab| async move {
        let mut rules = Vec::new();
        for direction in [In, Out] {
            for action in [Allow, Deny] {
                for peer in [None, Some(SECOND)] {
                    for (protocol, ports) in [
                        (None, &[][..]),
                        (Some(Icmp), &[]),
                        (Some(Tcp), &[]),
                        (Some(Udp), &[]),
                        (Some(Tcp), &["1"]),
                        (Some(Udp), &["1-65535"]),
                        (Some(Tcp), &["1", "3-4", "65535"]),
                    ] {
                        rules.push(rule(direction, action, protocol, ports, peer));
                    }
                }
            }
        }
        let mut many = rule(In, Deny, None, &[], Some(THIRD));
        many.peers = Some(
            (1..=200)
                .map(|last| Ipv4Addr::new(10, 7, last, last).into())
                .collect(),
        );
        rules.push(many);
        let count = rules.len();
        lab.state.ports[0].firewall.rules = rules;
        lab.ensure().await;
        let tap = lab.state.ports[0].tap.clone();
        assert_eq!(lab.counters(&tap).await.firewall.rules.len(), count);
        // A second adapter, as after a restart, finds its own rules.
        let before = lab.ruleset();
        lab.restarted().ensure(&lab.state).await.unwrap();
        assert_eq!(lab.ruleset(), before);
    });
}
