//! The choice among the endpoints of a peer, without I/O: the next one is tried while the peer is silent.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// After this time without a packet of a peer, its next endpoint is tried. Longer than [`KEEPALIVE`](super::KEEPALIVE).
pub(super) const SILENT: Duration = Duration::from_secs(45);
/// How long each endpoint of a peer that was never heard is tried: three handshakes.
pub(super) const TRY: Duration = Duration::from_secs(15);

/// The endpoints of one peer.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// In order of preference.
    candidates: Vec<SocketAddr>,
    /// The source of the last valid datagram; initially the first candidate.
    current: Option<SocketAddr>,
    heard: Option<Instant>,
    /// When the present endpoint was chosen.
    chosen: Instant,
}

impl Endpoints {
    pub fn new(candidates: &[SocketAddr], now: Instant) -> Self {
        Self {
            candidates: candidates.to_vec(),
            current: candidates.first().copied(),
            heard: None,
            chosen: now,
        }
    }

    pub fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// A valid datagram came from the peer. `from` is unknown if the peer has no endpoint, although it was heard.
    pub fn heard(&mut self, from: Option<SocketAddr>, now: Instant) {
        self.current = from;
        self.heard = Some(now);
    }

    /// The present endpoint, if another one has chosen it.
    pub fn is_at(&mut self, endpoint: Option<SocketAddr>) {
        self.current = endpoint;
    }

    /// Sets the candidates. Returns whether the present endpoint has changed.
    pub fn set(&mut self, candidates: &[SocketAddr], now: Instant) -> bool {
        if self.candidates == candidates {
            return false;
        }
        self.candidates = candidates.to_vec();
        // A peer that has moved behind NAT keeps the address that it was last heard from.
        if self.silence(now) <= SILENT && self.current.is_some() {
            return false;
        }
        self.choose(candidates.first().copied(), now)
    }

    /// Chooses the next candidate if the peer is silent. Returns whether the present endpoint has changed.
    pub fn try_next(&mut self, now: Instant) -> bool {
        let limit = if self.heard.is_some() { SILENT } else { TRY };
        let tried = now.saturating_duration_since(self.chosen);
        if self.silence(now) <= limit || tried <= TRY || self.candidates.is_empty() {
            return false;
        }
        let mut candidates = self.candidates.iter();
        let at = candidates.position(|candidate| Some(*candidate) == self.current);
        let next = at.map_or(0, |at| (at + 1) % self.candidates.len());
        self.choose(self.candidates.get(next).copied(), now)
    }

    fn choose(&mut self, endpoint: Option<SocketAddr>, now: Instant) -> bool {
        let changed = endpoint != self.current;
        self.current = endpoint;
        self.chosen = now;
        changed
    }

    /// The time since the last packet of the peer, or else since its endpoint was chosen.
    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard.unwrap_or(self.chosen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51820))
    }

    #[test]
    fn the_next_candidate_is_tried_while_the_peer_is_silent() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut endpoints = Endpoints::new(&[endpoint(1), endpoint(2)], start);
        assert!(!endpoints.try_next(after(15)));
        assert!(endpoints.try_next(after(16)));
        assert_eq!(endpoints.current(), Some(endpoint(2)));
        assert!(endpoints.try_next(after(32)));
        assert_eq!(endpoints.current(), Some(endpoint(1)));
        // It answers from an address of its own choice, which is kept as long as it is heard.
        endpoints.heard(Some(endpoint(9)), after(40));
        assert!(!endpoints.try_next(after(85)));
        assert!(endpoints.try_next(after(86)));
        assert_eq!(endpoints.current(), Some(endpoint(1)));
    }

    #[test]
    fn other_candidates_are_used_at_once_only_for_a_silent_peer() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut endpoints = Endpoints::new(&[], start);
        assert!(!endpoints.try_next(after(100)));
        assert!(endpoints.set(&[endpoint(1)], after(1)));
        endpoints.heard(Some(endpoint(1)), after(2));
        assert!(!endpoints.set(&[endpoint(2)], after(47)));
        assert_eq!(endpoints.current(), Some(endpoint(1)));
        assert!(endpoints.set(&[endpoint(3)], after(48)));
        assert_eq!(endpoints.current(), Some(endpoint(3)));
        assert!(!endpoints.set(&[endpoint(3)], after(100)));
    }
}
