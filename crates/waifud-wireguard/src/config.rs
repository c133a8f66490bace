//! The configuration of each end of the tunnel. Plain data: no file is read here.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ipnet::Ipv4Net;

use crate::{PrivateKey, PublicKey, WireguardError, wire::MAX_MTU};

/// The MTU that leaves space for WireGuard's 60 to 80 bytes in an Ethernet frame; `wg-quick` and the kernel use it too.
pub const DEFAULT_MTU: u16 = 1420;

/// The maximum of timeouts; a longer connection to a small service is an error.
const LONGEST: Duration = Duration::from_hours(24);

/// The server's end, which `waifud-metadatad` runs.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The UDP address for encrypted packets. Loopback only, usually 127.0.0.1:51821. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// The private key of this end.
    pub private_key: PrivateKey,
    /// The TCP address that is served inside the tunnel. Other ports of it answer with a reset.
    pub service: SocketAddrV4,
    /// Limits that keep one guest from excluding others.
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

/// Limits of the TCP stack. The four timeouts end every connection, regardless of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackLimits {
    /// Connections of all sources, including half-open ones. At this limit, a new connection replaces the longest idle
    /// connection of the source with the most, if that source has at least two more than the new one's.
    pub max_connections: usize,
    /// Connections of one inner source address. Further SYNs are dropped silently, so that the client tries again.
    pub max_per_source: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection may last without payload received or acknowledged.
    pub idle_timeout: Duration,
    /// How long a connection may last in total.
    pub lifetime: Duration,
    /// How long the client may take to close after our side has closed.
    pub close_timeout: Duration,
    /// The receive buffer of a connection in bytes, which is the maximum window.
    pub rx_buffer: usize,
    /// The send buffer of a connection in bytes, which is the maximum of unacknowledged data.
    pub tx_buffer: usize,
    /// The MTU inside the tunnel in bytes. Both ends and the link must have the same.
    pub mtu: u16,
}

impl Default for StackLimits {
    /// 512 connections, 64 per source; 5 s for the handshake, 30 s idle, 5 min in total, 10 s to close; buffers of 8 KiB for
    /// receiving and 16 KiB for sending.
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
    /// Refuses limits that would make the server useless.
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
            // Every IPv4 host must accept 576 bytes (RFC 791).
            ("mtu", (576..=MAX_MTU).contains(&self.mtu), "576 to 1920"),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, why)) => Err(WireguardError::Limit { name, why }),
            None => Ok(()),
        }
    }
}

/// The node as a peer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The node's public key.
    pub public_key: PublicKey,
    /// The endpoint of the node. With it, the server starts a handshake immediately, so guests are served soon after its
    /// restart. Without it, the server waits for the node.
    pub endpoint: Option<SocketAddr>,
    /// The allowed inner source addresses: the ranges of the node's guests.
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

/// The node's end, which `waifud-agentd` runs.
#[derive(Debug, Clone)]
pub struct NodeTunnelConfig {
    /// The name of the created link, usually `wfmeta0`.
    pub interface: String,
    /// The node's identity.
    pub private_key: PrivateKey,
    /// The UDP address for encrypted packets. Loopback only, usually 127.0.0.1:51822.
    pub listen: SocketAddr,
    /// The server's public key.
    pub server_public_key: PublicKey,
    /// The endpoint of the server, usually 127.0.0.1:51821.
    pub server_endpoint: SocketAddr,
    /// The inner addresses of the server, usually 169.254.169.254/32. Packets to or from others are dropped.
    pub allowed: Vec<Ipv4Net>,
    /// The MTU inside the tunnel in bytes, which must be equal to [`StackLimits::mtu`].
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
        // IFNAMSIZ is 16 including the final zero.
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
    fn an_address_other_than_loopback_is_refused() {
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
    fn limits_that_make_the_server_useless_are_refused() {
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
