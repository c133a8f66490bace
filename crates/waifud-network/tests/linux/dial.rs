//! Connections to guests: through their own ports, and never to another machine.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use waifud_network::GuestNetwork;
use waifud_network::linux::{GuestNic, ReachError, connect};
use waifud_types::MacAddr;

use crate::frames::{ARP, BROADCAST, IPV4, arp, contains, ethernet};
use crate::home::{Home, LanGuest, NODE, ROUTER, ROUTER_MAC, lan_port};
use crate::lab::{Lab, OUTSIDE, UPLINK, on_a_node, with_a_guest};
use crate::namespace::Namespace;

const PORT: u16 = 8080;
const OWN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);

/// A service that counts its connections and sends a greeting.
struct Service(Arc<AtomicUsize>);

impl Service {
    fn start(namespace: &Namespace) -> Self {
        let listener = namespace.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut received = Vec::new();
                let mut connection = connection;
                drop(connection.read_to_end(&mut received));
            }
        });
        Self(count)
    }

    fn connections(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn nic(guest: &LanGuest, address: Ipv4Addr) -> GuestNic {
    GuestNic {
        bridge: guest.port.bridge.clone(),
        tap: guest.port.tap.clone(),
        mac: guest.port.mac,
        address,
    }
}

#[track_caller]
fn is_not_the_guest(outcome: Result<tokio::net::TcpStream, ReachError>, words: &str) {
    match outcome {
        Err(ReachError::NotTheGuest(why)) => {
            assert!(why.contains(words), "{why:?} lacks {words:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_on_default_is_reached_and_a_closed_port_differs_from_no_answer() {
    with_a_guest(2, |lab, guest| async move {
        let service = Service::start(&guest.namespace);
        let nic = GuestNic {
            bridge: lab.state.bridge.clone(),
            tap: guest.port.tap.clone(),
            mac: guest.port.mac,
            address: guest.address(),
        };
        let mut connection = connect(&nic, PORT).await.unwrap();
        connection.write_all(b"hello").await.unwrap();
        crate::wire::eventually("the guest accepts the connection", || {
            service.connections() == 1
        });
        assert!(matches!(
            connect(&nic, PORT + 1).await,
            Err(ReachError::Refused)
        ));
        guest.namespace.ip("link set eth0 down");
        lab.node
            .ip(&format!("neigh flush dev {}", lab.state.bridge));
        assert!(matches!(connect(&nic, PORT).await, Err(ReachError::Silent)));
    });
}

/// A home with a guest that has `OWN`, and with services on the guest and on the router.
async fn at_home(lab: &mut Lab) -> (Home, LanGuest, Service, Service) {
    let home = Home::new(lab, "br0", true).await;
    lab.state.lan = vec![lan_port(0, "br0")];
    lab.ensure().await;
    let guest = LanGuest::attach(lab, 0).await;
    guest.is_given(lab, &home, OWN);
    let services = (
        Service::start(&guest.namespace),
        Service::start(&home.namespace),
    );
    (home, guest, services.0, services.1)
}

#[test]
fn only_the_guest_on_a_bridge_receives_packets_and_no_other_machine() {
    on_a_node(0, |mut lab| async move {
        let (home, guest, service, routers) = at_home(&mut lab).await;
        drop(connect(&nic(&guest, OWN), PORT).await.unwrap());
        crate::wire::eventually("the guest accepts the connection", || {
            service.connections() == 1
        });
        // The spec sets the router's address for the guest.
        home.wire.seen();
        is_not_the_guest(
            connect(&nic(&guest, ROUTER), PORT).await,
            "belongs to another machine",
        );
        // The router's MAC address in the spec does not help, because it is not behind the guest's port.
        let forged = GuestNic {
            mac: MacAddr::new(ROUTER_MAC),
            ..nic(&guest, ROUTER)
        };
        is_not_the_guest(connect(&forged, PORT).await, "through the guest's port");
        assert_eq!(routers.connections(), 0);
        let mut port = Vec::new();
        port.extend(PORT.to_be_bytes());
        let knocked = home.wire.seen();
        let knocked = knocked.iter().filter(|frame| {
            frame.len() > 38 && frame[12..14] == IPV4.to_be_bytes() && frame[36..38] == port[..]
        });
        assert_eq!(knocked.count(), 0, "a packet went to the router's port");
    });
}

#[test]
fn connections_to_the_nodes_own_address_or_behind_a_router_are_refused() {
    on_a_node(0, |mut lab| async move {
        let (_home, guest, _service, _routers) = at_home(&mut lab).await;
        let nodes = Service::start(&lab.node);
        for own in [NODE, UPLINK, Ipv4Addr::LOCALHOST] {
            is_not_the_guest(
                connect(&nic(&guest, own), PORT).await,
                "this node's own address",
            );
        }
        assert_eq!(nodes.connections(), 0);
        let outside = Service::start(&lab.outside);
        // An address behind a router: the router would answer instead of the guest.
        is_not_the_guest(
            connect(&nic(&guest, OUTSIDE), PORT).await,
            "belongs to another machine",
        );
        let routed = Ipv4Addr::new(203, 0, 113, 9);
        is_not_the_guest(
            connect(&nic(&guest, routed), PORT).await,
            "does not reach guests through routers",
        );
        assert_eq!(outside.connections(), 0);
    });
}

#[test]
fn a_stale_neighbor_does_not_hide_the_guest() {
    on_a_node(0, |mut lab| async move {
        let (_home, guest, service, _routers) = at_home(&mut lab).await;
        // Another machine had the address before.
        let entry = format!("neigh replace {OWN} lladdr 02:00:00:00:00:99 dev br0 nud stale");
        lab.node.ip(&entry);
        drop(connect(&nic(&guest, OWN), PORT).await.unwrap());
        crate::wire::eventually("the guest accepts the connection", || {
            service.connections() == 1
        });
    });
}

#[test]
fn a_guest_gets_neither_the_nodes_own_address_nor_its_routers() {
    on_a_node(0, |mut lab| async move {
        let home = Home::new(&lab, "br0", true).await;
        lab.node.ip(&format!("route replace default via {ROUTER}"));
        lab.state.lan = [NODE, ROUTER, OWN]
            .into_iter()
            .zip(0..)
            .map(|(address, index)| {
                let mut port = lan_port(index, "br0");
                port.given = Some(address);
                port.fixed = vec![std::net::IpAddr::from(address).into()];
                port
            })
            .collect();
        lab.ensure().await;
        let observations = lab.network.observe_ports().await.unwrap();
        let trouble = |index: usize| observations[&lab.state.lan[index].tap].trouble.clone();
        assert!(trouble(0).unwrap().contains("this node's own address"));
        assert!(trouble(1).unwrap().contains("a router of this node"));
        assert_eq!(trouble(2), None);
        // Packets from the guest with the router's address do not leave its port.
        let guest = LanGuest::attach(&lab, 1).await;
        let other = LanGuest::attach(&lab, 2).await;
        other.takes(OWN);
        crate::wire::ping(&other.namespace, NODE);
        home.wire.seen();
        let claim = arp(2, (guest.mac(), ROUTER), (BROADCAST, OWN));
        guest
            .wire
            .send(&ethernet(BROADCAST, guest.mac(), ARP, &claim));
        other.namespace.ip("neigh flush dev eth0");
        crate::wire::ping(&other.namespace, NODE);
        let seen = home.wire.seen();
        assert!(
            !seen
                .iter()
                .any(|frame| frame[6..12] == guest.mac() && contains(frame, &ROUTER.octets())),
            "a packet with the router's address was forwarded"
        );
        let counted = lab.counters(&guest.port.tap).await;
        assert_eq!(counted.spoofed, 1);
        // The node has another router now.
        lab.node.ip(&format!("route replace default via {OUTSIDE}"));
        lab.ensure().await;
        let observations = lab.network.observe_ports().await.unwrap();
        assert_eq!(observations[&lab.state.lan[1].tap].trouble, None);
    });
}
