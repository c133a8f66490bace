//! The node's metadata service and the tunnel that leads guests to it, as the agent sees them.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::metadatad::{Assignment, Observations, Status, Tunnel};
use waifud_api::{MetadatadClient, MetadatadError};
use waifud_types::{Digest, InstanceId};

/// Why the metadata service or the tunnel did not do it. Messages are fit for users.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetadataError {
    /// It does not answer: not running, or just restarted.
    #[error("{message}; is waifud-metadatad running?")]
    Unreachable {
        /// Whom, and what the system said.
        message: String,
    },
    /// It does not hold the bundle yet.
    #[error("the metadata service does not hold the instance's documents yet")]
    BundleMissing,
    /// It refused.
    #[error("the metadata service refused: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// It could not do it, for reasons of its own: trying again may help.
    #[error("the metadata service can't do it: {message}")]
    Failed {
        /// Its words.
        message: String,
    },
    /// The node's end of the tunnel could not be made.
    #[error("the tunnel to the metadata service could not be made: {message}")]
    Tunnel {
        /// Why.
        message: String,
    },
}

/// The node's metadata service. Every verb is an *ensure*.
#[async_trait]
pub trait MetadataService: Send + Sync {
    /// Which process answers, and what it holds.
    async fn status(&self) -> Result<Status, MetadataError>;

    /// The node's side of the tunnel is accepted from now on.
    async fn set_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadataError>;

    /// It holds these encrypted bytes.
    async fn put_bundle(&self, bundle: Digest, bytes: Bytes) -> Result<(), MetadataError>;

    /// It does not keep these bytes, unless it serves them to an instance.
    async fn drop_bundle(&self, bundle: Digest) -> Result<(), MetadataError>;

    /// The instance's documents are served: after `Ok` the guest may be started.
    async fn assign(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadataError>;

    /// Nothing of the instance is held.
    async fn release(&self, instance: InstanceId) -> Result<(), MetadataError>;

    /// What guests did after observation number `after`; waits up to `wait` for the next.
    async fn observations(&self, after: u64, wait: Duration)
    -> Result<Observations, MetadataError>;
}

/// The node's end of the tunnel, up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelUp {
    /// Its WireGuard public key, base64.
    pub public_key: String,
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// Whether the link was made by this call: routes that lead to it have to be made again.
    pub fresh: bool,
}

/// Keeps the node's end of the tunnel up.
#[async_trait]
pub trait MetadataTunnel: Send + Sync {
    /// The link is up and leads to this server. Changes nothing when it already does.
    async fn ensure(
        &self,
        server_public_key: &str,
        server_endpoint: SocketAddr,
    ) -> Result<TunnelUp, MetadataError>;
}

#[async_trait]
impl MetadataService for MetadatadClient {
    async fn status(&self) -> Result<Status, MetadataError> {
        MetadatadClient::status(self).await.map_err(service_error)
    }

    async fn set_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadataError> {
        self.put_tunnel(tunnel).await.map_err(service_error)
    }

    async fn put_bundle(&self, bundle: Digest, bytes: Bytes) -> Result<(), MetadataError> {
        MetadatadClient::put_bundle(self, bundle, bytes)
            .await
            .map_err(service_error)
    }

    async fn drop_bundle(&self, bundle: Digest) -> Result<(), MetadataError> {
        MetadatadClient::drop_bundle(self, bundle)
            .await
            .map_err(service_error)
    }

    async fn assign(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadataError> {
        self.put_instance(instance, assignment)
            .await
            .map_err(service_error)
    }

    async fn release(&self, instance: InstanceId) -> Result<(), MetadataError> {
        self.delete_instance(instance).await.map_err(service_error)
    }

    async fn observations(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<Observations, MetadataError> {
        MetadatadClient::observations(self, after, wait)
            .await
            .map_err(service_error)
    }
}

fn service_error(error: MetadatadError) -> MetadataError {
    if error.is_bundle_missing() {
        return MetadataError::BundleMissing;
    }
    match error {
        // Its own trouble, such as a full disk, is not about what it was told.
        MetadatadError::Problem(problem) if problem.status >= 500 => MetadataError::Failed {
            message: problem.hint.map_or_else(
                || problem.title.clone(),
                |hint| format!("{}: {hint}", problem.title),
            ),
        },
        MetadatadError::Problem(problem) => MetadataError::Refused {
            message: problem.title,
        },
        MetadatadError::Unreachable { ref source, .. } => MetadataError::Unreachable {
            message: format!("{error}: {source}"),
        },
        other => MetadataError::Unreachable {
            message: other.to_string(),
        },
    }
}
