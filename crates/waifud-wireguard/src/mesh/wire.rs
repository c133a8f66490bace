//! The protocol of a link with many peers, without I/O.
//!
//! Each peer is a `Tunn` of gotatun with WireGuard's usual timers, so the other end may be the kernel's WireGuard. This adds
//! the choice of the peer: an inner packet belongs to the peer with the longest matching prefix, in both directions; a
//! datagram belongs to the peer whose session has its receiver index, and the first message of a handshake to the peer whose
//! key it contains. A change of one peer does not touch the sessions of others.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use gotatun::{
    noise::{
        Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon,
        index_table::IndexTable, rate_limiter::RateLimiter,
    },
    packet::{Packet, WgKind},
    tun::MtuWatcher,
};
use ipnet::Ipv4Net;
use x25519_dalek::StaticSecret;

use super::{KEEPALIVE, MeshPeer, MeshPeerStatus, endpoints::Endpoints};
use crate::{
    PrivateKey, PublicKey,
    wire::{Engine, Sealed, destination, source},
};

/// Handshakes per second and outer address before the other end must prove its address with a cookie.
const HANDSHAKES_PER_SECOND: u64 = 100;
/// How many session indices of a peer are kept: more than the sessions and handshakes that gotatun keeps.
const INDICES: usize = 16;

/// All peers of a link.
pub(crate) struct MeshWire {
    secret: StaticSecret,
    limiter: Arc<RateLimiter>,
    indices: IndexTable,
    mtu: MtuWatcher,
    peers: HashMap<PublicKey, Link>,
    /// The peer of each session or handshake, by our index of it.
    by_index: HashMap<u32, PublicKey>,
    allowed: AllowedIps,
    /// What a change of the peers has left to be sent.
    pending: Vec<Sealed>,
}

struct Link {
    key: PublicKey,
    tunn: Tunn,
    endpoints: Endpoints,
    indices: VecDeque<u32>,
    handshake: Option<Instant>,
    received_bytes: u64,
    sent_bytes: u64,
}

/// The peer of each inner address: the one with the longest prefix.
#[derive(Default)]
struct AllowedIps {
    /// By prefix length, the longest first.
    by_length: Vec<(u8, HashMap<Ipv4Addr, PublicKey>)>,
}

impl AllowedIps {
    fn of(peers: &[MeshPeer]) -> Self {
        let mut by_length: Vec<(u8, HashMap<Ipv4Addr, PublicKey>)> = Vec::new();
        for peer in peers {
            for net in &peer.allowed {
                let length = net.prefix_len();
                let at = by_length.binary_search_by(|(other, _)| length.cmp(other));
                let at = at.unwrap_or_else(|at| {
                    by_length.insert(at, (length, HashMap::new()));
                    at
                });
                if let Some((_, nets)) = by_length.get_mut(at) {
                    nets.insert(net.network(), peer.public_key);
                }
            }
        }
        Self { by_length }
    }

    fn peer(&self, address: Ipv4Addr) -> Option<PublicKey> {
        self.by_length.iter().find_map(|(length, nets)| {
            let net = Ipv4Net::new(address, *length).ok()?;
            nets.get(&net.network()).copied()
        })
    }
}

impl MeshWire {
    pub fn new(key: &PrivateKey, mtu: u16) -> Self {
        Self {
            limiter: Arc::new(RateLimiter::new(
                &key.public_key().point(),
                HANDSHAKES_PER_SECOND,
            )),
            secret: key.secret(),
            indices: IndexTable::from_os_rng(),
            mtu: MtuWatcher::new(mtu),
            peers: HashMap::new(),
            by_index: HashMap::new(),
            allowed: AllowedIps::default(),
            pending: Vec::new(),
        }
    }

    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = MtuWatcher::new(mtu);
    }

    /// Sets the peers. Sessions of peers that stay continue. A new peer with a known endpoint gets a handshake at once.
    pub fn set_peers(&mut self, peers: &[MeshPeer], now: Instant) {
        let stay = |key: &PublicKey| peers.iter().any(|peer| peer.public_key == *key);
        self.peers.retain(|key, _| stay(key));
        self.by_index.retain(|_, key| stay(key));
        self.allowed = AllowedIps::of(peers);
        for peer in peers {
            let key = peer.public_key;
            if let Some(link) = self.peers.get_mut(&key) {
                // The next handshake goes there.
                link.endpoints.set(&peer.endpoints, now);
                continue;
            }
            let tunn = Tunn::new(
                self.secret.clone(),
                key.point(),
                None,
                Some(KEEPALIVE),
                self.indices.clone(),
                Arc::clone(&self.limiter),
            );
            let link = Link {
                key,
                tunn,
                endpoints: Endpoints::new(&peer.endpoints, now),
                indices: VecDeque::new(),
                handshake: None,
                received_bytes: 0,
                sent_bytes: 0,
            };
            self.peers.insert(key, link);
            let mut out = Vec::new();
            self.with(key, |link, index| link.shake_hands(index, &mut out));
            self.pending.append(&mut out);
        }
    }

    pub fn status(&self, now: Instant) -> Vec<MeshPeerStatus> {
        let mut all: Vec<_> = self.peers.values().map(|link| link.status(now)).collect();
        all.sort_by_key(|status| status.public_key);
        all
    }

    /// Calls `act` with a peer and a record of its indices.
    fn with<R>(
        &mut self,
        key: PublicKey,
        act: impl FnOnce(&mut Link, &mut Indices<'_>) -> R,
    ) -> Option<R> {
        let link = self.peers.get_mut(&key)?;
        let mut indices = Indices {
            by_index: &mut self.by_index,
            key,
        };
        Some(act(link, &mut indices))
    }

    /// The peer that a datagram comes from. Only the first message of a handshake says who sent it.
    fn sender(&self, packet: &WgKind) -> Option<PublicKey> {
        let index = match packet {
            WgKind::HandshakeInit(init) => {
                let own = x25519_dalek::PublicKey::from(&self.secret);
                let half = parse_handshake_anon(&self.secret, &own, init).ok()?;
                return Some(PublicKey::from(half.peer_static_public));
            }
            WgKind::HandshakeResp(response) => response.receiver_idx.get(),
            WgKind::CookieReply(reply) => reply.receiver_idx.get(),
            WgKind::Data(data) => data.header.receiver_idx.get(),
        };
        self.by_index.get(&index).copied()
    }
}

/// Records which indices are of one peer.
struct Indices<'a> {
    by_index: &'a mut HashMap<u32, PublicKey>,
    key: PublicKey,
}

impl Engine for MeshWire {
    fn open(
        &mut self,
        datagram: Packet,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<Sealed>,
    ) -> Option<Packet> {
        let length = datagram.len() as u64;
        let packet = match self.limiter.verify_packet(from, datagram) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                out.push((cookie.into(), from));
                return None;
            }
            Err(_) => return None,
        };
        let key = self.sender(&packet)?;
        let shakes_hands = matches!(packet, WgKind::HandshakeInit(_) | WgKind::HandshakeResp(_));
        let mut mtu = self.mtu.clone();
        let inner = self.with(key, |link, indices| {
            let result = link.tunn.handle_incoming_packet(packet);
            if matches!(result, TunnResult::Err(_)) {
                return None;
            }
            link.endpoints.heard(Some(from), now);
            link.received_bytes += length;
            if shakes_hands {
                link.handshake = Some(now);
            }
            let inner = match result {
                TunnResult::WriteToTunnel(packet) if !packet.is_empty() => Some(packet),
                TunnResult::WriteToNetwork(answer) => {
                    link.push(answer, indices, out);
                    None
                }
                _ => None,
            };
            // The opened packet may have confirmed the session that queued packets wait for.
            let waiting: Vec<_> = link.tunn.get_queued_packets(&mut mtu).collect();
            for packet in waiting {
                link.push(packet, indices, out);
            }
            inner
        })??;
        let sender = source(&inner).and_then(|source| self.allowed.peer(source));
        (sender == Some(key)).then_some(inner)
    }

    fn seal(&mut self, packet: Packet, out: &mut Vec<Sealed>) {
        let receiver = destination(&packet).and_then(|to| self.allowed.peer(to));
        let Some(key) = receiver else { return };
        let mut mtu = self.mtu.clone();
        self.with(key, |link, indices| {
            if link.endpoints.current().is_none() {
                return;
            }
            if let Some(sealed) = link.tunn.handle_outgoing_packet(packet, Some(&mut mtu)) {
                link.push(sealed, indices, out);
            }
        });
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Sealed>) {
        self.limiter.try_reset_count();
        let keys: Vec<_> = self.peers.keys().copied().collect();
        for key in keys {
            self.with(key, |link, indices| link.tick(now, indices, out));
        }
    }

    fn take_pending(&mut self, out: &mut Vec<Sealed>) {
        out.append(&mut self.pending);
    }
}

impl Link {
    fn tick(&mut self, now: Instant, indices: &mut Indices<'_>, out: &mut Vec<Sealed>) {
        if self.endpoints.try_next(now) {
            self.shake_hands(indices, out);
        }
        match self.tunn.update_timers() {
            Ok(Some(packet)) => self.push(packet, indices, out),
            // After 90 s without an answer, WireGuard gives up until there is a packet to send. The keepalives of a node
            // never give up.
            Err(WireGuardError::ConnectionExpired) => {
                self.tunn.reset();
                self.shake_hands(indices, out);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(?error, "a WireGuard timer failed"),
        }
    }

    /// Sends the first message of a handshake, if the endpoint is known.
    fn shake_hands(&mut self, indices: &mut Indices<'_>, out: &mut Vec<Sealed>) {
        if self.endpoints.current().is_none() {
            return;
        }
        if let Some(packet) = self.tunn.format_handshake_initiation(true) {
            self.push(packet.into(), indices, out);
        }
    }

    /// Sends a datagram to the peer, and records its index if it begins a session.
    fn push(&mut self, packet: WgKind, indices: &mut Indices<'_>, out: &mut Vec<Sealed>) {
        let index = match &packet {
            WgKind::HandshakeInit(init) => Some(init.sender_idx.get()),
            WgKind::HandshakeResp(response) => Some(response.sender_idx.get()),
            WgKind::CookieReply(_) | WgKind::Data(_) => None,
        };
        if let Some(index) = index {
            indices.by_index.insert(index, indices.key);
            self.indices.push_back(index);
            if self.indices.len() > INDICES
                && let Some(old) = self.indices.pop_front()
            {
                indices.by_index.remove(&old);
            }
        }
        let Some(to) = self.endpoints.current() else {
            return;
        };
        let packet = Packet::from(packet);
        self.sent_bytes += packet.len() as u64;
        out.push((packet, to));
    }

    fn status(&self, now: Instant) -> MeshPeerStatus {
        let age = self
            .handshake
            .map(|at| now.saturating_duration_since(at).as_secs());
        MeshPeerStatus {
            public_key: self.key,
            endpoint: self.endpoints.current(),
            handshake_age_s: age,
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
