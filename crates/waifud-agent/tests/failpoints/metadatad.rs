//! metadatad with its real service, on a disk in memory, without sockets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use waifud_agent::interfaces::{MetadataError, MetadataService};
use waifud_api::metadatad::{Assignment, Observations, RedisSetting, Status, Tunnel};
use waifud_cloudinit::Tokens;
use waifud_metadata::{
    ControlError, FakeStore, FakeTunnel, GuestLimits, MetadataService as Service, Parts,
    RedisBundles, system_clock,
};
use waifud_redis::Redis;
use waifud_types::{Digest, InstanceId};

/// Only its disk survives when metadatad is killed.
#[derive(Default)]
pub struct Metadatad {
    pub disk: FakeStore,
    process: Mutex<Option<(Arc<Service>, CancellationToken)>>,
}

impl Metadatad {
    pub async fn start(&self) {
        let alive = CancellationToken::new();
        let service = Service::start(Parts {
            bundles: Arc::new(self.disk.clone()),
            state: Arc::new(self.disk.clone()),
            redis: Arc::new(RedisBundles::new(Arc::new(Redis), system_clock)),
            tunnel: Arc::new(FakeTunnel::default()),
            tokens: Tokens::new(&[7; 32]),
            limits: GuestLimits::default(),
            clock: system_clock,
            stop: alive.clone(),
        });
        *self.process.lock().unwrap() = Some((service.await.unwrap(), alive));
    }

    pub fn kill(&self) {
        if let Some((_, alive)) = self.process.lock().unwrap().take() {
            alive.cancel();
        }
    }

    async fn ask<T, F>(&self, verb: impl FnOnce(Arc<Service>) -> F) -> Result<T, MetadataError>
    where
        F: Future<Output = Result<T, ControlError>>,
    {
        let process = self.process.lock().unwrap().clone();
        let (service, alive) = process.ok_or_else(gone)?;
        let answer = alive.run_until_cancelled(verb(service)).await;
        answer.ok_or_else(gone)?.map_err(|error| match error {
            ControlError::BundleMissing { .. } => MetadataError::BundleMissing,
            other => MetadataError::Refused {
                message: other.to_string(),
            },
        })
    }
}

fn gone() -> MetadataError {
    MetadataError::Unreachable {
        message: "metadatad was killed".to_owned(),
    }
}

/// The agent's connection to a metadatad.
pub struct Link(pub Arc<Metadatad>);

#[async_trait]
impl MetadataService for Link {
    async fn status(&self) -> Result<Status, MetadataError> {
        self.0.ask(async |s| Ok(s.status().await)).await
    }

    async fn set_tunnel(&self, tunnel: &Tunnel) -> Result<Status, MetadataError> {
        let tunnel = tunnel.clone();
        self.0
            .ask(|s| async move { s.put_tunnel(tunnel).await })
            .await
    }

    async fn set_redis(&self, setting: &RedisSetting) -> Result<(), MetadataError> {
        let setting = setting.clone();
        let put = |s: Arc<Service>| async move {
            s.put_redis(setting);
            Ok(())
        };
        self.0.ask(put).await
    }

    async fn bundle(&self, bundle: Digest) -> Result<Option<Bytes>, MetadataError> {
        let read = |s: Arc<Service>| async move { s.bundle(bundle).await };
        self.0.ask(read).await
    }

    async fn put_bundle(&self, bundle: Digest, bytes: Bytes) -> Result<(), MetadataError> {
        let put = |s: Arc<Service>| async move { s.put_bundle(bundle, bytes).await };
        self.0.ask(put).await
    }

    async fn drop_bundle(&self, bundle: Digest) -> Result<(), MetadataError> {
        let delete = |s: Arc<Service>| async move { s.delete_bundle(bundle).await };
        self.0.ask(delete).await
    }

    async fn assign(&self, id: InstanceId, wanted: &Assignment) -> Result<(), MetadataError> {
        let wanted = wanted.clone();
        let put = |s: Arc<Service>| async move { s.put_instance(id, wanted).await };
        self.0.ask(put).await
    }

    async fn release(&self, id: InstanceId) -> Result<(), MetadataError> {
        let delete = |s: Arc<Service>| async move { s.delete_instance(id).await };
        self.0.ask(delete).await
    }

    async fn observations(
        &self,
        after: u64,
        wait: Duration,
    ) -> Result<Observations, MetadataError> {
        let read = |s: Arc<Service>| async move { Ok(s.observations(after, wait).await) };
        self.0.ask(read).await
    }
}
