//! Counters of a server, for `doctor`, metrics and tests.

use std::time::Duration;

/// A snapshot of the server's counters. All except the gauges only increase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Time since the current session's handshake; `None` without a session.
    pub handshake_age: Option<Duration>,
    /// Sealed bytes received and accepted from the peer.
    pub received_bytes: u64,
    /// Sealed bytes sent to the peer.
    pub sent_bytes: u64,
    /// Current connections, including half-open and closing ones (gauge).
    pub connections: usize,
    /// Source addresses with at least one connection (gauge).
    pub sources: usize,
    /// Connections handed to [`Listener::accept`] so far.
    pub accepted: u64,
    /// Refused packets and connections, by cause.
    pub refused: Refusals,
}

/// Refused packets and connections, by cause. All counters only increase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Datagrams that are not from the peer: wrong key, damaged, replayed, or no peer is set.
    pub not_from_peer: u64,
    /// Packets whose inner source the peer may not use.
    pub source_not_allowed: u64,
    /// Inner packets that are not complete IPv4 packets: malformed, fragments, IPv6.
    pub malformed: u64,
    /// Packets for an inner address that is not the service's.
    pub not_for_us: u64,
    /// TCP to another port of the service's address, answered with a reset.
    pub other_port: u64,
    /// SYNs beyond [`StackLimits::max_per_source`](crate::StackLimits::max_per_source); dropped.
    pub per_source: u64,
    /// SYNs beyond [`StackLimits::max_connections`](crate::StackLimits::max_connections); dropped.
    pub global: u64,
    /// Connections that were ended in favor of a source with fewer.
    pub evicted: u64,
    /// Connections ended by one of the four timeouts.
    pub timed_out: u64,
}
