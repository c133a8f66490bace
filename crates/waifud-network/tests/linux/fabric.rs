//! Fabrics between nodes: packets between their guests through the real WireGuard, in userspace and in the kernel, and through
//! routes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::socket::{getsockopt, sockopt};
use waifud_kit::testing::kernel_module::KernelModule;
use waifud_network::fabric::{Fabric, conformance};
use waifud_network::linux::LinuxFabric;
use waifud_types::{FabricKind, MeshBackend};
use waifud_wireguard::PrivateKey;

use crate::datagrams::{send, source};
use crate::frames::contains;
use crate::lab::on_a_node;
use crate::namespace::Namespace;
use crate::namespace::can_run;
use crate::nodes::{MESH, Node, Underlay, mesh_device, ping};
use crate::wire::{Wire, eventually};

/// Runs tests with WireGuard in userspace and in the kernel.
macro_rules! in_userspace_and_in_the_kernel {
    ($($test:ident)+) => {
        mod userspace {
            use super::*;

            $(#[test]
            fn $test() {
                super::$test(MeshBackend::Userspace);
            })+
        }

        mod kernel {
            use super::*;

            $(#[test]
            fn $test() {
                if kernel_has_wireguard() {
                    super::$test(MeshBackend::Kernel);
                }
            })+

            #[test]
            fn an_agent_that_starts_again_finds_the_link_and_loses_no_packet() {
                if kernel_has_wireguard() {
                    super::an_agent_that_starts_again_finds_the_link_and_loses_no_packet();
                }
            }

            #[test]
            fn nodes_with_either_reach_each_other_and_change_to_the_other_one() {
                if kernel_has_wireguard() {
                    super::nodes_with_either_reach_each_other_and_change_to_the_other_one();
                }
            }

            #[test]
            fn an_address_that_moves_between_nodes_is_never_without_one() {
                if kernel_has_wireguard() {
                    super::an_address_that_moves_between_nodes_is_never_without_one();
                }
            }
        }
    };
}

in_userspace_and_in_the_kernel! {
    the_real_fabric_conforms
    guests_of_three_nodes_reach_each_other_through_the_mesh_with_their_own_addresses
    forged_sources_are_dropped_at_the_node_that_receives_them
    over_the_mesh_guests_reach_no_service_of_another_node
    adding_and_removing_a_node_loses_no_packet_of_others
    connections_through_the_mesh_use_segments_that_fit
    the_mtu_of_the_mesh_follows_that_of_the_path
    another_fabric_leaves_nothing_of_the_former_one
    a_node_behind_nat_reaches_one_that_is_not_and_is_reached_through_its_mapping
}

fn kernel_has_wireguard() -> bool {
    if !can_run() {
        return false;
    }
    let namespace = Namespace::new();
    let added = namespace.run(|| {
        let mut ip = std::process::Command::new("ip");
        ip.args(["link", "add", "probe0", "type", "wireguard"]);
        ip.output().unwrap().status.success()
    });
    !KernelModule::WireGuard.skips(added, "the mesh in the kernel")
}

/// Nodes 1 to `count`, which know each other.
fn connected(kind: FabricKind, backend: MeshBackend, count: u8) -> Option<(Underlay, Vec<Node>)> {
    let backends: Vec<_> = (0..count).map(|_| backend).collect();
    connected_with(kind, &backends)
}

/// Nodes whose meshes have these backends, and which know each other.
fn connected_with(kind: FabricKind, backends: &[MeshBackend]) -> Option<(Underlay, Vec<Node>)> {
    if !can_run() {
        return None;
    }
    let underlay = Underlay::new();
    let nodes: Vec<_> = (1..)
        .zip(backends)
        .map(|(index, backend)| Node::with_mesh(*backend, index, &underlay))
        .collect();
    for node in &nodes {
        let applied = node.ensure(kind, &others(&nodes, node));
        assert!(applied.troubles.is_empty(), "{applied:?}");
    }
    Some((underlay, nodes))
}

fn others(nodes: &[Node], of: &Node) -> Vec<waifud_network::fabric::FabricPeer> {
    let others = nodes.iter().filter(|node| node.index != of.index);
    others.map(Node::peer).collect()
}

fn reaches(from: &Node, to: &Node) -> bool {
    ping(&from.guest, to.guest_address(), 1) == 1
}

fn routes(node: &Node) -> String {
    node.namespace.ip("route show proto 216")
}

fn the_real_fabric_conforms(backend: MeshBackend) {
    on_a_node(0, move |lab| async move {
        let _uplink = lab;
        let mesh = mesh_device(backend, PrivateKey::generate());
        conformance::all(&LinuxFabric::new(mesh, Vec::new())).await;
    });
}

fn guests_of_three_nodes_reach_each_other_through_the_mesh_with_their_own_addresses(
    backend: MeshBackend,
) {
    let Some((underlay, nodes)) = connected(FabricKind::Wireguard, backend, 3) else {
        return;
    };
    let outside = Wire::new(&underlay.namespace, "br0");
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.index != from.index) {
            eventually("the other guest answers", || reaches(from, to));
        }
    }
    let [one, two, _] = &nodes[..] else { panic!() };
    let wire = Wire::new(&two.guest, "eth0");
    let any = Ipv4Addr::UNSPECIFIED;
    send(&one.guest, any, two.guest_address(), b"across the mesh");
    assert_eq!(source(&wire, b"across the mesh"), one.guest_address());
    outside.saw_nothing_of(b"across the mesh");
    // The node itself reaches guests of others, with its address in the guests' network.
    send(&one.namespace, any, two.guest_address(), b"from the node");
    assert_eq!(source(&wire, b"from the node"), one.state.gateway);
    let handshakes = one.run({
        let fabric = Arc::clone(&one.fabric);
        async move { fabric.handshakes().await.unwrap() }
    });
    assert!(handshakes.values().all(Option::is_some), "{handshakes:?}");
    assert_eq!(handshakes.len(), 2);
}

fn forged_sources_are_dropped_at_the_node_that_receives_them(backend: MeshBackend) {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, backend, 3) else {
        return;
    };
    let [one, two, three] = &nodes[..] else {
        panic!()
    };
    eventually("the other guest answers", || reaches(one, two));
    eventually("the other guest answers", || reaches(three, two));
    // The node itself forges, as if an attacker had it.
    let to = two.guest_address();
    let wire = Wire::new(&two.guest, "eth0");
    let forged = [
        (three.guest_address(), &b"as a guest of another node"[..]),
        ([10, 144, 2, 12].into(), b"as its neighbor"),
        (two.state.gateway, b"as its gateway"),
        ([203, 0, 113, 9].into(), b"as an outside address"),
        ([169, 254, 169, 254].into(), b"as the metadata service"),
    ];
    for (from, text) in forged {
        one.namespace.ip(&format!("addr add {from}/32 dev lo"));
        send(&one.namespace, from, to, text);
    }
    send(&one.namespace, one.state.gateway, to, b"a valid one");
    let seen = wire.until("the valid one", |frame| contains(frame, b"a valid one"));
    for (from, text) in forged {
        let found = seen.iter().any(|frame| contains(frame, text));
        assert!(!found, "{from} reached the guest");
    }
    // Only the ping's packets and the valid one have left the link.
    let received = || {
        let link = two.namespace.ip(&format!("-s -j link show {MESH}"));
        let (_, rest) = link.split_once("\"rx\":{").unwrap();
        let (_, rest) = rest.split_once("\"packets\":").unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap()
    };
    let before = received();
    for (from, text) in forged {
        send(&one.namespace, from, to, text);
    }
    send(&one.namespace, one.state.gateway, to, b"the last one");
    wire.until("the last one", |frame| contains(frame, b"the last one"));
    assert_eq!(received() - before, 1);
}

#[test]
fn packets_with_local_sources_from_an_interface_of_a_fabric_are_dropped() {
    let Some((_underlay, nodes)) = connected(FabricKind::Static, MeshBackend::Userspace, 2) else {
        return;
    };
    let [one, two] = &nodes[..] else { panic!() };
    eventually("the other guest answers", || reaches(one, two));
    // Nothing between these nodes checks a source, so that only the rules of the second one decide.
    for interface in ["all", "up0"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        two.namespace.run(|| std::fs::write(&file, "0").unwrap());
    }
    let wire = Wire::new(&two.guest, "eth0");
    let to = two.guest_address();
    let neighbor = Ipv4Addr::new(10, 144, 2, 12);
    one.namespace.ip(&format!("addr add {neighbor}/32 dev lo"));
    send(&one.namespace, neighbor, to, b"as its neighbor");
    send(&one.guest, Ipv4Addr::UNSPECIFIED, to, b"a valid one");
    let seen = wire.until("the valid one", |frame| contains(frame, b"a valid one"));
    assert!(!seen.iter().any(|frame| contains(frame, b"as its neighbor")));
}

fn over_the_mesh_guests_reach_no_service_of_another_node(backend: MeshBackend) {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, backend, 2) else {
        return;
    };
    let [one, two] = &nodes[..] else { panic!() };
    eventually("the other guest answers", || reaches(one, two));
    assert_eq!(
        ping(&one.guest, two.state.gateway, 1),
        1,
        "a gateway answers"
    );
    let service = two
        .namespace
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9)).unwrap());
    service.set_nonblocking(true).unwrap();

    send(
        &one.guest,
        Ipv4Addr::UNSPECIFIED,
        two.state.gateway,
        b"to a service",
    );

    // A later packet has been processed, so the former one was, too.
    assert_eq!(ping(&one.guest, two.state.gateway, 1), 1);
    assert!(service.recv(&mut [0; 64]).is_err(), "it was delivered");
}

fn adding_and_removing_a_node_loses_no_packet_of_others(backend: MeshBackend) {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, backend, 3) else {
        return;
    };
    let [one, two, three] = &nodes[..] else {
        panic!()
    };
    eventually("the other guest answers", || reaches(one, two));
    let (done, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for peers in [vec![two.peer()], vec![two.peer(), three.peer()]] {
                    one.ensure(FabricKind::Wireguard, &peers);
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (mut sent, mut answered) = (0, 0);
        while sent < 300 || changes.load(Ordering::Relaxed) < 3 {
            answered += ping(&one.guest, two.guest_address(), 100);
            sent += 100;
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(answered, sent);
    });
    eventually("the node that was added again answers", || {
        reaches(one, three)
    });
}

fn connections_through_the_mesh_use_segments_that_fit(backend: MeshBackend) {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, backend, 2) else {
        return;
    };
    let [one, two] = &nodes[..] else { panic!() };
    eventually("the other guest answers", || reaches(one, two));
    assert!(
        one.namespace
            .ip(&format!("link show {MESH}"))
            .contains("mtu 1420")
    );
    let listener = two
        .guest
        .run(|| TcpListener::bind((two.guest_address(), 80)).unwrap());
    let to = listener.local_addr().unwrap();
    // These guests have an MTU of 1500, unlike those that have got theirs by DHCP.
    let mut client = one.guest.run(|| TcpStream::connect(to).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    for end in [&client, &server] {
        let segment = getsockopt(end, sockopt::TcpMaxSeg).unwrap();
        // The headers of IP and TCP have 40 bytes.
        assert!(segment <= 1420 - 40, "{segment}");
    }
    let sent = vec![7; 1 << 20];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert_eq!(received, sent);
    });
}

fn the_mtu_of_the_mesh_follows_that_of_the_path(backend: MeshBackend) {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, backend, 2) else {
        return;
    };
    let [one, two] = &nodes[..] else { panic!() };
    one.namespace.ip("link set up0 mtu 1400");
    one.ensure(FabricKind::Wireguard, &[two.peer()]);
    let link = one.namespace.ip(&format!("link show {MESH}"));
    assert!(link.contains("mtu 1320"), "{link}");
}

#[test]
fn static_routes_lead_to_other_nodes_are_repaired_and_removed() {
    let Some((_underlay, nodes)) = connected(FabricKind::Static, MeshBackend::Userspace, 3) else {
        return;
    };
    let [one, two, three] = &nodes[..] else {
        panic!()
    };
    for (from, to) in [(one, two), (two, three), (three, one)] {
        eventually("the other guest answers", || reaches(from, to));
    }
    let wire = Wire::new(&two.guest, "eth0");
    let any = Ipv4Addr::UNSPECIFIED;
    send(&one.guest, any, two.guest_address(), b"by a route");
    assert_eq!(source(&wire, b"by a route"), one.guest_address());
    let applied = routes(one);
    assert_eq!(
        applied.trim(),
        "10.144.2.0/24 via 192.0.2.102 dev up0 \n10.144.3.0/24 via 192.0.2.103 dev up0"
    );

    // Another program removes one route and redirects the other.
    one.namespace.ip("route del 10.144.2.0/24");
    one.namespace
        .ip("route replace 10.144.3.0/24 via 192.0.2.102 proto 216");
    let peers = others(&nodes, one);
    one.ensure(FabricKind::Static, &peers);
    assert_eq!(routes(one), applied);

    // A route that is not ours is not touched, and the subnet is left to it.
    one.namespace.ip("route del 10.144.3.0/24");
    one.namespace.ip("route add 10.144.3.0/24 via 192.0.2.1");
    let left = one.ensure(FabricKind::Static, &peers);
    let trouble = left.troubles.values().next().unwrap();
    assert!(trouble.contains("already has a route to"), "{trouble}");
    let foreign = one.namespace.ip("route show 10.144.3.0/24");
    assert_eq!(foreign.trim(), "10.144.3.0/24 via 192.0.2.1 dev up0");
    assert!(reaches(one, two));

    one.ensure(FabricKind::None, &peers);
    assert_eq!(routes(one), "");
    assert!(!reaches(one, two));
}

fn another_fabric_leaves_nothing_of_the_former_one(backend: MeshBackend) {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, backend, 2) else {
        return;
    };
    let [one, two] = &nodes[..] else { panic!() };
    for kind in [
        FabricKind::Static,
        FabricKind::Wireguard,
        FabricKind::Static,
    ] {
        one.ensure(kind, &[two.peer()]);
        two.ensure(kind, &[one.peer()]);
        eventually("the other guest answers", || reaches(one, two));
        let mesh = kind == FabricKind::Wireguard;
        assert_eq!(one.namespace.ip("link show").contains(MESH), mesh);
        assert_eq!(routes(one).contains("via"), !mesh);
    }
}

fn a_node_behind_nat_reaches_one_that_is_not_and_is_reached_through_its_mapping(
    backend: MeshBackend,
) {
    let Some((underlay, nodes)) = connected(FabricKind::None, backend, 2) else {
        return;
    };
    let [one, two] = &nodes[..] else { panic!() };
    // Packets of the first node reach the network with another port, and no packet reaches it unless it was asked for.
    let rules = "table ip home {
        chain out { type nat hook postrouting priority srcnat; udp sport 51820 masquerade to :40000-40010; }
        chain in { type filter hook prerouting priority 0; iifname up0 udp dport 51820 ct state new drop; }
    }";
    one.namespace.run(|| {
        let mut nft = std::process::Command::new("nft")
            .args(["-f", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin
            .take()
            .unwrap()
            .write_all(rules.as_bytes())
            .unwrap();
        assert!(nft.wait().unwrap().success());
    });
    let _ = &underlay;
    two.ensure(FabricKind::Wireguard, &[one.peer()]);
    assert!(!reaches(two, one));
    one.ensure(FabricKind::Wireguard, &[two.peer()]);
    // The keepalive opens the mapping without any packet of a guest.
    eventually("the guest behind NAT answers", || reaches(two, one));
}

/// The link is read again, and sessions continue.
fn an_agent_that_starts_again_finds_the_link_and_loses_no_packet() {
    let Some((_underlay, mut nodes)) = connected(FabricKind::Wireguard, MeshBackend::Kernel, 2)
    else {
        return;
    };
    eventually("the other guest answers", || reaches(&nodes[0], &nodes[1]));
    let (guest, to) = (Namespace::of(&nodes[0].guest), nodes[1].guest_address());
    let peers = others(&nodes, &nodes[0]);
    let answered = std::thread::scope(|scope| {
        let pings = scope.spawn(|| ping(&guest, to, 200));
        while !pings.is_finished() {
            nodes[0].restart_agent(MeshBackend::Kernel);
            assert!(!nodes[0].ensure(FabricKind::Wireguard, &peers).fresh);
        }
        pings.join().unwrap()
    });
    assert_eq!(answered, 200);
    let node = &nodes[0];
    let handshakes = node.run({
        let fabric = Arc::clone(&node.fabric);
        async move { fabric.handshakes().await.unwrap() }
    });
    assert!(handshakes.values().all(Option::is_some), "{handshakes:?}");
}

fn nodes_with_either_reach_each_other_and_change_to_the_other_one() {
    let (kernel, userspace) = (MeshBackend::Kernel, MeshBackend::Userspace);
    let Some((_underlay, mut nodes)) = connected_with(FabricKind::Wireguard, &[kernel, userspace])
    else {
        return;
    };
    for backend in [userspace, kernel] {
        let [one, two] = &nodes[..] else { panic!() };
        eventually("the other guest answers", || reaches(one, two));
        eventually("the other guest answers", || reaches(two, one));
        let peers = vec![two.peer()];
        let node = &mut nodes[0];
        // The agent removes the other link before.
        node.run({
            let fabric = Arc::clone(&node.fabric);
            async move { fabric.remove().await.unwrap() }
        });
        node.restart_agent(backend);
        let applied = node.ensure(FabricKind::Wireguard, &peers);
        assert_eq!((applied.fresh, applied.backend), (true, Some(backend)));
    }
    let [one, two] = &nodes[..] else { panic!() };
    eventually("the other guest answers", || reaches(one, two));
}

/// The addresses of a peer are changed while others of it are in use.
fn an_address_that_moves_between_nodes_is_never_without_one() {
    let Some((_underlay, nodes)) = connected(FabricKind::Wireguard, MeshBackend::Kernel, 3) else {
        return;
    };
    let [one, two, three] = &nodes[..] else {
        panic!()
    };
    eventually("the other guest answers", || reaches(one, two));
    let moved: ipnet::Ipv4Net = "10.144.9.7/32".parse().unwrap();
    let with = |node: &Node, extra: &[ipnet::Ipv4Net]| waifud_network::fabric::FabricPeer {
        extra: extra.to_vec(),
        ..node.peer()
    };
    let answered = std::thread::scope(|scope| {
        let pings = scope.spawn(|| ping(&one.guest, two.guest_address(), 200));
        while !pings.is_finished() {
            for (of_two, of_three) in [(1, 0), (0, 1), (0, 0)] {
                let peers = [
                    with(two, &[moved][..of_two]),
                    with(three, &[moved][..of_three]),
                ];
                one.ensure(FabricKind::Wireguard, &peers);
            }
        }
        pings.join().unwrap()
    });
    assert_eq!(answered, 200);
    one.ensure(FabricKind::Wireguard, &[with(two, &[moved]), three.peer()]);
    assert!(routes(one).contains("10.144.9.7"));
}
