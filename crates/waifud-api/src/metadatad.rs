//! The protocol between a node agent and its metadata service, over a unix socket that only root can open.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`]: which process this is and what it holds |
//! | `PUT /v1/tunnel` [`Tunnel`] | [`Status`]: the node's side of WireGuard is accepted from now on |
//! | `PUT /v1/redis` [`RedisSetting`] | 204: bundles are read from this Redis from now on, or from none |
//! | `GET /v1/bundles/{digest}` | the ciphertext; 404 when it is not held |
//! | `PUT /v1/bundles/{digest}` ciphertext | 204; 400 when the bytes do not have the digest |
//! | `DELETE /v1/bundles/{digest}` | 204: not kept, unless an instance is served it |
//! | `PUT /v1/instances/{id}` [`Assignment`] | 204: held and served; 409 `bundle-missing`: neither held nor in Redis, put the bundle first |
//! | `DELETE /v1/instances/{id}` | 204: forgotten, also on disk |
//! | `GET /v1/observations?after=N&wait=SECONDS` | [`Observations`]: what guests asked for and reported |
//!
//! The service stores bundles and assignments on disk (0600), so that after a restart it can answer before the agent
//! has connected. When `Status::process` changes, the agent sends everything again.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use waifud_types::evidence::ModuleResult;
use waifud_types::status::Condition;
use waifud_types::{InstanceId, Name, Timestamp};

use crate::agent::{BundleRef, RedisAccess};

/// The running process and what it serves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Random for each process; a change means a restart.
    pub process: String,
    /// WireGuard public key of the service in base64; kept over restarts.
    pub public_key: String,
    /// Address that its end of the tunnel listens on.
    pub endpoint: SocketAddr,
    /// The accepted public key of the node; null before the first `PUT /v1/tunnel`.
    pub node_public_key: Option<String>,
    /// The instances that it serves.
    pub instances: Vec<Held>,
    /// Instances with a stored assignment that it cannot serve because their bundle is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unserved: Vec<InstanceId>,
    /// Stored bundles without an instance: not assigned yet, or left over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused_bundles: Vec<waifud_types::Digest>,
    /// Why bundles cannot be read from Redis; null if they can, or if there is no Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<Condition>,
}

/// A served instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// The instance.
    pub id: InstanceId,
    /// The source address that identifies it.
    pub address: Ipv4Addr,
    /// Digest of its bundle.
    pub bundle: waifud_types::Digest,
}

/// The node's end of the tunnel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tunnel {
    /// WireGuard public key of the node in base64.
    pub node_public_key: String,
    /// Address that the node's end listens on, so that a restarted service can connect immediately.
    pub node_endpoint: SocketAddr,
    /// The subnet of guests: inner addresses outside of it and of `identities` are rejected.
    pub subnet: ipnet::Ipv4Net,
    /// Accepted addresses outside of the subnet: those of guests that moved to this node and kept them. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Ipv4Addr>,
    /// Additional accepted addresses, which identify guests whose own addresses waifud does not assign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identities: Option<ipnet::Ipv4Net>,
}

/// The Redis to read bundles from. The service keeps it in memory only.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RedisSetting {
    /// How to reach it; null for none.
    #[serde(default)]
    pub access: Option<RedisAccess>,
}

/// The bundle for one instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assignment {
    /// Name of the instance, for logs.
    pub name: Name,
    /// The exact inner source address.
    pub address: Ipv4Addr,
    /// The bundle and its key.
    pub bundle: BundleRef,
}

/// A range of observations.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observations {
    /// The `?after=` of the next request.
    pub last: u64,
    /// Oldest first. The list is bounded: old entries are dropped, and `last` reveals the gap.
    pub items: Vec<Observation>,
}

/// One observation of a guest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Observation {
    /// Sequence number within one process, from 1.
    pub number: u64,
    /// Time of the observation.
    pub at: Timestamp,
    /// The instance.
    pub instance: InstanceId,
    /// The observation.
    #[serde(flatten)]
    pub what: Observed,
}

/// An event of cloud-init's reporter: the start or end of a stage or a module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CloudInitEvent {
    /// The stage, or stage and module, for example `modules-final/config-scripts-user`; text from the guest.
    pub name: String,
    /// The result at the end; null at the start.
    pub result: Option<ModuleResult>,
    /// cloud-init's description; text from the guest.
    pub description: String,
    /// Time on the guest's clock, in microseconds since the epoch.
    pub guest_micros: Option<i64>,
}

/// Kinds of observations.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Observed {
    /// The guest requested a document.
    Request {
        /// The path; text from the guest.
        path: String,
        /// HTTP status of the response.
        status: u16,
    },
    /// cloud-init phoned home: it has finished.
    PhoneHome {
        /// The instance-id according to the guest; text from the guest.
        instance_id: Option<String>,
        /// Hostname; text from the guest.
        hostname: Option<String>,
        /// Public host keys; text from the guest.
        host_keys: Vec<String>,
    },
    /// cloud-init's reporter sent an event about a stage or a module.
    CloudInit(CloudInitEvent),
}
