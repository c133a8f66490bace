//! Two ends of a link, connected without sockets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use gotatun::packet::Packet;
use proptest::prelude::*;

use super::{DATAGRAM, Peer, Sealed, Wire};
use crate::PrivateKey;

const SERVER: ([u8; 4], u16) = ([127, 0, 0, 1], 51821);
const NODE: ([u8; 4], u16) = ([127, 0, 0, 1], 51822);
const SERVICE: [u8; 4] = [169, 254, 169, 254];
const GUEST: [u8; 4] = [10, 77, 1, 5];

struct Pair {
    server: Wire,
    node: Wire,
    keys: [PrivateKey; 2],
    now: Instant,
}

fn peer(key: &PrivateKey, endpoint: Option<([u8; 4], u16)>, allowed: &str) -> Peer {
    Peer {
        key: key.public_key(),
        endpoint: endpoint.map(SocketAddr::from),
        allowed: vec![allowed.parse().unwrap()],
    }
}

impl Pair {
    /// Two ends that know each other; the node knows where the server is, and the server where the node is if `both`.
    fn new(both: bool) -> (Self, Vec<Sealed>, Vec<Sealed>) {
        let keys = [PrivateKey::generate(), PrivateKey::generate()];
        let (mut server, mut node) = (Wire::new(&keys[0], 1420), Wire::new(&keys[1], 1420));
        let now = Instant::now();
        let (mut to_node, mut to_server) = (Vec::new(), Vec::new());
        server.set_peer(
            peer(&keys[1], both.then_some(NODE), "10.77.1.0/24"),
            now,
            &mut to_node,
        );
        node.set_peer(
            peer(&keys[0], Some(SERVER), "169.254.169.254/32"),
            now,
            &mut to_server,
        );
        (
            Self {
                server,
                node,
                keys,
                now,
            },
            to_node,
            to_server,
        )
    }

    /// Transfers datagrams in both directions until there are none. Returns the inner packets that the server and the
    /// node received.
    fn carry(
        &mut self,
        mut to_node: Vec<Sealed>,
        mut to_server: Vec<Sealed>,
    ) -> (Vec<Packet>, Vec<Packet>) {
        let (mut at_server, mut at_node) = (Vec::new(), Vec::new());
        while !(to_node.is_empty() && to_server.is_empty()) {
            for (datagram, to) in std::mem::take(&mut to_server) {
                assert_eq!(to, SERVER.into());
                at_server.extend(
                    self.server
                        .open(datagram, NODE.into(), self.now, &mut to_node),
                );
            }
            for (datagram, to) in std::mem::take(&mut to_node) {
                assert_eq!(to, NODE.into());
                at_node.extend(
                    self.node
                        .open(datagram, SERVER.into(), self.now, &mut to_server),
                );
            }
        }
        (at_server, at_node)
    }

    fn ask(&mut self, from: [u8; 4], to: [u8; 4]) -> Vec<Packet> {
        let mut to_server = Vec::new();
        self.node.seal(inner(from, to), &mut to_server);
        self.carry(Vec::new(), to_server).0
    }
}

/// An IPv4 packet of 24 bytes.
fn inner(from: [u8; 4], to: [u8; 4]) -> Packet {
    let mut bytes = BytesMut::zeroed(24);
    bytes[0] = 0x45;
    bytes[3] = 24;
    bytes[12..16].copy_from_slice(&from);
    bytes[16..20].copy_from_slice(&to);
    Packet::from_bytes(bytes)
}

#[test]
fn a_packet_before_the_handshake_is_queued() {
    let (mut pair, _, _) = Pair::new(false);
    let mut to_server = Vec::new();
    pair.node.set_peer(
        peer(&pair.keys[0], Some(SERVER), "169.254.169.254/32"),
        pair.now,
        &mut to_server,
    );
    pair.node.seal(inner(GUEST, SERVICE), &mut to_server);
    let (at_server, _) = pair.carry(Vec::new(), to_server);
    assert_eq!(at_server.len(), 1);
    assert_eq!(&at_server[0][12..20], [GUEST, SERVICE].concat());
    assert!(pair.server.stats().handshake_age.is_some());
}

#[test]
fn both_ends_can_start_a_handshake_at_the_same_time() {
    let (mut pair, to_node, to_server) = Pair::new(true);
    assert_eq!((to_node.len(), to_server.len()), (1, 1));
    pair.carry(to_node, to_server);
    assert_eq!(pair.ask(GUEST, SERVICE).len(), 1);
}

#[test]
fn addresses_outside_the_allowed_ones_do_not_pass_in_any_direction() {
    let (mut pair, to_node, to_server) = Pair::new(false);
    pair.carry(to_node, to_server);
    assert!(pair.ask([10, 77, 2, 9], SERVICE).is_empty());
    assert_eq!(pair.server.stats().source_not_allowed, 1);
    assert!(pair.ask(GUEST, [10, 0, 0, 1]).is_empty());
    let mut to_node = Vec::new();
    pair.server.seal(inner([8, 8, 8, 8], GUEST), &mut to_node);
    let (_, at_node) = pair.carry(to_node, Vec::new());
    assert!(at_node.is_empty());
    assert_eq!(pair.node.stats().source_not_allowed, 1);
}

#[test]
fn packets_with_another_key_are_dropped() {
    let (mut pair, _, _) = Pair::new(false);
    let mut other = Wire::new(&PrivateKey::generate(), 1420);
    let mut sealed = Vec::new();
    other.set_peer(
        peer(&pair.keys[0], Some(SERVER), "0.0.0.0/0"),
        pair.now,
        &mut sealed,
    );
    let (at_server, _) = pair.carry(Vec::new(), sealed);
    assert!(at_server.is_empty());
    assert_eq!(pair.server.stats().not_from_peer, 1);
    assert_eq!(pair.server.stats().received_bytes, 0);
}

#[test]
fn a_replayed_datagram_is_dropped() {
    let (mut pair, to_node, to_server) = Pair::new(false);
    pair.carry(to_node, to_server);
    let mut to_server = Vec::new();
    pair.node.seal(inner(GUEST, SERVICE), &mut to_server);
    let again = Packet::from_bytes(BytesMut::from(&to_server[0].0[..]));
    let (first, _) = pair.carry(Vec::new(), to_server);
    let (second, _) = pair.carry(Vec::new(), vec![(again, SERVER.into())]);
    assert_eq!((first.len(), second.len()), (1, 0));
}

#[test]
fn a_restarted_server_that_knows_the_endpoint_is_used_at_once() {
    let (mut pair, to_node, to_server) = Pair::new(true);
    pair.carry(to_node, to_server);
    pair.server = Wire::new(&pair.keys[0], 1420);
    let mut to_node = Vec::new();
    pair.server.set_peer(
        peer(&pair.keys[1], Some(NODE), "10.77.1.0/24"),
        pair.now,
        &mut to_node,
    );
    pair.carry(to_node, Vec::new());
    assert_eq!(pair.ask(GUEST, SERVICE).len(), 1);
}

#[test]
fn setting_an_active_peer_again_sends_nothing() {
    let (mut pair, to_node, to_server) = Pair::new(true);
    pair.carry(to_node, to_server);
    let mut to_node = Vec::new();
    let same = peer(&pair.keys[1], Some(NODE), "10.77.1.0/24");
    pair.server.set_peer(same.clone(), pair.now, &mut to_node);
    assert!(to_node.is_empty());
    pair.server
        .set_peer(same, pair.now + Duration::from_secs(3), &mut to_node);
    assert_eq!(to_node.len(), 1);
}

#[test]
fn an_end_without_answers_starts_a_new_handshake() {
    let (mut pair, to_node, to_server) = Pair::new(true);
    pair.carry(to_node, to_server);
    let mut to_node = Vec::new();
    pair.server
        .tick(pair.now + Duration::from_secs(29), &mut to_node);
    assert!(to_node.is_empty());
    pair.server
        .tick(pair.now + Duration::from_secs(31), &mut to_node);
    assert_eq!(to_node.len(), 1);
}

#[test]
fn without_a_peer_nothing_is_sent_or_received() {
    let (mut pair, _, to_server) = Pair::new(true);
    pair.server.remove_peer();
    let mut out = Vec::new();
    for (datagram, _) in to_server {
        assert!(
            pair.server
                .open(datagram, NODE.into(), pair.now, &mut out)
                .is_none()
        );
    }
    pair.server.seal(inner(SERVICE, GUEST), &mut out);
    pair.server.tick(pair.now, &mut out);
    assert!(out.is_empty());
    assert_eq!(pair.server.stats().not_from_peer, 1);
}

#[test]
fn a_full_packet_fits_into_a_datagram() {
    let (mut pair, to_node, to_server) = Pair::new(false);
    pair.carry(to_node, to_server);
    let mut bytes = BytesMut::zeroed(usize::from(super::MAX_MTU));
    bytes[..24].copy_from_slice(&inner(GUEST, SERVICE));
    let mut sealed = Vec::new();
    pair.node.seal(Packet::from_bytes(bytes), &mut sealed);
    assert!(sealed[0].0.len() <= DATAGRAM);
}

#[test]
fn addresses_are_read_from_complete_ipv4_headers_only() {
    assert_eq!(
        super::source(&inner(GUEST, SERVICE)),
        Some(Ipv4Addr::from(GUEST))
    );
    assert_eq!(
        super::destination(&inner(GUEST, SERVICE)),
        Some(Ipv4Addr::from(SERVICE))
    );
    assert_eq!(super::source(&[0x45; 19]), None);
    assert_eq!(super::source(&[0x65; 40]), None);
}

proptest! {
    #[test]
    fn arbitrary_datagrams_do_not_end_a_session(datagrams in proptest::collection::vec((0_u8..5, proptest::collection::vec(any::<u8>(), 0..200)), 0..20)) {
        let (mut pair, to_node, to_server) = Pair::new(true);
        pair.carry(to_node, to_server);
        let mut out = Vec::new();
        for (kind, mut bytes) in datagrams {
            // Message types 1 to 4 followed by zeroes pass the first checks.
            if let Some(head) = bytes.first_chunk_mut::<4>() {
                *head = [kind, 0, 0, 0];
            }
            let datagram = Packet::from_bytes(BytesMut::from(&bytes[..]));
            prop_assert!(pair.server.open(datagram, NODE.into(), pair.now, &mut out).is_none());
        }
        prop_assert_eq!(pair.ask(GUEST, SERVICE).len(), 1);
    }
}
