//! What makes this machine a node: its key, its certificate, the CA that it trusts, and waifud's addresses.
//!
//! All of it is in one file, so that a crash cannot leave a part of it. Before that file exists, the key is written to disk
//! before the join request is sent. An interrupted join continues with the same key, for which the token is still valid.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use waifud_api::agent_client::{AgentClient, AgentClientError};
use waifud_api::join::{JoinRequest, JoinToken, Joined};
use waifud_kit::sync::lock;
use waifud_pki::{
    Identity, NodeKey, NodePeer, PkiError, certificates, client_config, fingerprint, join_config,
    server_name, valid_until, write_durably,
};
use waifud_types::{Digest, Name, NodeId, Secret, Timestamp};

use crate::interfaces::TlsPeers;

/// The file of a node that has joined.
const FILE: &str = "identity.json";
/// The code of waifud's refusal of a certificate that is not the node's current one.
const NOT_ADMITTED: &str = "not-admitted";
/// The key of a node that has begun to join.
const JOINING: &str = "joining.key";

/// Why a machine is not, or cannot become, a node.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// A file cannot be read or written.
    #[error("cannot use {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Keys or certificates are invalid.
    #[error("cannot use the keys or certificates")]
    Pki(#[from] PkiError),
    /// waifud does not answer or refuses.
    #[error("cannot join")]
    Refused(#[from] AgentClientError),
    /// No address is known.
    #[error("the token does not contain waifud's address; pass it with --server https://HOST:7373")]
    NoAddress,
    /// waifud's answer does not match the request.
    #[error("unexpected answer from waifud: {0}")]
    Answer(&'static str),
}

#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    node: NodeId,
    name: Name,
    key: Secret<String>,
    certificate: String,
    ca: String,
    addresses: Vec<String>,
}

/// This machine's place in a cluster.
pub struct Membership {
    path: PathBuf,
    stored: Mutex<Stored>,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// Reads the membership in the state directory; `None` if this machine has not joined.
    pub fn open(state_dir: &Path) -> Result<Option<Self>, MembershipError> {
        let path = state_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file(&path, error)),
        };
        let stored = serde_json::from_str(&text).map_err(|error| file(&path, error))?;
        Ok(Some(Self {
            path,
            stored: Mutex::new(stored),
        }))
    }

    /// Joins: creates a key, or reuses the one of an earlier attempt, and contacts the waifud whose CA the token names.
    ///
    /// `servers`, if not empty, replaces the token's addresses.
    pub async fn join(
        state_dir: &Path,
        token: &JoinToken,
        servers: &[String],
        name: Name,
    ) -> Result<Self, MembershipError> {
        let addresses = if servers.is_empty() {
            &token.addresses
        } else {
            servers
        };
        if addresses.is_empty() {
            return Err(MembershipError::NoAddress);
        }
        let key = key_for_joining(state_dir)?;
        let client = AgentClient::tls(join_config(token.ca)?, server_name(), addresses.to_vec());
        let request = JoinRequest::new(token.secret.expose(), key.request()?, name);
        let joined = client.join(&request).await?;
        check(&joined, token, &key)?;
        let stored = Stored {
            node: joined.node,
            name: joined.name,
            key: Secret::new(key.to_pem()),
            certificate: joined.certificate,
            ca: joined.ca,
            // The address that answered is known to work from here.
            addresses: with_first(client.addresses(), &joined.addresses),
        };
        let path = state_dir.join(FILE);
        write(&path, &stored)?;
        // A leftover is harmless: another attempt would reuse it.
        let _best_effort = std::fs::remove_file(state_dir.join(JOINING));
        Ok(Self {
            path,
            stored: Mutex::new(stored),
        })
    }

    /// The id of this node.
    pub fn node(&self) -> NodeId {
        self.stored().node
    }

    /// Whether the node belongs to the cluster whose CA has this fingerprint.
    pub fn is_of(&self, ca: Digest) -> bool {
        let known = certificates(&self.stored().ca);
        known.is_ok_and(|known| known.first().is_some_and(|own| fingerprint(own) == ca))
    }

    /// Asks waifud whether it admits this node. It does not after the node was removed, or joined with another key.
    pub async fn is_admitted(&self) -> Result<bool, MembershipError> {
        match self.client()?.own_node().await {
            Ok(own) => Ok(own.node == self.node()),
            Err(AgentClientError::Problem(problem)) if problem.code == NOT_ADMITTED => Ok(false),
            // An earlier version, which does not have the route.
            Err(AgentClientError::Problem(problem)) if problem.status == 404 => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether both are the same node with the same key.
    pub fn is_same(&self, other: &Self) -> bool {
        let (own, other) = (self.stored().clone(), other.stored().clone());
        own.node == other.node && own.key.expose() == other.key.expose()
    }

    /// The name with which the node joined.
    pub fn name(&self) -> Name {
        self.stored().name.clone()
    }

    /// Until when this node's certificate is valid; `None` if it cannot be parsed.
    pub fn certificate_until(&self) -> Option<Timestamp> {
        let own = certificates(&self.stored().certificate).ok()?;
        valid_until(own.first()?).ok()
    }

    /// waifud's known addresses.
    pub fn addresses(&self) -> Vec<String> {
        self.stored().addresses.clone()
    }

    /// A client that authenticates with this node's certificate.
    pub fn client(&self) -> Result<AgentClient, MembershipError> {
        let stored = self.stored().clone();
        let own = Identity::from_pem(stored.key.expose(), &stored.certificate)?;
        let ca = certificates(&stored.ca)?.swap_remove(0);
        let config = client_config(&ca, Some(&own))?;
        Ok(AgentClient::tls(config, server_name(), stored.addresses))
    }

    /// Connections to and from the other nodes of the cluster, authenticated with this node's certificate.
    pub fn peers(
        &self,
        listen: Option<SocketAddr>,
        advertised: Vec<SocketAddr>,
    ) -> Result<TlsPeers, MembershipError> {
        let stored = self.stored().clone();
        let own = Identity::from_pem(stored.key.expose(), &stored.certificate)?;
        let ca = certificates(&stored.ca)?.swap_remove(0);
        Ok(TlsPeers::new(ca, own, listen, advertised)?)
    }

    /// Stores waifud's addresses. Durable when it returns; nothing is written if they are known.
    pub fn learn(&self, addresses: &[String]) -> Result<(), MembershipError> {
        let mut stored = self.stored();
        if addresses.is_empty() || addresses.iter().all(|a| stored.addresses.contains(a)) {
            return Ok(());
        }
        // A few old addresses are kept after the new ones, so that wrong new addresses do not cut the node off.
        let old = std::mem::take(&mut stored.addresses);
        stored.addresses = with_first(addresses.to_vec(), &old);
        stored.addresses.truncate(16);
        write(&self.path, &stored)
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        lock(&self.stored)
    }
}

fn with_first(mut first: Vec<String>, rest: &[String]) -> Vec<String> {
    for address in rest {
        if !first.contains(address) {
            first.push(address.clone());
        }
    }
    first
}

/// The key of an earlier attempt, or a new one, which is durable before it is used.
fn key_for_joining(state_dir: &Path) -> Result<NodeKey, MembershipError> {
    let path = state_dir.join(JOINING);
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok(key) = NodeKey::from_pem(&text)
    {
        return Ok(key);
    }
    let key = NodeKey::generate()?;
    write_durably(&path, &key.to_pem(), 0o600)?;
    Ok(key)
}

/// The handshake has verified the CA. The answer must contain the same CA and a certificate for our key.
fn check(joined: &Joined, token: &JoinToken, key: &NodeKey) -> Result<(), MembershipError> {
    let ca = certificates(&joined.ca)?.swap_remove(0);
    if fingerprint(&ca) != token.ca {
        return Err(MembershipError::Answer(
            "the certificate is signed by another CA",
        ));
    }
    let own = certificates(&joined.certificate)?.swap_remove(0);
    let peer = NodePeer::of(&own)?;
    if peer.node != joined.node || peer.key != key.digest() {
        return Err(MembershipError::Answer(
            "the certificate is for another node",
        ));
    }
    Ok(())
}

fn write(path: &Path, stored: &Stored) -> Result<(), MembershipError> {
    let text = serde_json::to_string_pretty(stored).map_err(|error| file(path, error))?;
    Ok(write_durably(path, &text, 0o600)?)
}

fn file(
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> MembershipError {
    MembershipError::File {
        path: path.to_owned(),
        source: source.into(),
    }
}
