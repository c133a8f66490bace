//! Who asks.
//!
//! On the unix socket the kernel says which user is at the other end; the socket's permissions (0660, group
//! `waifud-admin`) decide who gets that far, so everybody who does is an administrator. Over the network a token says
//! who asks (`tokens.rs`), and `http/guard.rs` lets them in.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use waifud_store::TokenRow;
use waifud_types::event::Actor;
use waifud_types::{Digest, NodeId, Role};

/// The other end of a connection, as the kernel or the TLS layer vouches for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this machine.
    Unix {
        /// Its effective user.
        uid: u32,
    },
    /// A TLS connection without a client certificate: a bearer token may say more.
    Tls {
        /// Its address.
        from: SocketAddr,
    },
    /// A TLS connection with a client certificate of our CA, whose key the handshake has proven.
    Certificate {
        /// Its address.
        from: SocketAddr,
        /// The node that the certificate names.
        node: NodeId,
        /// The SHA-256 of the certificate's public key (its DER `SubjectPublicKeyInfo`): only the key that stands in
        /// the node's row is accepted.
        key: Digest,
    },
    /// Nobody vouches for it; it is let in nowhere.
    Unknown,
}

impl Peer {
    /// Where the request came from, for events.
    pub fn from(&self) -> String {
        match self {
            Self::Unix { uid } => format!("unix:uid={uid}"),
            Self::Tls { from } | Self::Certificate { from, .. } => from.ip().to_string(),
            Self::Unknown => "unknown".to_owned(),
        }
    }

    /// Whether it is root on this machine.
    pub const fn is_root(&self) -> bool {
        matches!(self, Self::Unix { uid: 0 })
    }
}

/// Who proved itself by the newest request of a connection. It is an extension of each request; a connection on which
/// nothing is proven is the first to be closed when there are too many.
#[derive(Clone, Debug, Default)]
pub struct ConnectionProof(Arc<AtomicU64>);

impl ConnectionProof {
    /// A number for the token or the node; `None` when nothing is proven.
    pub fn holder(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|holder| *holder != 0)
    }

    /// Notes whether the connection is a node's.
    pub fn set_node(&self, node: Option<NodeId>) {
        self.set(node.map(|node| {
            let (high, low) = node.as_uuid().as_u64_pair();
            high ^ low
        }));
    }

    /// Notes the outcome of a request's authentication.
    pub fn set(&self, holder: Option<u64>) {
        let number = holder.map_or(0, |number| number.max(1));
        self.0.store(number, Ordering::Relaxed);
    }
}

/// What counts as one source of connections: an IPv4 address, or the /64 around an IPv6 address, all of which one host
/// may use.
pub fn source_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// `uid=1000`, or `token=laptop`.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Where from.
    pub from: String,
    /// The public part of the token that proves it; `None` for local users.
    pub token: Option<[u8; 8]>,
}

impl Principal {
    /// A user of this machine: who gets to the socket is an administrator.
    pub fn local(uid: u32) -> Self {
        Self {
            name: format!("uid={uid}"),
            role: Role::Admin,
            from: Peer::Unix { uid }.from(),
            token: None,
        }
    }

    /// Whoever holds the token.
    pub(crate) fn token(row: &TokenRow, from: String) -> Self {
        Self {
            name: format!("token={}", row.name),
            role: row.role,
            from,
            token: Some(row.id),
        }
    }

    /// Whose idempotency keys they are. A token that was revoked and made again under its name is another one.
    pub fn key_owner(&self) -> String {
        self.token.map_or_else(
            || self.name.clone(),
            |id| format!("token:{:016x}", u64::from_be_bytes(id)),
        )
    }
}

/// Who causes a change, and in which request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// For events.
    pub actor: Actor,
    /// For events.
    pub request_id: Option<String>,
}

impl Cause {
    /// A user's request.
    pub fn user(principal: &Principal, request_id: &str) -> Self {
        Self {
            actor: Actor {
                kind: "user".to_owned(),
                name: principal.name.clone(),
                from: Some(principal.from.clone()),
            },
            request_id: Some(request_id.to_owned()),
        }
    }

    /// A node's report.
    pub fn node(name: &str, from: Option<String>, request_id: Option<String>) -> Self {
        Self {
            actor: Actor {
                kind: "node".to_owned(),
                name: name.to_owned(),
                from,
            },
            request_id,
        }
    }

    /// waifud itself.
    pub fn system() -> Self {
        Self {
            actor: Actor {
                kind: "system".to_owned(),
                name: "waifud".to_owned(),
                from: None,
            },
            request_id: None,
        }
    }
}
