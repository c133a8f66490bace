//! Three ends of a mesh, connected without sockets.

use std::time::Duration;

use bytes::BytesMut;

use super::*;
use crate::mesh::endpoints::TRY;

const MTU: u16 = 1420;
const NOWHERE: [usize; 0] = [];

/// A node: number `n` has 10.144.n.0/24 and the endpoint 192.0.2.n:51820.
struct Node {
    key: PrivateKey,
    wire: MeshWire,
}

struct Net {
    nodes: Vec<Node>,
    now: Instant,
}

fn endpoint(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(node).unwrap()], 51820))
}

fn guest(node: usize) -> [u8; 4] {
    [10, 144, u8::try_from(node).unwrap(), 5]
}

fn inner(from: [u8; 4], to: [u8; 4]) -> Packet {
    let mut bytes = BytesMut::zeroed(24);
    bytes[0] = 0x45;
    bytes[3] = 24;
    bytes[12..16].copy_from_slice(&from);
    bytes[16..20].copy_from_slice(&to);
    Packet::from_bytes(bytes)
}

impl Net {
    fn new(nodes: usize) -> Self {
        let node = |_| {
            let key = PrivateKey::generate();
            let wire = MeshWire::new(&key, MTU);
            Node { key, wire }
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            now: Instant::now(),
        }
    }

    fn peer(&self, node: usize) -> MeshPeer {
        MeshPeer {
            public_key: self.nodes[node].key.public_key(),
            endpoints: vec![endpoint(node)],
            allowed: vec![format!("10.144.{node}.0/24").parse().unwrap()],
        }
    }

    fn set(&mut self, node: usize, peers: &[MeshPeer]) {
        let now = self.now;
        self.nodes[node].wire.set_peers(peers, now);
    }

    fn connect(&mut self, pairs: &[(usize, usize)]) {
        for node in 0..self.nodes.len() {
            let others = pairs.iter().filter_map(|(a, b)| match node {
                n if n == *a => Some(*b),
                n if n == *b => Some(*a),
                _ => None,
            });
            let peers: Vec<_> = others.map(|other| self.peer(other)).collect();
            self.set(node, &peers);
        }
    }

    /// Transfers datagrams until there are none. Returns inner packets with the node that received them.
    fn carry(&mut self) -> Vec<(usize, Packet)> {
        let mut received = Vec::new();
        loop {
            let mut moved = false;
            for from in 0..self.nodes.len() {
                let mut out = Vec::new();
                self.nodes[from].wire.take_pending(&mut out);
                for (datagram, to) in out {
                    moved = true;
                    let Some(at) = (0..self.nodes.len()).find(|n| endpoint(*n) == to) else {
                        continue;
                    };
                    let mut answers = Vec::new();
                    let now = self.now;
                    let wire = &mut self.nodes[at].wire;
                    let packet = wire.open(datagram, endpoint(from), now, &mut answers);
                    received.extend(packet.map(|packet| (at, packet)));
                    wire.pending.append(&mut answers);
                }
            }
            if !moved {
                return received;
            }
        }
    }

    /// Sends a packet from a node; returns the nodes that received it.
    fn send(&mut self, node: usize, from: [u8; 4], to: [u8; 4]) -> Vec<usize> {
        let mut out = Vec::new();
        let wire = &mut self.nodes[node].wire;
        wire.seal(inner(from, to), &mut out);
        wire.pending.append(&mut out);
        self.carry().into_iter().map(|(at, _)| at).collect()
    }
}

#[test]
fn packets_reach_the_node_of_their_destination_only() {
    let mut net = Net::new(3);
    net.connect(&[(0, 1), (1, 2), (0, 2)]);
    net.carry();
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        assert_eq!(net.send(from, guest(from), guest(to)), [to]);
    }
    assert_eq!(net.send(0, guest(0), [10, 144, 9, 5]), NOWHERE);
    assert_eq!(net.send(0, guest(0), guest(0)), NOWHERE);
}

#[test]
fn a_peer_cannot_send_from_addresses_of_another_one() {
    let mut net = Net::new(3);
    net.connect(&[(0, 1), (1, 2), (0, 2)]);
    net.carry();
    assert_eq!(net.send(0, guest(2), guest(1)), NOWHERE);
    assert_eq!(net.send(0, guest(1), guest(1)), NOWHERE);
    assert_eq!(net.send(0, [203, 0, 113, 1], guest(1)), NOWHERE);
    assert_eq!(net.send(0, guest(0), guest(1)), [1]);
}

#[test]
fn a_moved_address_takes_precedence_over_the_subnet_of_its_former_node() {
    let mut net = Net::new(3);
    let moved = "10.144.1.5/32".parse().unwrap();
    let mut now_at_2 = net.peer(2);
    now_at_2.allowed.push(moved);
    let (zero, one) = (net.peer(0), net.peer(1));
    net.set(0, &[one.clone(), now_at_2]);
    net.set(1, std::slice::from_ref(&zero));
    net.set(2, &[zero]);
    net.carry();
    assert_eq!(net.send(0, guest(0), guest(1)), [2]);
    assert_eq!(net.send(0, guest(0), [10, 144, 1, 6]), [1]);
    // Its answers come from the new node only.
    assert_eq!(net.send(2, guest(1), guest(0)), [0]);
    assert_eq!(net.send(1, guest(1), guest(0)), NOWHERE);
}

#[test]
fn adding_and_removing_a_peer_keeps_the_sessions_of_others() {
    let mut net = Net::new(3);
    net.connect(&[(0, 1)]);
    net.carry();
    let sent = |net: &Net| net.nodes[0].wire.status(net.now)[0].sent_bytes;
    assert_eq!(net.send(0, guest(0), guest(1)), [1]);
    let before = sent(&net);
    assert_eq!(net.send(0, guest(0), guest(1)), [1]);
    let data = sent(&net) - before;
    let both = [net.peer(1), net.peer(2)];
    for peers in [&both[..], &both[..1], &both[..]] {
        net.set(0, peers);
        let before = status_of(&net, 1).sent_bytes;
        assert_eq!(net.send(0, guest(0), guest(1)), [1]);
        // A new handshake would have been sent, too.
        assert_eq!(status_of(&net, 1).sent_bytes - before, data);
    }
}

fn status_of(net: &Net, peer: usize) -> MeshPeerStatus {
    let key = net.nodes[peer].key.public_key();
    let all = net.nodes[0].wire.status(net.now);
    all.into_iter().find(|s| s.public_key == key).unwrap()
}

#[test]
fn a_removed_peer_can_neither_send_nor_receive() {
    let mut net = Net::new(2);
    net.connect(&[(0, 1)]);
    net.carry();
    assert_eq!(net.send(1, guest(1), guest(0)), [0]);
    net.set(0, &[]);
    assert_eq!(net.send(1, guest(1), guest(0)), NOWHERE);
    assert_eq!(net.send(0, guest(0), guest(1)), NOWHERE);
    assert!(net.nodes[0].wire.by_index.is_empty());
}

#[test]
fn a_node_whose_endpoint_is_unknown_is_reached_once_it_was_heard() {
    let mut net = Net::new(2);
    let hidden = MeshPeer {
        endpoints: Vec::new(),
        ..net.peer(1)
    };
    let zero = net.peer(0);
    net.set(0, &[hidden]);
    assert_eq!(net.send(0, guest(0), guest(1)), NOWHERE);
    net.set(1, &[zero]);
    net.carry();
    assert_eq!(net.send(0, guest(0), guest(1)), [1]);
    assert_eq!(status_of(&net, 1).endpoint, Some(endpoint(1)));
    assert_eq!(status_of(&net, 1).handshake_age_s, Some(0));
}

#[test]
fn the_next_endpoint_is_tried_if_the_first_does_not_answer() {
    let mut net = Net::new(2);
    let mut one = net.peer(1);
    one.endpoints.insert(0, endpoint(7));
    let zero = net.peer(0);
    net.set(0, &[one]);
    // Knows no endpoint, so that it does not begin.
    net.set(
        1,
        &[MeshPeer {
            endpoints: Vec::new(),
            ..zero
        }],
    );
    net.carry();
    let later = net.now + TRY + Duration::from_secs(1);
    let mut out = Vec::new();
    net.nodes[0].wire.tick(later, &mut out);
    net.nodes[0].wire.pending.append(&mut out);
    net.carry();
    assert_eq!(status_of(&net, 1).endpoint, Some(endpoint(1)));
    assert_eq!(net.send(0, guest(0), guest(1)), [1]);
}

#[test]
fn datagrams_with_unknown_keys_or_indices_are_ignored() {
    let mut net = Net::new(3);
    net.connect(&[(0, 1)]);
    net.carry();
    // Node 2 knows node 0, which does not know it.
    let zero = net.peer(0);
    net.set(2, &[zero]);
    net.carry();
    assert_eq!(net.send(2, guest(2), guest(0)), NOWHERE);
    assert_eq!(status_of(&net, 1).endpoint, Some(endpoint(1)));
}
