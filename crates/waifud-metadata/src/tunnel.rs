//! The interface to this end of the tunnel, which accepts the node's key that the agent sets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use waifud_kit::sync::lock;
use waifud_wireguard::{PeerConfig, PublicKey, TunnelServer, WireguardError};

/// This end of the tunnel.
pub trait TunnelEnd: Send + Sync + 'static {
    /// This end's identity.
    fn public_key(&self) -> PublicKey;

    /// The UDP address for sealed packets.
    fn endpoint(&self) -> SocketAddr;

    /// Sets the only peer.
    fn set_peer(&self, peer: PeerConfig) -> Result<(), WireguardError>;
}

/// The real tunnel.
#[derive(Debug)]
pub struct WireguardEnd {
    server: TunnelServer,
    public_key: PublicKey,
}

impl WireguardEnd {
    /// Wraps a running server. `public_key` belongs to the private key that it was started with.
    pub fn new(server: TunnelServer, public_key: PublicKey) -> Self {
        Self { server, public_key }
    }
}

impl TunnelEnd for WireguardEnd {
    fn public_key(&self) -> PublicKey {
        self.public_key
    }

    fn endpoint(&self) -> SocketAddr {
        self.server.local_address()
    }

    fn set_peer(&self, peer: PeerConfig) -> Result<(), WireguardError> {
        self.server.set_peer(peer)
    }
}

/// A fake that records the peer.
#[derive(Debug, Default)]
pub struct FakeTunnel(Mutex<Option<PeerConfig>>);

impl FakeTunnel {
    /// The peer that was set last.
    pub fn peer(&self) -> Option<PeerConfig> {
        lock(&self.0).clone()
    }
}

impl TunnelEnd for FakeTunnel {
    fn public_key(&self) -> PublicKey {
        PublicKey::from([1; 32])
    }

    fn endpoint(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 51821))
    }

    fn set_peer(&self, peer: PeerConfig) -> Result<(), WireguardError> {
        if peer.allowed.is_empty() {
            return Err(WireguardError::NothingAllowed);
        }
        *lock(&self.0) = Some(peer);
        Ok(())
    }
}
