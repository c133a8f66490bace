//! Guests that moved to another node and kept their address: packets between them, their former neighbors and other nodes.

use std::net::{Ipv4Addr, SocketAddrV4};

use waifud_network::GuestNetwork;
use waifud_network::samples::remote;
use waifud_types::FabricKind;

use crate::datagrams::{send, source};
use crate::dns::{A, ask_at};
use crate::frames::contains;
use crate::lab::{METADATA, on_a_node};
use crate::lifecycle::drifts;
use crate::namespace::{Namespace, can_run};
use crate::nodes::{Node, Underlay, ping};
use crate::reach::{greeter, is_greeted};
use crate::remote::disable_return_path_filter;
use crate::wire::{PATIENCE, Wire, eventually};

/// Three nodes that know each other. The guest of node 2 came from node 1, with the address 10.144.1.77.
struct Cluster {
    home: Node,
    host: Node,
    third: Node,
    _underlay: Underlay,
}

impl Cluster {
    fn new(kind: FabricKind) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let underlay = Underlay::new();
        let cluster = Self {
            home: Node::new(1, &underlay),
            host: Node::with_guest_of(1, 2, &underlay),
            third: Node::new(3, &underlay),
            _underlay: underlay,
        };
        let nodes = [&cluster.home, &cluster.host, &cluster.third];
        for node in nodes {
            let others = nodes.iter().filter(|other| other.index != node.index);
            let others: Vec<_> = others.map(|other| other.peer()).collect();
            let applied = node.ensure(kind, &others);
            assert!(applied.troubles.is_empty(), "{applied:?}");
            let network = node.network.clone();
            let facts = node.run(async move { network.host_facts().await.unwrap() });
            assert!(facts.refused_subnets.is_empty(), "{facts:?}");
        }
        Some(cluster)
    }

    fn moved(&self) -> Ipv4Addr {
        self.host.guest_address()
    }
}

fn answers(from: &Namespace, to: Ipv4Addr) {
    eventually(&format!("{to} answers"), || ping(from, to, 1) == 1);
}

/// Everything that a moved guest and others do with its address.
fn is_carried(cluster: &Cluster) {
    let Cluster {
        home, host, third, ..
    } = cluster;
    assert_eq!(cluster.moved(), Ipv4Addr::new(10, 144, 1, 77));
    let gateway = |node: &Node| node.state.gateway;

    // Its former neighbor looks for it in their common subnet, and the other way round.
    answers(&home.guest, cluster.moved());
    answers(&host.guest, home.guest_address());
    answers(&third.guest, cluster.moved());
    answers(&host.guest, third.guest_address());
    // The host of the subnet, and the gateways.
    answers(&home.namespace, cluster.moved());
    answers(&host.guest, gateway(home));
    answers(&host.guest, gateway(host));

    // Other guests see its own address, the outside that of its node.
    let wire = Wire::new(&third.guest, "eth0");
    let any = Ipv4Addr::UNSPECIFIED;
    send(&host.guest, any, third.guest_address(), b"to another guest");
    assert_eq!(source(&wire, b"to another guest"), cluster.moved());
    let wire = Wire::new(&third.namespace, "up0");
    send(&host.guest, any, third.address(), b"to the outside");
    assert_eq!(source(&wire, b"to the outside"), host.address());
}

#[test]
fn a_moved_guest_is_reached_at_its_address_through_the_mesh() {
    let Some(cluster) = Cluster::new(FabricKind::Wireguard) else {
        return;
    };
    is_carried(&cluster);

    // Without the node of its subnet.
    cluster.home.namespace.ip("link set up0 down");
    answers(&cluster.third.guest, cluster.moved());
    answers(&cluster.host.guest, cluster.third.guest_address());
}

#[test]
fn a_moved_guest_is_reached_at_its_address_through_static_routes() {
    let Some(cluster) = Cluster::new(FabricKind::Static) else {
        return;
    };
    is_carried(&cluster);
}

#[test]
fn other_nodes_cannot_send_with_the_address_of_a_moved_guest() {
    let Some(cluster) = Cluster::new(FabricKind::Wireguard) else {
        return;
    };
    let Cluster { home, third, .. } = &cluster;
    answers(&third.guest, home.guest_address());
    answers(&home.guest, cluster.moved());
    let at_home = Wire::new(&home.guest, "eth0");

    // The mesh of the node of its subnet drops the packets of a third one.
    third
        .namespace
        .ip(&format!("addr add {}/32 dev lo", cluster.moved()));
    send(
        &third.namespace,
        cluster.moved(),
        home.guest_address(),
        b"forged",
    );
    third
        .namespace
        .ip(&format!("addr del {}/32 dev lo", cluster.moved()));
    answers(&third.guest, home.guest_address());
    at_home.saw_nothing_of(b"forged");
}

#[test]
fn packets_with_the_address_of_a_guest_that_moved_here_are_not_accepted_from_its_former_node() {
    on_a_node(2, |mut lab| async move {
        let fabric = Namespace::new();
        let ends = ([198, 51, 100, 1].into(), [198, 51, 100, 2].into());
        lab.add_link("fab0", ends.0, &fabric, ends.1).await;
        disable_return_path_filter(&lab);
        lab.node
            .ip(&format!("route add 10.144.2.0/24 via {} dev fab0", ends.1));
        fabric.ip(&format!("route add 10.144.1.0/24 via {}", ends.0));
        let (neighbor, own) = ([10, 144, 2, 7].into(), [10, 144, 2, 77].into());
        for address in [neighbor, own] {
            fabric.ip(&format!("addr add {address}/32 dev lo"));
        }
        lab.state.remote_subnets = vec![remote(2)];
        lab.state.ports[1].home = Some("10.144.2.0/24".parse().unwrap());
        lab.state.ports[1].address = own;
        lab.ensure().await;
        let guest = lab.attach(0).await;
        send(&fabric, own, guest.address(), b"forged");
        send(&fabric, neighbor, guest.address(), b"a neighbor");
        assert_eq!(source(&guest.wire, b"a neighbor"), neighbor);

        // Without the moved guest, nothing distinguishes the packet.
        lab.state.ports.truncate(1);
        lab.ensure().await;
        send(&fabric, own, guest.address(), b"another neighbor");
        let seen = guest
            .wire
            .until("the packet", |frame| contains(frame, b"another neighbor"));
        assert!(!seen.iter().any(|frame| contains(frame, b"forged")));
    });
}

#[test]
fn a_moved_guest_reaches_metadata_and_the_resolver_of_its_former_gateway() {
    on_a_node(1, |mut lab| async move {
        lab.connect_metadata().await;
        let moved = &mut lab.state.ports[0];
        moved.home = Some("10.144.9.0/24".parse().unwrap());
        moved.address = [10, 144, 9, 77].into();
        lab.metadata.ip("route add 10.144.9.77/32 dev eth0");
        lab.ensure().await;
        let guest = lab.attach_as(&lab.state.ports[0].clone()).await;
        guest.namespace.ip("addr add 10.144.9.77/24 dev eth0");
        guest.namespace.ip("route add default via 10.144.9.1");

        let server = greeter(&lab.metadata, (METADATA, 80));
        let service = SocketAddrV4::new(METADATA, 80);
        assert_eq!(is_greeted(&guest, service, &server), guest.address());
        let resolver = SocketAddrV4::new([10, 144, 9, 1].into(), 53);
        let answer = ask_at(&guest.namespace, resolver, "guest-0", A, PATIENCE);
        assert_eq!(answer.unwrap(), (0, Some("10.144.9.77".to_owned())));

        // The route to it is repaired.
        let mut drift = lab.network.drift();
        lab.node.ip("route del 10.144.9.77/32");
        drifts(&mut drift, "routes to guests").await;
        lab.ensure().await;
        assert_eq!(is_greeted(&guest, service, &server), guest.address());
    });
}
