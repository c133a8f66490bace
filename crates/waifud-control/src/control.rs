//! The configuration, and [`Control`], which holds all services.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio_util::sync::CancellationToken;
use waifud_pki::Authority;
use waifud_store::Store;
use waifud_types::{ByteSize, Timestamp};

use crate::ControlError;
use crate::auth::tokens::TokenState;
use crate::env::{Clock, Disk, Entropy, Interfaces, SystemDisk, SystemInterfaces};
use crate::events::HistoryClock;
use crate::images::downloads::{DownloadConfig, DownloadSettings, Downloads};
use crate::images::image_store::ImageStore;
use crate::images::service::Images;
use crate::instances::moving::MoveProgress;
use crate::instances::progress::InstanceProgress;
use crate::nodes::contacts::NodeContacts;
use crate::nodes::install::NodePackages;
use crate::placement::RetryQueue;
use crate::server::disk_space_monitor::DiskSpaceMonitor;
use crate::server::redis::{RedisConfig, RedisMonitor};
use crate::streams::{StreamBroker, StreamLimits};

/// The settings of the services.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// The state directory: images are below `images`, the private CA below `pki`.
    pub state_dir: PathBuf,
    /// The range of the nodes' guest subnets.
    pub guest_range: Ipv4Net,
    /// The URLs of this waifud that nodes use, `https://HOST:PORT`.
    pub addresses: Vec<String>,
    /// The root of this installation, whose files new nodes get.
    pub installation: PathBuf,
    /// A node without contact for this long is unreachable.
    pub unreachable_after: Duration,
    /// The maximum number of events to keep.
    pub events_kept: u64,
    /// The maximum age of events, in running time of waifud.
    pub events_kept_for: Duration,
    /// The maximum size of an image file.
    pub image_max: ByteSize,
    /// The DNS domain of guests.
    pub domain: String,
    /// The settings of downloads.
    pub downloads: DownloadConfig,
    /// The limits of streams.
    pub streams: StreamLimits,
    /// The Redis that caches bundles, if there is one.
    pub redis: Option<RedisConfig>,
    /// Measures free space.
    pub disk: Arc<dyn Disk>,
    /// Lists this machine's addresses, from which no image is downloaded.
    pub interfaces: Arc<dyn Interfaces>,
}

impl ControlConfig {
    /// The default settings with a state directory.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            guest_range: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 144, 0, 0), 12),
            addresses: Vec::new(),
            installation: PathBuf::from("/"),
            unreachable_after: Duration::from_secs(30),
            events_kept: 1_000_000,
            events_kept_for: Duration::from_hours(90 * 24),
            image_max: ByteSize::gib(64),
            domain: "waifu.internal".to_owned(),
            downloads: DownloadConfig::default(),
            streams: StreamLimits::default(),
            redis: None,
            disk: Arc::new(SystemDisk),
            interfaces: Arc::new(SystemInterfaces),
        }
    }
}

/// The control server's logic. Cheap to clone.
///
/// Each folder owns its part of the state as a struct with verbs; this only holds them together.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    config: ControlConfig,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    authority: Authority,
    contacts: NodeContacts,
    node_packages: NodePackages,
    instance_progress: InstanceProgress,
    move_progress: MoveProgress,
    disk_space: Arc<DiskSpaceMonitor>,
    redis_monitor: RedisMonitor,
    token_state: TokenState,
    images: Images,
    downloads: Downloads,
    stream_broker: StreamBroker,
    history_clock: HistoryClock,
    retry_queue: RetryQueue,
    stop: CancellationToken,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Puts the services together. Creates the private CA if there is none, and removes files of interrupted uploads.
    pub async fn new(
        store: Store,
        config: ControlConfig,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, ControlError> {
        let files = ImageStore::open(
            &config.state_dir,
            config.image_max,
            Arc::clone(&config.disk),
        )?;
        let (images, downloads) = store
            .read(|tx| {
                Ok::<_, waifud_store::StoreError>((tx.images(None, u32::MAX)?, tx.downloads()?))
            })
            .await?;
        let images: Vec<_> = images.iter().map(|image| image.digest).collect();
        let sources: Vec<_> = downloads.iter().map(|row| row.source).collect();
        files.remove_strays(&images, &sources)?;
        let pki = config.state_dir.join("pki");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pki)
            .map_err(ControlError::io(format!("creating {}", pki.display())))?;
        let authority = Authority::open(&pki)?;
        let stop = CancellationToken::new();
        let disk_space = Arc::new(DiskSpaceMonitor::new(
            Arc::clone(&config.disk),
            config.state_dir.clone(),
            clock.now(),
        ));
        let images = Images::new(store.clone(), files, Arc::clone(&clock));
        let downloads = Downloads::new(
            store.clone(),
            images.clone(),
            Arc::clone(&clock),
            DownloadSettings::new(
                config.downloads.clone(),
                config.image_max,
                config.guest_range,
                Arc::clone(&config.interfaces),
            ),
            stop.clone(),
        );
        let node_packages = NodePackages::new(
            config.installation.clone(),
            config.state_dir.join("packages"),
        );
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                config,
                clock,
                entropy,
                authority,
                contacts: NodeContacts::default(),
                node_packages,
                instance_progress: InstanceProgress::default(),
                move_progress: MoveProgress::default(),
                disk_space,
                redis_monitor: RedisMonitor::default(),
                token_state: TokenState::default(),
                images,
                downloads,
                stream_broker: StreamBroker::default(),
                history_clock: HistoryClock::default(),
                retry_queue: RetryQueue::default(),
                stop,
            }),
        })
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The private CA.
    pub fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// The directory of the private CA and of waifud's own certificate.
    pub fn pki_dir(&self) -> PathBuf {
        self.shared.config.state_dir.join("pki")
    }

    /// Canceled when waifud stops; watches end then.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.shared.stop
    }

    pub(crate) fn config(&self) -> &ControlConfig {
        &self.shared.config
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.shared.clock.as_ref()
    }

    pub(crate) fn entropy(&self) -> &dyn Entropy {
        self.shared.entropy.as_ref()
    }

    pub(crate) fn contacts(&self) -> &NodeContacts {
        &self.shared.contacts
    }

    pub(crate) fn node_packages(&self) -> &NodePackages {
        &self.shared.node_packages
    }

    pub(crate) fn move_progress(&self) -> &MoveProgress {
        &self.shared.move_progress
    }

    pub(crate) fn instance_progress(&self) -> &InstanceProgress {
        &self.shared.instance_progress
    }

    pub(crate) fn disk_space(&self) -> &DiskSpaceMonitor {
        &self.shared.disk_space
    }

    pub(crate) fn redis_monitor(&self) -> &RedisMonitor {
        &self.shared.redis_monitor
    }

    pub(crate) fn token_state(&self) -> &TokenState {
        &self.shared.token_state
    }

    pub(crate) fn images(&self) -> &Images {
        &self.shared.images
    }

    pub(crate) fn downloads(&self) -> &Downloads {
        &self.shared.downloads
    }

    pub(crate) fn stream_broker(&self) -> &StreamBroker {
        &self.shared.stream_broker
    }

    pub(crate) fn history_clock(&self) -> &HistoryClock {
        &self.shared.history_clock
    }

    pub(crate) fn retry_queue(&self) -> &RetryQueue {
        &self.shared.retry_queue
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// How long this process has run.
    pub(crate) fn running(&self) -> Duration {
        self.shared.clock.monotonic()
    }
}
