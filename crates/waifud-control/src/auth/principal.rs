//! Callers: the peer of a connection, and the authenticated principal.
//!
//! On the unix socket the kernel supplies the user id. The permissions of the socket (0660, group `waifud-admin`) decide
//! who can connect, so every caller there is an administrator. Over the network a token identifies the caller (`tokens.rs`),
//! and `http/guard.rs` checks its role.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use waifud_store::TokenRow;
use waifud_types::event::Cause;
use waifud_types::{Digest, Name, NodeId, Role};

/// The other end of a connection, as identified by the kernel or by TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this machine.
    Unix {
        /// Its effective user.
        uid: u32,
    },
    /// A TLS connection without a client certificate. A bearer token may identify the caller.
    Tls {
        /// Its address.
        from: SocketAddr,
    },
    /// A TLS connection with a client certificate of waifud's CA.
    Certificate {
        /// Its address.
        from: SocketAddr,
        /// The node that the certificate names.
        node: NodeId,
        /// The SHA-256 of the certificate's public key (its DER `SubjectPublicKeyInfo`). Only the key in the node's row is
        /// accepted.
        key: Digest,
    },
    /// Not identified; it has no access.
    Unknown,
}

impl Peer {
    /// The source of the request, for events.
    pub fn from(&self) -> String {
        match self {
            Self::Unix { uid } => format!("unix:uid={uid}"),
            Self::Tls { from } | Self::Certificate { from, .. } => from.ip().to_string(),
            Self::Unknown => "unknown".to_owned(),
        }
    }

    /// A request of the agent of this node as the cause of events.
    pub(crate) fn cause_of(&self, node: &Name, request_id: &str) -> Cause {
        Cause::request("node", node.as_str(), self.from(), request_id)
    }

    /// Whether it is root on this machine.
    pub const fn is_root(&self) -> bool {
        matches!(self, Self::Unix { uid: 0 })
    }
}

/// Whether the last request of a connection was authenticated, and as whom. It is an extension of each request. With too
/// many connections, unauthenticated ones are closed first.
#[derive(Clone, Debug, Default)]
pub struct ConnectionProof(Arc<AtomicU64>);

impl ConnectionProof {
    /// A number for the token or the node; `None` without authentication.
    pub fn holder(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|holder| *holder != 0)
    }

    /// Records a node's authentication.
    pub fn set_node(&self, node: Option<NodeId>) {
        self.set(node.map(|node| {
            let (high, low) = node.as_uuid().as_u64_pair();
            high ^ low
        }));
    }

    /// Records the result of a request's authentication.
    pub fn set(&self, holder: Option<u64>) {
        let number = holder.map_or(0, |number| number.max(1));
        self.0.store(number, Ordering::Relaxed);
    }
}

/// The source of a connection for limits: an IPv4 address, or the /64 of an IPv6 address, which one host can use completely.
pub fn source_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// An authenticated caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// `uid=1000`, or `token=laptop`.
    pub name: String,
    /// The role.
    pub role: Role,
    /// The source address or user id.
    pub from: String,
    /// The public part of the token; `None` for local users.
    pub token: Option<[u8; 8]>,
}

impl Principal {
    /// A local user, who is an administrator by access to the socket.
    pub fn local(uid: u32) -> Self {
        Self {
            name: format!("uid={uid}"),
            role: Role::Admin,
            from: Peer::Unix { uid }.from(),
            token: None,
        }
    }

    /// The holder of a token.
    pub(crate) fn token(row: &TokenRow, from: String) -> Self {
        Self {
            name: format!("token={}", row.name),
            role: row.role,
            from,
            token: Some(row.id),
        }
    }

    /// A request of this caller as the cause of events.
    pub fn cause(&self, request_id: &str) -> Cause {
        Cause::request("user", &self.name, self.from.clone(), request_id)
    }

    /// The owner of idempotency keys. A new token under the name of a revoked one is another owner.
    pub fn key_owner(&self) -> String {
        self.token.map_or_else(
            || self.name.clone(),
            |id| format!("token:{:016x}", u64::from_be_bytes(id)),
        )
    }
}
