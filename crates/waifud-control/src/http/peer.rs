//! Extractors for the caller: an authenticated user, a node, or a machine that wants to join.

use axum::extract::FromRequestParts;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;
use waifud_types::event::Cause;
use waifud_types::{Digest, NodeId};

use super::Refusal;
use super::envelope::RequestId;
use crate::Control;
use crate::auth::principal::{ConnectionProof, Peer, Principal};
use crate::auth::problems as auth_problems;
use crate::nodes::problems as node_problems;

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

/// An authenticated user, with the server that it calls.
#[derive(Clone, Debug)]
pub struct AuthenticatedUser {
    /// The control server.
    pub control: Control,
    /// The principal.
    pub principal: Principal,
    /// The cause of events.
    pub cause: Cause,
}

impl FromRequestParts<Control> for AuthenticatedUser {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self, Refusal> {
        // The guard inserts the principal.
        let Some(principal) = parts.extensions.get::<Principal>().cloned() else {
            return Err(auth_problems::forbidden("this route has no guard").into());
        };
        let id = request_id(parts);
        Ok(Self {
            control: control.clone(),
            cause: principal.cause(&id),
            principal,
        })
    }
}

fn peer(parts: &Parts) -> Peer {
    parts
        .extensions
        .get::<ConnectInfo<Peer>>()
        .map_or(Peer::Unknown, |ConnectInfo(peer)| *peer)
}

/// The agent of an admitted node.
#[derive(Clone, Debug)]
pub struct AgentPeer {
    /// The peer of the connection.
    pub peer: Peer,
    /// The node.
    pub node: NodeId,
    /// The key of its certificate.
    pub key: Digest,
    /// The cause of events.
    pub request_id: String,
}

impl FromRequestParts<Control> for AgentPeer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self, Refusal> {
        let peer = peer(parts);
        let Peer::Certificate { node, key, .. } = peer else {
            return Err(auth_problems::user_on_agent_route().into());
        };
        let admitted = control.is_admitted(node, key).await?;
        if let Some(proof) = parts.extensions.get::<ConnectionProof>() {
            proof.set_node(admitted.then_some(node));
        }
        if !admitted {
            let name = control.admitted_name(node).await?;
            return Err(node_problems::certificate_not_current(name.as_ref()).into());
        }
        Ok(Self {
            peer,
            node,
            key,
            request_id: request_id(parts),
        })
    }
}

/// A machine that wants to join. Its join token is checked later.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// The peer of the connection.
    pub peer: Peer,
    /// The cause of events.
    pub request_id: String,
}

impl<S: Sync> FromRequestParts<S> for Newcomer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Ok(Self {
            peer: peer(parts),
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
