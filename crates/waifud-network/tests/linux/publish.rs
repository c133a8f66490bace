//! Published ports, accessed from the outside, from the host and from guests.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

use waifud_network::GuestNetwork;
use waifud_types::spec::{Protocol, PublishSpec};

use crate::lab::{GATEWAY, Guest, Lab, OUTSIDE, UPLINK, on_a_node};
use crate::namespace::Namespace;
use crate::reach::{greeter, greets, is_greeted};
use crate::wire::{PATIENCE, ping};

const WEB: SocketAddrV4 = SocketAddrV4::new(UPLINK, 80);

fn published(port: u16, guest_port: u16, protocol: Protocol) -> PublishSpec {
    PublishSpec {
        port,
        guest_port,
        protocol,
    }
}

/// Guest 0 publishes its port 80 as 8080, and 5353/udp.
fn publish(lab: &mut Lab) {
    lab.state.ports[0].publish = vec![
        published(80, 8080, Protocol::Tcp),
        published(5353, 53, Protocol::Udp),
    ];
}

fn server(guest: &Guest) -> TcpListener {
    greeter(&guest.namespace, (Ipv4Addr::UNSPECIFIED, 8080))
}

/// A node on which guest 0 publishes its ports and serves port 80.
fn with_a_publisher<F: Future<Output = ()>>(
    test: impl FnOnce(Lab, Guest, TcpListener) -> F + Send,
) {
    on_a_node(1, |mut lab| async move {
        publish(&mut lab);
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let server = server(&guest);
        test(lab, guest, server).await;
    });
}

/// Asserts that the connection is refused immediately.
fn is_closed(from: &Namespace, to: SocketAddrV4) {
    let error = from.run(|| TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE));
    let kind = error.unwrap_err().kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn the_outside_reaches_a_published_port_and_the_guest_sees_its_address() {
    with_a_publisher(|lab, guest, server| async move {
        let _alive = &guest;
        assert_eq!(greets(&lab.outside, WEB, &server), OUTSIDE);
        // The guest's port by its own number is not published on the node.
        is_closed(&lab.outside, SocketAddrV4::new(UPLINK, 8080));
        assert_eq!(lab.node.sysctl("ipv4/ip_forward"), "0");
    });
}

#[test]
fn published_udp_ports_answer_from_the_requested_address() {
    with_a_publisher(|lab, guest, server| async move {
        let _alive = &server;
        let service = guest
            .namespace
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap());
        let client = lab
            .outside
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        for socket in [&service, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        // Connected: an answer from another address would not be received.
        client.connect((UPLINK, 5353)).unwrap();
        client.send(b"question").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = service.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from.ip()),
            (&b"question"[..], OUTSIDE.into())
        );
        service.send_to(b"answer", from).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");
    });
}

#[test]
fn the_host_reaches_a_published_port_at_its_own_address() {
    with_a_publisher(|lab, guest, server| async move {
        let _alive = (&lab, &guest);
        let here = Namespace::current();
        assert_eq!(greets(&here, WEB, &server), UPLINK);
        // Loopback and the gateway's address are the host's own.
        is_closed(&here, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80));
        is_closed(&here, SocketAddrV4::new(GATEWAY, 80));
    });
}

#[test]
fn guests_and_the_publisher_reach_a_published_port_at_the_nodes_address() {
    on_a_node(2, |mut lab| async move {
        // Where bridged packets pass iptables, a packet whose new destination is on the same bridge is switched instead
        // of routed, and isolated ports do not switch. See docs/guides/docker-and-firewalls.md.
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if std::path::Path::new(switch).exists() {
            std::fs::write(switch, "0").unwrap();
        }
        publish(&mut lab);
        lab.ensure().await;
        let (guest, other) = (lab.attach(0).await, lab.attach(1).await);
        let server = server(&guest);
        assert_eq!(is_greeted(&other, WEB, &server), other.address());
        assert_eq!(is_greeted(&guest, WEB, &server), GATEWAY);
        // Unpublished ports stay closed to guests: the packet is dropped and counted.
        let before = lab.counters(&other.port.tap).await.to_host;
        let socket = other
            .namespace
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        for to in [(UPLINK, 81), (GATEWAY, 80)] {
            socket.send_to(b"unpublished", to).unwrap();
        }
        ping(&other.namespace, GATEWAY);
        assert_eq!(lab.counters(&other.port.tap).await.to_host, before + 2);
    });
}

#[test]
fn ports_are_published_on_a_second_address_of_the_host() {
    on_a_node(1, |mut lab| async move {
        publish(&mut lab);
        // An interface with an address and without a default route, like a second network card.
        let far = Namespace::new();
        lab.add_link(
            "lan0",
            Ipv4Addr::new(198, 51, 100, 1),
            &far,
            Ipv4Addr::new(198, 51, 100, 2),
        )
        .await;
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let server = server(&guest);
        let to = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 80);
        assert_eq!(greets(&far, to, &server), Ipv4Addr::new(198, 51, 100, 2));
        lab.state.ports[0].publish.clear();
        lab.ensure().await;
        assert_eq!(lab.node.sysctl("ipv4/conf/lan0/forwarding"), "0");
    });
}

#[test]
fn an_unpublished_port_is_closed() {
    with_a_publisher(|mut lab, guest, server| async move {
        let _alive = &guest;
        greets(&lab.outside, WEB, &server);
        lab.state.ports[0].publish.clear();
        lab.ensure().await;
        is_closed(&lab.outside, WEB);
        // It is published again by a change of the rules in force.
        publish(&mut lab);
        lab.ensure().await;
        assert_eq!(greets(&lab.outside, WEB, &server), OUTSIDE);
    });
}

#[test]
fn listeners_of_the_host_are_listed_except_on_loopback() {
    on_a_node(0, |lab| async move {
        let _web = greeter(&lab.node, (Ipv4Addr::UNSPECIFIED, 80));
        let _here = greeter(&lab.node, (Ipv4Addr::LOCALHOST, 81));
        let _uplink = greeter(&lab.node, (UPLINK, 82));
        let _dns = lab.node.run(|| UdpSocket::bind((UPLINK, 53)).unwrap());
        let expected = BTreeSet::from([
            (Protocol::Tcp, 80),
            (Protocol::Tcp, 82),
            (Protocol::Udp, 53),
        ]);
        assert_eq!(lab.network.listeners().await.unwrap(), expected);
    });
}
