//! What each end of the tunnel is told. Plain data: no file is read here.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ipnet::Ipv4Net;

use crate::{PrivateKey, PublicKey, WireguardError, wire::MAX_MTU};

/// Room for WireGuard's 60 to 80 bytes of wrapping inside an Ethernet frame; what `wg-quick` and the kernel use too.
pub const DEFAULT_MTU: u16 = 1420;

/// Longest time that a limit may name; a connection to a small service that lives longer is a mistake.
const LONGEST: Duration = Duration::from_hours(24);

/// The in-process end, as `waifud-metadatad` runs it.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// UDP address for sealed packets. Loopback only, usually 127.0.0.1:51821; port 0 takes a free one.
    pub listen: SocketAddr,
    /// This end's identity.
    pub private_key: PrivateKey,
    /// The one TCP address that is served inside the tunnel; other ports of it answer with a reset.
    pub service: SocketAddrV4,
    /// Bounds that keep one guest from starving the others.
    pub limits: StackLimits,
}

impl ServerConfig {
    /// The usual addresses: 127.0.0.1:51821 outside, 169.254.169.254:80 inside.
    pub fn new(private_key: PrivateKey) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 51821)),
            private_key,
            service: SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80),
            limits: StackLimits::default(),
        }
    }
}

/// Bounds of the TCP stack. Every connection is cut by one of the four timeouts, whatever its client does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackLimits {
    /// Connections of all sources together, half-open ones included. When reached, a newcomer takes the place of the
    /// laziest connection of the source that holds most, if that source holds at least two more than the newcomer's.
    pub max_connections: usize,
    /// Connections of one inner source address. A SYN beyond it is dropped in silence, so that the client tries again.
    pub max_per_source: usize,
    /// From a SYN until the client has completed the handshake.
    pub handshake_timeout: Duration,
    /// Without one byte of payload received, or of ours acknowledged.
    pub idle_timeout: Duration,
    /// From a SYN until the end, however busy.
    pub lifetime: Duration,
    /// From our side being done with the connection until the client has agreed.
    pub close_timeout: Duration,
    /// Receive buffer of a connection in bytes: the largest window a client sees.
    pub rx_buffer: usize,
    /// Send buffer of a connection in bytes: what can be in flight unacknowledged.
    pub tx_buffer: usize,
    /// Largest IP packet inside the tunnel in bytes; both ends and the link must agree.
    pub mtu: u16,
}

impl Default for StackLimits {
    /// 512 connections, 64 per source; 5 s to shake hands, 30 s idle, 5 min in all, 10 s to close; 8 KiB in, 16 KiB out.
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_per_source: 64,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            lifetime: Duration::from_mins(5),
            close_timeout: Duration::from_secs(10),
            rx_buffer: 8 << 10,
            tx_buffer: 16 << 10,
            mtu: DEFAULT_MTU,
        }
    }
}

impl StackLimits {
    /// Refuses limits under which nobody could be served.
    pub(crate) fn check(&self) -> Result<(), WireguardError> {
        let time = |time: Duration| !time.is_zero() && time <= LONGEST;
        let buffer = |bytes: usize| (1 << 10..=1 << 20).contains(&bytes);
        let (times, buffers) = ("more than 0, at most a day", "1 KiB to 1 MiB");
        let rules = [
            ("max_connections", self.max_connections > 0, "at least 1"),
            ("max_per_source", self.max_per_source > 0, "at least 1"),
            ("handshake_timeout", time(self.handshake_timeout), times),
            ("idle_timeout", time(self.idle_timeout), times),
            ("lifetime", time(self.lifetime), times),
            ("close_timeout", time(self.close_timeout), times),
            ("rx_buffer", buffer(self.rx_buffer), buffers),
            ("tx_buffer", buffer(self.tx_buffer), buffers),
            // 576 is what every IPv4 host must take (RFC 791).
            ("mtu", (576..=MAX_MTU).contains(&self.mtu), "576 to 1920"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, why)) => Err(WireguardError::Limit { name, why }),
            None => Ok(()),
        }
    }
}

/// The node, as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The node's identity.
    pub public_key: PublicKey,
    /// Where the node listens. Given one, the server shakes hands at once, so that its own restart strands nobody;
    /// without, it waits for the node to notice.
    pub endpoint: Option<SocketAddr>,
    /// Inner source addresses that may come from this node: the ranges of its guests.
    pub allowed: Vec<Ipv4Net>,
}

impl PeerConfig {
    pub(crate) fn check(&self) -> Result<(), WireguardError> {
        if self.allowed.is_empty() {
            return Err(WireguardError::NothingAllowed);
        }
        self.endpoint.map_or(Ok(()), loopback)
    }
}

/// The node's end, as `waifud-agentd` runs it.
#[derive(Debug, Clone)]
pub struct NodeTunnelConfig {
    /// Name of the link that is made, usually `wfmeta0`.
    pub interface: String,
    /// The node's identity.
    pub private_key: PrivateKey,
    /// UDP address for sealed packets. Loopback only, usually 127.0.0.1:51822.
    pub listen: SocketAddr,
    /// The server's identity.
    pub server_public_key: PublicKey,
    /// Where the server listens, usually 127.0.0.1:51821.
    pub server_endpoint: SocketAddr,
    /// Inner addresses that lie behind the server, usually 169.254.169.254/32. Others are neither sent nor taken.
    pub allowed: Vec<Ipv4Net>,
    /// Largest IP packet inside the tunnel in bytes; [`StackLimits::mtu`] must agree.
    pub mtu: u16,
}

impl NodeTunnelConfig {
    /// The usual names and addresses: `wfmeta0`, 127.0.0.1:51822 to 127.0.0.1:51821, 169.254.169.254/32, 1420 bytes.
    pub fn new(private_key: PrivateKey, server_public_key: PublicKey) -> Self {
        Self {
            interface: "wfmeta0".into(),
            private_key,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 51822)),
            server_public_key,
            server_endpoint: SocketAddr::from((Ipv4Addr::LOCALHOST, 51821)),
            allowed: vec![Ipv4Net::from(Ipv4Addr::new(169, 254, 169, 254))],
            mtu: DEFAULT_MTU,
        }
    }

    pub(crate) fn check(&self) -> Result<(), WireguardError> {
        loopback(self.listen)?;
        loopback(self.server_endpoint)?;
        if self.allowed.is_empty() {
            return Err(WireguardError::NothingAllowed);
        }
        if !(576..=MAX_MTU).contains(&self.mtu) {
            return Err(WireguardError::Limit {
                name: "mtu",
                why: "576 to 1920",
            });
        }
        let name = &self.interface;
        let plain = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%' && b != b':');
        // IFNAMSIZ is 16 with the closing zero.
        if plain && (1..=15).contains(&name.len()) && name != "." && name != ".." {
            Ok(())
        } else {
            Err(WireguardError::InterfaceName {
                interface: name.clone(),
            })
        }
    }
}

pub(crate) fn loopback(address: SocketAddr) -> Result<(), WireguardError> {
    if address.ip().is_loopback() {
        Ok(())
    } else {
        Err(WireguardError::NotLoopback { address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_strangers_reach_is_refused() {
        for text in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1"] {
            let address = text.parse().unwrap();
            assert!(matches!(
                loopback(address),
                Err(WireguardError::NotLoopback { .. })
            ));
        }
        loopback("127.0.0.1:0".parse().unwrap()).unwrap();
    }

    #[test]
    fn names_that_linux_refuses_are_refused_before_root_is_needed() {
        let key = PrivateKey::generate();
        let mut config = NodeTunnelConfig::new(key.clone(), key.public_key());
        config.check().unwrap();
        for name in ["", "..", "a/b", "a b", "sixteen-letters!", "wf%d"] {
            config.interface = name.into();
            assert!(config.check().is_err(), "{name:?}");
        }
    }

    #[test]
    fn limits_that_serve_nobody_are_refused() {
        StackLimits::default().check().unwrap();
        let limits = StackLimits {
            max_per_source: 0,
            ..StackLimits::default()
        };
        assert!(matches!(
            limits.check(),
            Err(WireguardError::Limit {
                name: "max_per_source",
                ..
            })
        ));
    }
}
