//! Who asks, from the connection.

use axum::extract::FromRequestParts;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::Refusal;
use super::envelope::RequestId;
use crate::principal::{Cause, Peer, Principal};
use crate::problems;

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(credentials) => Self::Unix {
                uid: credentials.uid(),
            },
            Err(_) => Self::Unknown,
        }
    }
}

fn peer(parts: &Parts) -> Result<Peer, Refusal> {
    match parts.extensions.get::<ConnectInfo<Peer>>() {
        Some(ConnectInfo(Peer::Unknown)) | None => Err(problems::forbidden(
            "the kernel does not say who you are; connect to the unix socket directly",
        )
        .into()),
        // Neither tokens nor certificates are known yet: only the kernel's word counts.
        Some(ConnectInfo(Peer::Tls { .. } | Peer::Certificate { .. })) => Err(problems::forbidden(
            "this waifud knows local users only; use its unix socket",
        )
        .into()),
        Some(ConnectInfo(peer)) => Ok(*peer),
    }
}

/// Somebody who may use the user's API.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Who.
    pub principal: Principal,
    /// For events.
    pub cause: Cause,
}

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let principal = Principal::of(peer(parts)?);
        let id = request_id(parts);
        Ok(Self {
            cause: Cause::user(&principal, &id),
            principal,
        })
    }
}

/// A node's agent: root on this machine.
#[derive(Clone, Debug)]
pub struct AgentPeer {
    /// The other end.
    pub peer: Peer,
    /// For events.
    pub request_id: String,
}

impl<S: Sync> FromRequestParts<S> for AgentPeer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let peer = peer(parts)?;
        if !peer.is_root() {
            return Err(
                problems::forbidden("only root's waifud-agentd may use this socket").into(),
            );
        }
        Ok(Self {
            peer,
            request_id: request_id(parts),
        })
    }
}

fn request_id(parts: &Parts) -> String {
    parts
        .extensions
        .get::<RequestId>()
        .map_or_else(String::new, |id| id.0.clone())
}
