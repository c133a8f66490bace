//! The node's metadata service and the tunnel that leads guests to it, as the agent sees them.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::metadatad::{Assignment, Observations, RedisSetting, Status, Tunnel};
use waifud_api::{MetadatadClient, MetadatadError};
use waifud_types::{Digest, InstanceId};

/// Why a request to the metadata service or the tunnel failed. Messages are suitable for users.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetadataError {
    /// The service does not answer.
    #[error("{message}; is waifud-metadatad running?")]
    Unreachable {
        /// The socket and the error.
        message: String,
    },
    /// The service does not hold the bundle yet.
    #[error("the metadata service has not stored the instance's metadata and user-data yet")]
    BundleMissing,
    /// The service refused the request.
    #[error("the metadata service refused: {message}")]
    Refused {
        /// The service's message.
        message: String,
    },
    /// The service failed; a retry may help.
    #[error("the metadata service failed: {message}")]
    Failed {
        /// The service's message.
        message: String,
    },
    /// The node's end of the tunnel could not be created.
    #[error("cannot create the tunnel to the metadata service: {message}")]
    Tunnel {
        /// Why.
        message: String,
    },
}

/// The node's metadata service. Every verb is an *ensure*.
#[async_trait]
pub trait MetadataService: Send + Sync {
    /// The service's process and what it holds.
    async fn status(&self) -> Result<Status, MetadataError>;

    /// Makes the service accept this end of the tunnel.
    async fn set_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadataError>;

    /// Makes the service read bundles from this Redis, or from none. A service of an earlier version ignores it.
    async fn set_redis(&self, setting: &RedisSetting) -> Result<(), MetadataError>;

    /// The bundle's encrypted bytes; `None` if the service does not hold them.
    async fn bundle(&self, bundle: Digest) -> Result<Option<Bytes>, MetadataError>;

    /// Makes the service hold these encrypted bytes.
    async fn put_bundle(&self, bundle: Digest, bytes: Bytes) -> Result<(), MetadataError>;

    /// Makes the service drop these bytes, unless it serves them to an instance.
    async fn drop_bundle(&self, bundle: Digest) -> Result<(), MetadataError>;

    /// Makes the service serve the instance's documents. After `Ok` the guest may be started.
    async fn assign(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), MetadataError>;

    /// Makes the service release everything of the instance.
    async fn release(&self, instance: InstanceId) -> Result<(), MetadataError>;

    /// The observations after number `after`. Waits up to `wait` for the next one.
    async fn observations(&self, after: u64, wait: Duration)
    -> Result<Observations, MetadataError>;
}

/// The node's end of the tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelUp {
    /// Its WireGuard public key, base64.
    pub public_key: String,
    /// Its listening address.
    pub endpoint: SocketAddr,
    /// Whether this call created the link, so that its routes have to be added again.
    pub fresh: bool,
}

/// Keeps the node's end of the tunnel up.
#[async_trait]
pub trait MetadataTunnel: Send + Sync {
    /// Ensures that the link is up and connects to this server.
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

    async fn set_redis(&self, setting: &RedisSetting) -> Result<(), MetadataError> {
        match self.put_redis(setting).await {
            Err(MetadatadError::Problem(problem)) if problem.status == 404 => Ok(()),
            other => other.map_err(service_error),
        }
    }

    async fn bundle(&self, bundle: Digest) -> Result<Option<Bytes>, MetadataError> {
        MetadatadClient::bundle(self, bundle)
            .await
            .map_err(service_error)
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
        // An internal error, for example a full disk, does not depend on the request.
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

#[cfg(test)]
mod tests {
    use waifud_api::Problem;

    use super::*;

    /// A service with these answers to `PUT /v1/redis`, and its client.
    fn service(status: u16) -> (tempfile::TempDir, MetadatadClient) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("control.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let router = axum::Router::new().fallback(async move || {
            let problem =
                serde_json::to_string(&Problem::new(status, "not-found", "unknown route"));
            let status = axum::http::StatusCode::from_u16(status).unwrap();
            (status, problem.unwrap())
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        (dir, MetadatadClient::new(socket))
    }

    #[tokio::test]
    async fn a_service_of_an_earlier_version_works_without_redis() {
        let setting = RedisSetting::default();
        let (_dir, earlier) = service(404);
        assert_eq!(earlier.set_redis(&setting).await, Ok(()));
        let bundle = MetadataService::bundle(&earlier, Digest::of(b"a")).await;
        assert_eq!(bundle, Ok(None));
        let (_dir, failing) = service(500);
        failing.set_redis(&setting).await.unwrap_err();
    }
}
