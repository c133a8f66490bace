//! What a node's agent tells its metadata service, over a unix socket that only root may open.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`]: which process this is and what it holds |
//! | `PUT /v1/tunnel` [`Tunnel`] | [`Status`]: the node's side of WireGuard is accepted from now on |
//! | `PUT /v1/bundles/{digest}` ciphertext | 204; 400 when the bytes do not have the digest |
//! | `DELETE /v1/bundles/{digest}` | 204: not kept, unless an instance is served it |
//! | `PUT /v1/instances/{id}` [`Assignment`] | 204: held and served; 409 `bundle-missing`: put the bundle first |
//! | `DELETE /v1/instances/{id}` | 204: forgotten, also on disk |
//! | `GET /v1/observations?after=N&wait=SECONDS` | [`Observations`]: what guests asked for and reported |
//!
//! The service keeps bundles and assignments on its own disk (0600), so that it answers after a restart before the
//! agent has come back. When `Status::process` changes, the agent says everything again.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use waifud_types::evidence::ModuleResult;
use waifud_types::{InstanceId, Name, Timestamp};

use crate::agent::BundleRef;

/// Which process answers, and what it holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Random for each process: a change means that it was restarted.
    pub process: String,
    /// Its WireGuard public key, base64; the same over restarts.
    pub public_key: String,
    /// Where its end of the tunnel listens.
    pub endpoint: SocketAddr,
    /// The node's public key that it accepts; null before the first `PUT /v1/tunnel`.
    pub node_public_key: Option<String>,
    /// What it serves.
    pub instances: Vec<Held>,
    /// Instances with an assignment on its disk that it can't serve, for want of their bundle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unserved: Vec<InstanceId>,
    /// Bundles that it keeps and serves to no instance: to be assigned soon, or left over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused_bundles: Vec<waifud_types::Digest>,
}

/// One instance that it serves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The instance.
    pub id: InstanceId,
    /// The address that identifies it.
    pub address: Ipv4Addr,
    /// The bundle that it gets.
    pub bundle: waifud_types::Digest,
}

/// The node's side of the tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// The node's WireGuard public key, base64.
    pub node_public_key: String,
    /// Where the node's end listens, so that a restarted service can greet it at once.
    pub node_endpoint: SocketAddr,
    /// The guests' subnet: no inner address outside of it and of `identities` is believed.
    pub subnet: ipnet::Ipv4Net,
    /// Addresses that stand for guests whose own are not ours to give; believed too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<ipnet::Ipv4Net>,
}

/// Who is served what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// The instance's name, for logs.
    pub name: Name,
    /// The exact inner source address.
    pub address: Ipv4Addr,
    /// The bundle and its key.
    pub bundle: BundleRef,
}

/// A stretch of what guests did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observations {
    /// Pass as `?after=` next time.
    pub last: u64,
    /// Oldest first. Bounded: old ones are dropped, `last` shows the gap.
    pub items: Vec<Observation>,
}

/// One thing that a guest did.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observation {
    /// Its number, counting up from 1 in one process.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// Which instance.
    pub instance: InstanceId,
    /// What it did.
    #[serde(flatten)]
    pub what: Observed,
}

/// One event of cloud-init's reporter: a stage or a module began or ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloudInitEvent {
    /// The stage, or stage and module, such as `modules-final/config-scripts-user`; text from a guest.
    pub name: String,
    /// How it ended; null when it began.
    pub result: Option<ModuleResult>,
    /// cloud-init's description; text from a guest.
    pub description: String,
    /// When, by the guest's clock, in microseconds since the epoch.
    pub guest_micros: Option<i64>,
}

/// Kinds of observations.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Observed {
    /// It asked for a document.
    Request {
        /// The path; text from a guest.
        path: String,
        /// The answer's HTTP status.
        status: u16,
    },
    /// Its cloud-init phoned home: it is done.
    PhoneHome {
        /// The instance-id that it believes to have; text from a guest.
        instance_id: Option<String>,
        /// Its host name; text from a guest.
        hostname: Option<String>,
        /// Public host keys; text from a guest.
        host_keys: Vec<String>,
    },
    /// cloud-init's reporter told of a stage or a module.
    CloudInit(CloudInitEvent),
}
