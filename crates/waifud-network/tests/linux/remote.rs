//! Guest subnets of other nodes: whose source address is kept, and which packets from there are forwarded.

use std::net::Ipv4Addr;

use waifud_network::samples::remote;
use waifud_network::{GuestNetwork, RemoteSubnet};

use crate::datagrams::{send, source};
use crate::frames::contains;
use crate::lab::{Lab, OUTSIDE, UPLINK, on_a_node};
use crate::lifecycle::drifts;
use crate::namespace::Namespace;
use crate::wire::Wire;

/// The subnet of another node, and a guest there.
const SUBNET: &str = "10.144.2.0/24";
const THERE: Ipv4Addr = Ipv4Addr::new(10, 144, 2, 7);

/// Both ends of the fabric.
const FABRIC: (Ipv4Addr, Ipv4Addr) = (
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 2),
);

/// The node does not drop packets by their return path, so that only our rules decide.
pub fn disable_return_path_filter(lab: &Lab) {
    for interface in ["all", "up0", "fab0"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        if std::path::Path::new(&file).exists() {
            std::fs::write(&file, "0").unwrap();
        }
    }
    assert_eq!(lab.node.sysctl("ipv4/conf/all/rp_filter"), "0");
}

#[test]
fn guests_keep_their_address_towards_guests_of_other_nodes_only() {
    on_a_node(1, |mut lab| async move {
        lab.state.remote_subnets = vec![remote(2)];
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let outside = Wire::new(&lab.outside, "eth0");
        let any = Ipv4Addr::UNSPECIFIED;
        send(&guest.namespace, any, THERE, b"to a guest of another node");
        assert_eq!(
            source(&outside, b"to a guest of another node"),
            guest.address()
        );
        send(&guest.namespace, any, OUTSIDE, b"to the outside");
        assert_eq!(source(&outside, b"to the outside"), UPLINK);
        // The node next to the other one.
        let beside = Ipv4Addr::new(10, 144, 3, 7);
        send(&guest.namespace, any, beside, b"to no node");
        assert_eq!(source(&outside, b"to no node"), UPLINK);

        // Without the other node, its former addresses are the outside.
        lab.state.remote_subnets.clear();
        lab.ensure().await;
        send(
            &guest.namespace,
            any,
            Ipv4Addr::new(10, 144, 2, 8),
            b"to a former guest",
        );
        assert_eq!(source(&outside, b"to a former guest"), UPLINK);
    });
}

#[test]
fn packets_of_other_nodes_guests_are_accepted_from_the_fabric_only() {
    on_a_node(1, |mut lab| async move {
        let fabric = Namespace::new();
        lab.add_link("fab0", FABRIC.0, &fabric, FABRIC.1).await;
        disable_return_path_filter(&lab);
        // As a fabric sets it. A route over the fabric itself is not in conflict with the subnet.
        lab.node
            .ip(&format!("route add {SUBNET} via {} dev fab0", FABRIC.1));
        fabric.ip(&format!("addr add {THERE}/32 dev lo"));
        fabric.ip(&format!("route add 10.144.1.0/24 via {}", FABRIC.0));
        let forged = Ipv4Addr::new(10, 144, 2, 9);
        lab.outside.ip(&format!("addr add {forged}/32 dev lo"));
        lab.outside
            .ip(&format!("route add 10.144.1.0/24 via {UPLINK}"));

        // While the node knows no other node, nothing distinguishes the forged packet.
        lab.ensure().await;
        let guest = lab.attach(0).await;
        send(&lab.outside, forged, guest.address(), b"an unknown one");
        assert_eq!(source(&guest.wire, b"an unknown one"), forged);

        lab.state.remote_subnets = vec![remote(2)];
        lab.ensure().await;
        let facts = lab.network.host_facts().await.unwrap();
        assert!(facts.refused_subnets.is_empty());
        assert_eq!(lab.node.sysctl("ipv4/conf/fab0/forwarding"), "1");

        send(&fabric, THERE, guest.address(), b"over the fabric");
        assert_eq!(source(&guest.wire, b"over the fabric"), THERE);
        let wire = Wire::new(&fabric, "eth0");
        send(
            &guest.namespace,
            Ipv4Addr::UNSPECIFIED,
            THERE,
            b"the answer",
        );
        assert_eq!(source(&wire, b"the answer"), guest.address());

        // Over the fabric, no other source is accepted, except as an answer.
        let beyond = Ipv4Addr::new(203, 0, 113, 9);
        fabric.ip(&format!("addr add {beyond}/32 dev lo"));
        lab.node
            .ip(&format!("route add {beyond}/32 via {} dev fab0", FABRIC.1));
        send(&fabric, beyond, guest.address(), b"from beyond");
        send(&fabric, THERE, guest.address(), b"another one");
        let seen = guest
            .wire
            .until("the other one", |frame| contains(frame, b"another one"));
        assert!(!seen.iter().any(|frame| contains(frame, b"from beyond")));

        // Over the uplink, only other sources are accepted.
        send(&lab.outside, forged, guest.address(), b"a forged one");
        send(&lab.outside, OUTSIDE, guest.address(), b"a valid one");
        let seen = guest
            .wire
            .until("the valid packet", |frame| contains(frame, b"a valid one"));
        assert!(!seen.iter().any(|frame| contains(frame, b"a forged one")));

        // A subnet without a fabric changes nothing.
        lab.state.remote_subnets = vec![RemoteSubnet {
            fabric: None,
            ..remote(2)
        }];
        lab.node.ip(&format!("route del {SUBNET}"));
        lab.ensure().await;
        let outside = Wire::new(&lab.outside, "eth0");
        let elsewhere = Ipv4Addr::new(10, 144, 2, 8);
        send(
            &guest.namespace,
            Ipv4Addr::UNSPECIFIED,
            elsewhere,
            b"no fabric",
        );
        assert_eq!(source(&outside, b"no fabric"), UPLINK);
    });
}

#[test]
fn a_subnet_that_the_host_has_a_route_to_is_left_out_until_the_route_is_gone() {
    on_a_node(1, |mut lab| async move {
        lab.node.ip(&format!("route add {SUBNET} via {OUTSIDE}"));
        lab.state.remote_subnets = vec![remote(2), remote(3)];
        let mut drift = lab.network.drift();
        lab.ensure().await;
        let refused = lab.network.host_facts().await.unwrap().refused_subnets;
        let reasons: Vec<_> = refused
            .iter()
            .map(|(net, why)| (net.to_string(), why))
            .collect();
        assert_eq!(reasons.len(), 1, "{refused:?}");
        assert_eq!(reasons[0].0, SUBNET);
        assert!(reasons[0].1.contains("already has a route"), "{refused:?}");
        let guest = lab.attach(0).await;
        let outside = Wire::new(&lab.outside, "eth0");
        let any = Ipv4Addr::UNSPECIFIED;
        send(&guest.namespace, any, THERE, b"by the host's route");
        assert_eq!(source(&outside, b"by the host's route"), UPLINK);

        lab.node.ip(&format!("route del {SUBNET}"));
        drifts(&mut drift, "other nodes' subnets").await;
        lab.ensure().await;
        let facts = lab.network.host_facts().await.unwrap();
        assert!(facts.refused_subnets.is_empty());
        send(
            &guest.namespace,
            any,
            Ipv4Addr::new(10, 144, 2, 8),
            b"without it",
        );
        assert_eq!(source(&outside, b"without it"), guest.address());
    });
}
