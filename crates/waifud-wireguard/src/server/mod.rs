//! The server's end of the tunnel: encrypted packets on one UDP socket, and guests' TCP connections from
//! [`Listener::accept`].
//!
//! [`Wire`] decrypts and encrypts, [`Stack`] implements TCP; both work without I/O. [`Shared`] connects them to the socket.
//! One task receives packets and handles timers. Reads and writes of a [`Connection`] drive the stack and send the result
//! directly, so an answer needs no task switch.
//!
//! Locks: first the output (wire and socket), then the stack, never in the opposite order, and never across an await.

mod connection;
mod shared;
mod stats;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::task::JoinHandle;

use self::shared::Shared;
pub use self::{
    connection::{Connection, Listener},
    stats::{Refusals, ServerStats},
};
use crate::{
    PeerConfig, ServerConfig, WireguardError,
    stack::Stack,
    udp::DatagramSocket,
    wire::{Peer, Wire},
};

/// A running server end. Dropping it ends the tunnel: open connections are reset, the listener ends.
#[derive(Debug)]
pub struct TunnelServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    receiver: JoinHandle<()>,
}

impl TunnelServer {
    /// Opens the UDP socket and starts the stack without a peer: all packets are dropped until [`set_peer`](Self::set_peer).
    /// Must be called inside a tokio runtime.
    pub fn start(config: ServerConfig) -> Result<(Self, Listener), WireguardError> {
        let ServerConfig {
            listen,
            private_key,
            service,
            limits,
        } = config;
        limits.check()?;
        let socket = Arc::new(DatagramSocket::bind_loopback(listen)?);
        let address = socket
            .local_address()
            .map_err(|source| WireguardError::Bind {
                address: listen,
                source,
            })?;
        let wire = Wire::new(&private_key, limits.mtu);
        let stack = Stack::new(service, limits, rand::random());
        let shared = Arc::new(Shared::new(Arc::clone(&socket), wire, stack));
        let receiver = tokio::spawn(shared::receive(Arc::clone(&shared), socket));
        let listener = Listener::new(Arc::clone(&shared));
        Ok((
            Self {
                shared,
                address,
                receiver,
            },
            listener,
        ))
    }

    /// The address for encrypted packets, with the chosen port if port 0 was configured.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the only peer. The same peer again changes nothing. Another key resets the old peer's connections; a narrower
    /// `allowed` resets those outside it. With an endpoint, a handshake is sent immediately, unless a packet of the peer
    /// was received within the last two seconds.
    pub fn set_peer(&self, peer: PeerConfig) -> Result<(), WireguardError> {
        peer.check()?;
        let PeerConfig {
            public_key,
            endpoint,
            allowed,
        } = peer;
        let peer = Peer {
            key: public_key,
            endpoint,
            allowed,
        };
        let next = peer.clone();
        let known = self.shared.outside(|wire, sealed| {
            let known = wire.peer().is_some_and(|old| old.key == peer.key);
            wire.set_peer(peer, Instant::now(), sealed);
            known
        });
        self.shared.drive(|stack, now| {
            stack.retain(
                |source| known == Some(true) && next.allows(*source.ip()),
                now,
            );
        });
        Ok(())
    }

    /// Removes the peer: its connections are reset, and all packets are dropped.
    pub fn remove_peer(&self) {
        self.shared.drive(|stack, now| stack.retain(|_| false, now));
        self.shared.outside(|wire, _| wire.remove_peer());
    }

    /// The current counters.
    pub fn stats(&self) -> ServerStats {
        self.shared.stats()
    }

    /// Ends the tunnel and waits until the UDP port is free again.
    pub async fn stop(mut self) {
        self.shared.close();
        self.receiver.abort();
        // An aborted task returns an error.
        let _ = (&mut self.receiver).await;
    }
}

impl Drop for TunnelServer {
    fn drop(&mut self) {
        self.shared.close();
        self.receiver.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::PrivateKey;

    #[tokio::test]
    async fn the_listener_ends_when_the_receiving_task_panics() {
        let config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            ..ServerConfig::new(PrivateKey::generate())
        };
        let (server, mut listener) = TunnelServer::start(config).unwrap();
        server.receiver.abort();
        let accepted = timeout(Duration::from_secs(30), listener.accept()).await;
        assert!(accepted.unwrap().is_none());
    }
}
