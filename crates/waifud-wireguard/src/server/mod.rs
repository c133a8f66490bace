//! The in-process end: sealed packets in on one UDP socket, guests' TCP connections out of [`Listener::accept`].
//!
//! Two pieces without I/O do the work: [`Wire`] opens and seals, [`Stack`] speaks TCP. [`Shared`] joins them to the
//! socket. One task receives and keeps the time; whoever reads or writes a [`Connection`] drives the stack and sends the
//! outcome from where it stands, so that an answer needs no switch of tasks.
//!
//! Locks: the way out (wire and socket) before the stack, never the other way round, and neither across an await.

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
    udp::LoopbackSocket,
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
    /// Opens the UDP socket and starts the stack, without a peer: until [`set_peer`](Self::set_peer) nobody is heard.
    /// Must be called inside a tokio runtime.
    pub fn start(config: ServerConfig) -> Result<(Self, Listener), WireguardError> {
        let ServerConfig {
            listen,
            private_key,
            service,
            limits,
        } = config;
        limits.check()?;
        let socket = Arc::new(LoopbackSocket::bind(listen)?);
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

    /// Where sealed packets are expected: the port that was taken if port 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Ensures that this is the one peer. The same peer again changes nothing; another key ends the old peer's
    /// connections; a narrower `allowed` ends those outside it. With an endpoint, a handshake is sent at once, unless the
    /// peer was heard within the last two seconds.
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

    /// Ensures that there is no peer: its connections are reset and nobody is heard.
    pub fn remove_peer(&self) {
        self.shared.drive(|stack, now| stack.retain(|_| false, now));
        self.shared.outside(|wire, _| wire.remove_peer());
    }

    /// What has happened so far.
    pub fn stats(&self) -> ServerStats {
        self.shared.stats()
    }

    /// Ends the tunnel and waits until the UDP port is free again.
    pub async fn stop(mut self) {
        self.shared.close();
        self.receiver.abort();
        // An aborted task answers with an error that says so.
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
    async fn when_the_receiving_task_breaks_the_listener_ends() {
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
