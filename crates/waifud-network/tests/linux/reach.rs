//! What guests can reach: the host, each other, the outside, and the metadata service.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use waifud_network::{GuestNetwork, PortCounters};

use crate::frames::{self, IPV4, contains, ethernet, ipv4, udp};
use crate::lab::{
    GATEWAY, GATEWAY_MAC, Guest, Lab, METADATA, OUTSIDE, UPLINK, on_a_node, with_a_guest,
    with_metadata,
};
use crate::namespace::Namespace;
use crate::wire::{PATIENCE, Wire, eventually, ping};

fn pings(from: &Guest, to: Ipv4Addr) {
    ping(&from.namespace, to);
}

/// A server that greets each client and returns its address.
pub fn greeter(namespace: &Namespace, address: impl Into<SocketAddr>) -> TcpListener {
    let address = address.into();
    namespace.run(|| TcpListener::bind(address).unwrap())
}

/// The next connection, which must come in time.
pub fn accept(server: &TcpListener) -> (TcpStream, SocketAddr) {
    server.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("a connection", || {
        accepted = server.accept().ok();
        accepted.is_some()
    });
    let (stream, peer) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    (stream, peer)
}

/// Connects from the guest, and returns the client address that the server saw.
pub fn is_greeted(guest: &Guest, to: SocketAddrV4, server: &TcpListener) -> Ipv4Addr {
    greets(&guest.namespace, to, server)
}

/// The same from any namespace.
pub fn greets(from: &Namespace, to: SocketAddrV4, server: &TcpListener) -> Ipv4Addr {
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let (mut stream, peer) = accept(server);
            stream.write_all(b"hello").unwrap();
            peer
        });
        from.run(|| {
            let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
        });
        match seen.join().unwrap() {
            SocketAddr::V4(peer) => *peer.ip(),
            SocketAddr::V6(peer) => panic!("{peer}"),
        }
    })
}

/// A TCP segment that opens a connection, as a complete frame to the gateway.
fn syn(guest: &Guest, to: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40];
    segment.extend(port.to_be_bytes());
    // Sequence and acknowledgement numbers, length, SYN, window, checksum (filled below), urgent pointer, MSS 1460.
    segment.extend([
        0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4,
    ]);
    let sum = frames::tcp_checksum(guest.address(), to, &segment);
    segment[16..18].copy_from_slice(&sum);
    ethernet(
        GATEWAY_MAC,
        guest.mac(),
        IPV4,
        &ipv4(guest.address(), to, 6, &segment),
    )
}

/// Sends a frame that must be refused, then a valid ping: only the ping is answered.
async fn is_refused(lab: &Lab, guest: &Guest, frame: &[u8], from: Ipv4Addr) {
    let before = lab.counters(&guest.port.tap).await;
    guest.wire.seen();
    guest.wire.send(frame);
    pings(guest, GATEWAY);
    let answered = guest.wire.seen().into_iter().any(|seen| {
        seen[12..14] == IPV4.to_be_bytes()
            && seen[26..30] == from.octets()
            && !(seen[23] == 1 && from == GATEWAY)
            && seen[..6] == guest.mac()
    });
    assert!(!answered, "{from} answered");
    let expected = PortCounters {
        to_host: before.to_host + 1,
        ..before
    };
    assert_eq!(lab.counters(&guest.port.tap).await, expected);
}

/// The metadata service is reached, and sees the guest's address.
pub fn metadata_answers(lab: &Lab, guest: &Guest) {
    let server = greeter(&lab.metadata, (METADATA, 80));
    let seen = is_greeted(guest, SocketAddrV4::new(METADATA, 80), &server);
    assert_eq!(seen, guest.address());
}

#[test]
fn a_guest_can_ping_its_gateway_and_resolve_names() {
    with_a_guest(2, |lab, guest| async move {
        pings(&guest, GATEWAY);
        for name in ["guest-1.waifu.internal", "guest-1"] {
            let answer = guest.namespace.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket
                    .send_to(&frames::question(name), (GATEWAY, 53))
                    .unwrap();
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer).unwrap();
                answer[..length].to_vec()
            });
            assert!(answer.ends_with(&[10, 144, 1, 12]), "{name}: {answer:?}");
        }
        // And over TCP.
        let length = guest.namespace.run(|| {
            let to = SocketAddr::from((GATEWAY, 53));
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let question = frames::question("guest-1");
            let length = u16::try_from(question.len()).unwrap().to_be_bytes();
            stream
                .write_all(&[&length, question.as_slice()].concat())
                .unwrap();
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).unwrap();
            u16::from_be_bytes(answer)
        });
        assert!(length > 12);
        assert_eq!(lab.counters(&guest.port.tap).await, PortCounters::default());
    });
}

#[test]
fn a_guest_reaches_no_service_on_any_address_of_its_host() {
    with_a_guest(1, |lab, guest| async move {
        let sshd = greeter(&lab.node, (Ipv4Addr::UNSPECIFIED, 22));
        // The host itself reaches the service.
        lab.node.run(|| TcpStream::connect((UPLINK, 22)).unwrap());
        accept(&sshd);
        for address in [GATEWAY, UPLINK] {
            is_refused(&lab, &guest, &syn(&guest, address, 22), address).await;
            // Of UDP and ICMP, only DNS queries and pings to the gateway are allowed.
            let question = |to: u16| {
                let packet = udp(40_000, to, b"\0\0\0\0");
                let packet = ipv4(guest.address(), address, 17, &packet);
                ethernet(GATEWAY_MAC, guest.mac(), IPV4, &packet)
            };
            is_refused(&lab, &guest, &question(161), address).await;
            if address != GATEWAY {
                is_refused(&lab, &guest, &question(53), address).await;
                is_refused(&lab, &guest, &syn(&guest, address, 53), address).await;
                let echo = ipv4(guest.address(), address, 1, &frames::echo(b"x"));
                let echo = ethernet(GATEWAY_MAC, guest.mac(), IPV4, &echo);
                is_refused(&lab, &guest, &echo, address).await;
            }
        }
        assert!(sshd.accept().is_err(), "a guest was connected");
    });
}

#[test]
fn the_host_reaches_its_guests() {
    with_a_guest(1, |lab, guest| async move {
        let server = greeter(&guest.namespace, (guest.address(), 22));
        let stream = lab.node.run(|| {
            let to = SocketAddr::from((guest.address(), 22));
            TcpStream::connect_timeout(&to, PATIENCE).unwrap()
        });
        let (_, peer) = accept(&server);
        assert_eq!(peer, stream.local_addr().unwrap());
        assert_eq!(lab.counters(&guest.port.tap).await, PortCounters::default());
    });
}

#[test]
fn ports_that_docker_publishes_count_as_the_host() {
    with_a_guest(1, |lab, guest| async move {
        // As Docker does: the host's address and port lead to another machine.
        let publish = "add table ip nat; add chain ip nat p { type nat hook prerouting priority dstnat; }; \
                       add rule ip nat p tcp dport 8080 dnat to 192.0.2.1:80";
        lab.node.tool("nft", &[publish]);
        let there = Wire::new(&lab.outside, "eth0");
        is_refused(&lab, &guest, &syn(&guest, UPLINK, 8080), UPLINK).await;
        pings(&guest, OUTSIDE);
        // In other protocols than IPv4, that byte can be anything, for example a part of a MAC address.
        let tcp = |frame: &Vec<u8>| frame[12..14] == [8, 0] && frame[23] == 6;
        let passed = there.seen().iter().any(tcp);
        assert!(!passed, "it was forwarded");
    });
}

#[test]
fn multicast_to_the_host_is_dropped_and_not_counted() {
    with_a_guest(1, |lab, guest| async move {
        let mdns = lab.node.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353)).unwrap();
            socket
                .join_multicast_v4(&[224, 0, 0, 251].into(), &GATEWAY)
                .unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let packet = udp(5353, 5353, b"who is there");
        let packet = ipv4(guest.address(), [224, 0, 0, 251].into(), 17, &packet);
        let group = [1, 0, 0x5e, 0, 0, 0xfb];
        guest
            .wire
            .send(&ethernet(group, guest.mac(), IPV4, &packet));
        pings(&guest, GATEWAY);
        assert!(mdns.recv(&mut [0; 64]).is_err());
        assert_eq!(lab.counters(&guest.port.tap).await, PortCounters::default());
    });
}

#[test]
fn guests_reach_each_other_through_the_gateway_and_see_only_its_mac_address() {
    on_a_node(3, |lab| async move {
        lab.ensure().await;
        let (one, other, third) = (
            lab.attach(0).await,
            lab.attach(1).await,
            lab.attach(2).await,
        );
        pings(&one, other.address());
        pings(&other, one.address());
        // The bridge forgets the guest's port and floods its frames, which other guests must not receive.
        let tap = other.port.tap.to_string();
        lab.node
            .ip(&format!("link set {tap} type bridge_slave fdb_flush"));
        pings(&one, other.address());
        pings(&third, GATEWAY);

        for (guest, foreign_frames) in [
            (&one, [other.mac(), third.mac()]),
            (&other, [one.mac(), third.mac()]),
            (&third, [one.mac(), other.mac()]),
        ] {
            for frame in guest.wire.seen() {
                let from: [u8; 6] = frame[6..12].try_into().unwrap();
                assert!(from == GATEWAY_MAC || from == guest.mac(), "{frame:x?}");
                for foreign in foreign_frames {
                    assert!(!contains(&frame, &foreign), "{frame:x?}");
                }
                // There is no ICMP redirect (type 5) either, because there is no shorter route.
                let redirect =
                    frame[12..14] == IPV4.to_be_bytes() && frame[23] == 1 && frame[34] == 5;
                assert!(!redirect, "{frame:x?}");
            }
        }
        assert_eq!(lab.counters(&one.port.tap).await, PortCounters::default());
        assert_eq!(lab.node.sysctl("ipv4/ip_forward"), "0");
    });
}

#[test]
fn guests_do_not_receive_broadcasts_for_others() {
    on_a_node(2, |lab| async move {
        lab.ensure().await;
        let (one, other) = (lab.attach(0).await, lab.attach(1).await);
        // A broadcast DHCP answer contains the address of its receiver, and so does ARP for another guest.
        let bridge = Wire::new(&lab.node, &lab.state.bridge);
        let mut answer = frames::dhcp(5, other.mac(), &[]);
        answer[0] = 2;
        let answer = ipv4(GATEWAY, Ipv4Addr::BROADCAST, 17, &udp(67, 68, &answer));
        bridge.send(&ethernet(frames::BROADCAST, GATEWAY_MAC, IPV4, &answer));
        let question = frames::arp(1, (GATEWAY_MAC, GATEWAY), ([0; 6], other.address()));
        bridge.send(&ethernet(
            frames::BROADCAST,
            GATEWAY_MAC,
            frames::ARP,
            &question,
        ));
        let unknown = ipv4(GATEWAY, other.address(), 17, &udp(9, 9, b"flooded"));
        bridge.send(&ethernet([2, 0, 0, 0, 0, 9], GATEWAY_MAC, IPV4, &unknown));
        other
            .wire
            .until("its DHCP answer", |frame| contains(frame, &answer));
        other
            .wire
            .until("ARP for it", |frame| contains(frame, &question));
        pings(&one, GATEWAY);
        for frame in one.wire.seen() {
            assert!(!contains(&frame, &other.mac()), "{frame:x?}");
            assert!(!contains(&frame, b"flooded"), "{frame:x?}");
            assert!(!contains(&frame, &question), "{frame:x?}");
        }
    });
}

#[test]
fn the_outside_sees_the_hosts_address_and_its_answers_arrive() {
    with_a_guest(1, |lab, guest| async move {
        let server = greeter(&lab.outside, (OUTSIDE, 80));
        let seen = is_greeted(&guest, SocketAddrV4::new(OUTSIDE, 80), &server);
        assert_eq!(seen, UPLINK);
        assert_eq!(lab.node.sysctl("ipv4/ip_forward"), "0");
        assert_eq!(lab.node.sysctl("ipv4/conf/up0/forwarding"), "1");
        assert_eq!(lab.node.sysctl("ipv4/conf/lo/forwarding"), "0");
    });
}

#[test]
fn the_segment_size_is_reduced_for_an_uplink_with_a_small_mtu() {
    on_a_node(1, |lab| async move {
        lab.node.ip("link set up0 mtu 1400");
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let there = Wire::new(&lab.outside, "eth0");
        guest.wire.send(&syn(&guest, OUTSIDE, 80));
        let seen = there.until("the SYN", |frame| {
            frame.get(23) == Some(&6) && frame.get(47) == Some(&2)
        });
        let frame = seen.last().unwrap();
        // 1400 minus the headers of IPv4 and TCP.
        assert_eq!(frame[54..58], [2, 4, 5, 0x50]);
    });
}

#[test]
fn routed_destinations_see_the_guests_own_address() {
    on_a_node(1, |lab| async move {
        let network = lab.restarted_with(|config| {
            config.routed = vec!["192.0.2.0/24".parse().unwrap()];
        });
        network.ensure(&lab.state).await.unwrap();
        let guest = lab.attach(0).await;
        lab.outside
            .ip(&format!("route add 10.144.1.0/24 via {UPLINK}"));
        let server = greeter(&lab.outside, (OUTSIDE, 80));
        let seen = is_greeted(&guest, SocketAddrV4::new(OUTSIDE, 80), &server);
        assert_eq!(seen, guest.address());
        // A machine with a route to the guest reaches it.
        ping(&lab.outside, guest.address());
    });
}

#[test]
fn only_packets_of_guests_are_forwarded() {
    with_a_guest(1, |lab, guest| async move {
        // A network behind the node that is not guests': the outside must not reach it through this node.
        lab.node.ip("link add lan0 type veth peer name lan1");
        lab.node.ip("link set lan1 up");
        lab.node.ip("addr add 198.51.100.1/24 dev lan0");
        lab.node.ip("link set lan0 up");
        lab.outside
            .ip(&format!("route add 198.51.100.0/24 via {UPLINK}"));
        // The receiver's MAC address is known, so a forwarded packet arrives immediately.
        lab.node
            .ip("neigh add 198.51.100.77 lladdr 02:00:00:00:00:77 dev lan0");
        let lan = Wire::new(&lab.node, "lan0");
        let send = |namespace: &Namespace, text: &[u8]| {
            namespace.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:9").unwrap();
                socket.send_to(text, "198.51.100.77:9").unwrap();
            });
        };
        send(&lab.outside, b"from outside");
        // Once a later packet is answered, the node has processed this one.
        ping(&lab.outside, UPLINK);
        send(&guest.namespace, b"the guest's");
        let seen = lan.until("the guest's packet", |frame| {
            contains(frame, b"the guest's")
        });
        assert!(!seen.iter().any(|frame| contains(frame, b"from outside")));
    });
}

#[test]
fn metadata_goes_to_its_interface_and_never_to_the_uplink() {
    on_a_node(2, |lab| async move {
        lab.connect_metadata().await;
        // The outside has the address as well, as in clouds.
        lab.outside.ip(&format!("addr add {METADATA}/32 dev lo"));
        let clouds = greeter(&lab.outside, (METADATA, 80));
        lab.ensure().await;
        let (guest, other) = (lab.attach(0).await, lab.attach(1).await);
        let uplink = Wire::new(&lab.outside, "eth0");
        let server = greeter(&lab.metadata, (METADATA, 80));
        for guest in [&guest, &other] {
            let seen = is_greeted(guest, SocketAddrV4::new(METADATA, 80), &server);
            assert_eq!(seen, guest.address());
            pings(guest, METADATA);
        }
        // Only port 80, and no other link-local address.
        let there = Wire::new(&lab.metadata, "eth0");
        is_refused(&lab, &guest, &syn(&guest, METADATA, 81), METADATA).await;
        let question = udp(40_000, 80, b"udp");
        let question = ipv4(guest.address(), METADATA, 17, &question);
        let question = ethernet(GATEWAY_MAC, guest.mac(), IPV4, &question);
        is_refused(&lab, &guest, &question, METADATA).await;
        for address in [[169, 254, 169, 253], [169, 254, 0, 1]] {
            let address = Ipv4Addr::from(address);
            is_refused(&lab, &guest, &syn(&guest, address, 80), address).await;
        }
        assert!(
            !there
                .seen()
                .iter()
                .any(|frame| frame[12..14] == [8, 0] && matches!(frame[23], 6 | 17))
        );
        pings(&guest, OUTSIDE);
        for frame in uplink.seen() {
            assert!(!contains(&frame, &[169, 254]), "{frame:x?}");
        }
        clouds.set_nonblocking(true).unwrap();
        assert!(clouds.accept().is_err());
        // The host's own route to that address is unchanged.
        let route = lab.node.ip(&format!("route get {METADATA}"));
        assert!(route.contains("dev up0"), "{route}");
    });
}

#[test]
fn metadata_is_reachable_with_reverse_path_filtering() {
    on_a_node(1, |lab| async move {
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        lab.connect_metadata().await;
        lab.ensure().await;
        let guest = lab.attach(0).await;
        metadata_answers(&lab, &guest);
    });
}

#[test]
fn without_a_metadata_interface_requests_are_rejected() {
    with_a_guest(1, |lab, guest| async move {
        let uplink = Wire::new(&lab.outside, "eth0");
        let failed = guest.namespace.run(|| {
            let to = SocketAddr::from((METADATA, 80));
            TcpStream::connect_timeout(&to, Duration::from_secs(30)).unwrap_err()
        });
        // The error arrives immediately, not after a timeout.
        assert_eq!(failed.kind(), std::io::ErrorKind::HostUnreachable);
        pings(&guest, OUTSIDE);
        for frame in uplink.seen() {
            assert!(!contains(&frame, &METADATA.octets()), "{frame:x?}");
        }
    });
}

#[test]
fn a_guest_with_an_on_link_route_reaches_metadata() {
    with_metadata(1, |lab, guest| async move {
        guest.namespace.ip("route add 169.254.0.0/16 dev eth0");
        metadata_answers(&lab, &guest);
    });
}

#[test]
fn metadatad_reaches_guests_only_in_answers() {
    with_metadata(1, |lab, guest| async move {
        let to = guest.address();
        guest.wire.seen();
        lab.metadata.run(|| {
            let socket = UdpSocket::bind((METADATA, 9)).unwrap();
            socket.send_to(b"unasked", (to, 9)).unwrap();
        });
        pings(&guest, METADATA);
        let seen = guest.wire.seen();
        assert!(!seen.iter().any(|frame| contains(frame, b"unasked")));
    });
}
