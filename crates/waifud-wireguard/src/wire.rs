//! An encrypted link: WireGuard's handshake and cipher for one peer, without I/O.
//!
//! gotatun's `Tunn` implements the protocol. This adds what a link between two processes of one machine needs:
//!
//! * **Recovery in about a second.** WireGuard waits 15 s without an answer before it replaces a session, during which
//!   guests are not served after a restart of the other end. Here, an end that has received data answers within [`SOON`],
//!   at least with a keepalive, and an end that has sent data without an answer for three times as long starts a new
//!   handshake. Handshakes are also retried without WireGuard's limit of 90 s.
//! * **Handshake without traffic.** An end that knows the other's endpoint starts a handshake immediately, and again after
//!   [`QUIET`]. So a restart of either end is detected, regardless of clocks.
//! * **Cryptokey routing.** An inner packet is accepted only if the peer may use its source, and encrypted only if the peer
//!   may use its destination.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use gotatun::{
    noise::{
        TimerParams, Tunn, TunnResult, errors::WireGuardError, index_table::IndexTable,
        rate_limiter::RateLimiter,
    },
    packet::{Packet, WgKind},
    tun::MtuWatcher,
};
use ipnet::Ipv4Net;
use x25519_dalek::StaticSecret;

use crate::{PrivateKey, PublicKey};

/// How long an end that has received data may wait before it answers.
const SOON: Duration = Duration::from_millis(500);
/// After this time without packets, an end that knows the other's endpoint starts a handshake. Longer than [`KEEPALIVE`].
const QUIET: Duration = Duration::from_secs(30);
/// Seconds between keepalives while nothing else is sent; WireGuard's usual value.
const KEEPALIVE: u16 = 25;
/// Handshakes per second and outer address before the other end must prove its address with a cookie.
const HANDSHAKES_PER_SECOND: u64 = 100;
/// How often [`Wire::tick`] must be called.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// The size of a datagram buffer in bytes: the largest inner packet, 32 bytes of WireGuard, and padding.
pub(crate) const DATAGRAM: usize = 2048;
/// The largest inner MTU for [`DATAGRAM`].
pub(crate) const MAX_MTU: u16 = 1920;

/// A datagram and its destination.
pub(crate) type Sealed = (Packet, SocketAddr);

/// The configuration of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub allowed: Vec<Ipv4Net>,
}

impl Peer {
    pub fn allows(&self, address: Ipv4Addr) -> bool {
        self.allowed.iter().any(|net| net.contains(&address))
    }
}

/// Counters of a link for all of its peers so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WireStats {
    pub handshake_age: Option<Duration>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub not_from_peer: u64,
    pub not_ipv4: u64,
    pub source_not_allowed: u64,
}

/// Encrypts and decrypts the packets of a device, without I/O.
pub(crate) trait Engine: Send + 'static {
    /// Encrypts one inner packet, or queues it until there is a session.
    fn seal(&mut self, packet: Packet, out: &mut Vec<Sealed>);

    /// Decrypts a datagram. Returns an inner packet with an allowed source.
    fn open(
        &mut self,
        datagram: Packet,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<Sealed>,
    ) -> Option<Packet>;

    /// Processes the protocol's timers. Must be called every [`TICK`].
    fn tick(&mut self, now: Instant, out: &mut Vec<Sealed>);

    /// Moves datagrams that a change of the configuration has left to be sent.
    fn take_pending(&mut self, _out: &mut Vec<Sealed>) {}
}

impl Engine for Wire {
    fn seal(&mut self, packet: Packet, out: &mut Vec<Sealed>) {
        Self::seal(self, packet, out);
    }

    fn open(
        &mut self,
        datagram: Packet,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<Sealed>,
    ) -> Option<Packet> {
        Self::open(self, datagram, from, now, out)
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Sealed>) {
        Self::tick(self, now, out);
    }
}

/// One end of the link.
pub(crate) struct Wire {
    secret: StaticSecret,
    limiter: Arc<RateLimiter>,
    indices: IndexTable,
    mtu: MtuWatcher,
    link: Option<Link>,
    counted: WireStats,
}

struct Link {
    peer: Peer,
    /// The source of the last valid datagram; initially the configured endpoint.
    roamed: Option<SocketAddr>,
    tunn: Tunn,
    heard: Option<Instant>,
    spoke_first: Instant,
}

impl Wire {
    pub fn new(key: &PrivateKey, mtu: u16) -> Self {
        Self {
            limiter: Arc::new(RateLimiter::new(
                &key.public_key().point(),
                HANDSHAKES_PER_SECOND,
            )),
            secret: key.secret(),
            indices: IndexTable::from_os_rng(),
            mtu: MtuWatcher::new(mtu),
            link: None,
            counted: WireStats::default(),
        }
    }

    pub fn peer(&self) -> Option<&Peer> {
        self.link.as_ref().map(|link| &link.peer)
    }

    /// Sets the peer. A session with the same key continues; a handshake is sent unless a packet was just received.
    pub fn set_peer(&mut self, peer: Peer, now: Instant, out: &mut Vec<Sealed>) {
        match &mut self.link {
            Some(link) if link.peer.key == peer.key => {
                if link.peer.endpoint != peer.endpoint {
                    link.roamed = peer.endpoint;
                    link.heard = None;
                }
                link.peer = peer;
            }
            _ => {
                let mut tunn = Tunn::new(
                    self.secret.clone(),
                    peer.key.point(),
                    None,
                    Some(KEEPALIVE),
                    self.indices.clone(),
                    Arc::clone(&self.limiter),
                );
                tunn.dangerously_set_timer_params(TimerParams {
                    keepalive_timeout: SOON..=SOON,
                    new_handshake_timeout: 3 * SOON..=4 * SOON,
                    rekey_timeout: 2 * SOON..=3 * SOON,
                    ..TimerParams::default()
                });
                self.link = Some(Link {
                    roamed: peer.endpoint,
                    peer,
                    tunn,
                    heard: None,
                    spoke_first: now,
                });
            }
        }
        if let Some(link) = &mut self.link
            && link
                .silent_for(now)
                .is_none_or(|silence| silence > 4 * SOON)
        {
            self.counted.sent_bytes += link.shake_hands(now, out);
        }
    }

    pub fn remove_peer(&mut self) {
        self.link = None;
    }

    /// Decrypts a datagram. Returns an inner IPv4 packet with an allowed source, possibly with padding after its end.
    /// Answers, and packets that waited for a session, are appended to `out`; what is refused is counted.
    pub fn open(
        &mut self,
        datagram: Packet,
        from: SocketAddr,
        now: Instant,
        out: &mut Vec<Sealed>,
    ) -> Option<Packet> {
        let length = datagram.len() as u64;
        let verified = self.limiter.verify_packet(from, datagram);
        if let Err(TunnResult::WriteToNetwork(cookie)) = verified {
            out.push((cookie.into(), from));
            return None;
        }
        let opened = match (&mut self.link, verified) {
            (Some(link), Ok(packet)) => Some((link.tunn.handle_incoming_packet(packet), link)),
            _ => None,
        };
        let Some((result, link)) =
            opened.filter(|(result, _)| !matches!(result, TunnResult::Err(_)))
        else {
            self.counted.not_from_peer += 1;
            return None;
        };
        link.roamed = Some(from);
        link.heard = Some(now);
        self.counted.received_bytes += length;
        let inner = match result {
            TunnResult::WriteToTunnel(packet) if !packet.is_empty() => Some(packet),
            TunnResult::WriteToNetwork(answer) => {
                self.counted.sent_bytes += push(out, answer, from);
                None
            }
            _ => None,
        };
        // The opened packet may have confirmed the session that queued packets wait for.
        for waiting in link.tunn.get_queued_packets(&mut self.mtu) {
            self.counted.sent_bytes += push(out, waiting, from);
        }
        let inner = inner?;
        match source(&inner) {
            Some(source) if link.peer.allows(source) => return Some(inner),
            Some(_) => self.counted.source_not_allowed += 1,
            None => self.counted.not_ipv4 += 1,
        }
        None
    }

    /// Encrypts one inner packet, or queues it until there is a session. Drops it if the peer may not receive it.
    pub fn seal(&mut self, packet: Packet, out: &mut Vec<Sealed>) {
        let Some(link) = &mut self.link else { return };
        let Some(to) = link.roamed else { return };
        let Some(destination) = destination(&packet) else {
            return;
        };
        if !link.peer.allows(destination) {
            return;
        }
        if let Some(sealed) = link
            .tunn
            .handle_outgoing_packet(packet, Some(&mut self.mtu))
        {
            self.counted.sent_bytes += push(out, sealed, to);
        }
    }

    /// Processes the protocol's timers. Must be called every [`TICK`].
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Sealed>) {
        self.limiter.try_reset_count();
        let Some(link) = &mut self.link else { return };
        let Some(to) = link.roamed else { return };
        let due = link.tunn.update_timers();
        match due {
            Ok(Some(packet)) => self.counted.sent_bytes += push(out, packet, to),
            Ok(None) if link.silent_for(now).is_some_and(|silence| silence > QUIET) => {
                self.counted.sent_bytes += link.shake_hands(now, out);
            }
            Ok(None) => {}
            // After 90 s without an answer or when all keys have expired, WireGuard gives up; this link does not.
            Err(WireGuardError::ConnectionExpired) => {
                link.tunn.reset();
                self.counted.sent_bytes += link.shake_hands(now, out);
            }
            Err(error) => tracing::debug!(?error, "a WireGuard timer failed"),
        }
    }

    pub fn stats(&self) -> WireStats {
        let age = self
            .link
            .as_ref()
            .and_then(|link| link.tunn.time_since_last_handshake());
        WireStats {
            handshake_age: age,
            ..self.counted
        }
    }
}

impl Link {
    /// The time since the last packet from the peer, or else since the last handshake message to it; `None` if there
    /// was neither.
    fn silent_for(&self, now: Instant) -> Option<Duration> {
        let last = self.heard?.max(self.spoke_first);
        Some(now.saturating_duration_since(last))
    }

    /// Sends the first message of a handshake, if the endpoint is known. Returns the number of bytes.
    fn shake_hands(&mut self, now: Instant, out: &mut Vec<Sealed>) -> u64 {
        let Some(to) = self.roamed else { return 0 };
        self.spoke_first = now;
        self.tunn
            .format_handshake_initiation(true)
            .map_or(0, |packet| push(out, packet.into(), to))
    }
}

fn push(out: &mut Vec<Sealed>, packet: WgKind, to: SocketAddr) -> u64 {
    let packet = Packet::from(packet);
    let length = packet.len() as u64;
    out.push((packet, to));
    length
}

/// Source of an IPv4 packet: bytes 12 to 15 of its header (RFC 791).
pub(crate) fn source(packet: &[u8]) -> Option<Ipv4Addr> {
    address(packet, 12)
}

/// Destination of an IPv4 packet: bytes 16 to 19 of its header (RFC 791).
pub(crate) fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    address(packet, 16)
}

fn address(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let header = packet.first_chunk::<20>()?;
    let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
    (header[0] >> 4 == 4).then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
