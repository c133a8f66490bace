//! What a server has done, as plain numbers for `doctor`, metrics and tests.

use std::time::Duration;

/// A snapshot of the server's counters. All but the gauges only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Time since the current session's handshake; `None` without a session.
    pub handshake_age: Option<Duration>,
    /// Sealed bytes received and accepted from the peer.
    pub received_bytes: u64,
    /// Sealed bytes sent to the peer.
    pub sent_bytes: u64,
    /// Connections now, half-open and closing ones included (gauge).
    pub connections: usize,
    /// Source addresses with at least one connection now (gauge).
    pub sources: usize,
    /// Connections handed to [`Listener::accept`] so far.
    pub accepted: u64,
    /// What was turned away, by cause.
    pub refused: Refusals,
}

/// Packets and connections turned away, by cause. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Datagrams that are not the peer's: wrong key, broken, replayed, or no peer is set.
    pub not_from_peer: u64,
    /// Packets whose inner source the peer may not use.
    pub source_not_allowed: u64,
    /// Inner packets that are no whole, plain IPv4: malformed, fragments, IPv6.
    pub malformed: u64,
    /// Packets for an inner address that is not the service's.
    pub not_for_us: u64,
    /// TCP to another port of the service's address; answered with a reset.
    pub other_port: u64,
    /// SYNs beyond [`StackLimits::max_per_source`](crate::StackLimits::max_per_source); dropped.
    pub per_source: u64,
    /// SYNs beyond [`StackLimits::max_connections`](crate::StackLimits::max_connections); dropped.
    pub global: u64,
    /// Connections that made place for a source that had fewer.
    pub evicted: u64,
    /// Connections that one of the four timeouts cut.
    pub timed_out: u64,
}
