//! What every service shares: the store, the surroundings, what is live, and the word to stop.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use waifud_pki::Authority;
use waifud_store::Store;
use waifud_types::status::StepStatus;
use waifud_types::{ByteSize, Digest, InstanceId, Name, Timestamp};

use crate::ControlError;
use crate::env::{Clock, Disk, Entropy, Interfaces, SystemDisk, SystemInterfaces};
use crate::images::downloads::{DownloadConfig, Jobs};
use crate::images::image_store::ImageStore;
use crate::nodes::live::Live;
use crate::server::disk_space::DiskSpaceMonitor;
use crate::streams::{Broker, StreamLimits};

/// What can be set.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where images lie, below `images`, and the private CA, below `pki`.
    pub state_dir: PathBuf,
    /// Nodes' subnets are taken from here.
    pub guest_range: Ipv4Net,
    /// The URLs of this waifud, `https://HOST:PORT`, as nodes are told them.
    pub addresses: Vec<String>,
    /// A node that is silent for so long is unreachable.
    pub unreachable_after: Duration,
    /// So many events are kept at most.
    pub events_kept: u64,
    /// Events are kept for so long of the time that waifud runs, at most.
    pub events_kept_for: Duration,
    /// An image file may be this large.
    pub image_max: ByteSize,
    /// Guests' DNS domain.
    pub domain: String,
    /// How images are fetched.
    pub downloads: DownloadConfig,
    /// What streams may use.
    pub streams: StreamLimits,
    /// Tells how much room there is.
    pub disk: Arc<dyn Disk>,
    /// Tells this machine's addresses, where no image is fetched from.
    pub interfaces: Arc<dyn Interfaces>,
}

impl ControlConfig {
    /// The defaults, in a directory.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            guest_range: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 144, 0, 0), 12),
            addresses: Vec::new(),
            unreachable_after: Duration::from_secs(30),
            events_kept: 1_000_000,
            events_kept_for: Duration::from_hours(90 * 24),
            image_max: ByteSize::gib(64),
            domain: "waifu.internal".to_owned(),
            downloads: DownloadConfig::default(),
            streams: StreamLimits::default(),
            disk: Arc::new(SystemDisk),
            interfaces: Arc::new(SystemInterfaces),
        }
    }
}

/// A step's progress: shown to whoever watches, never written down.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ProgressFrame {
    /// The instance.
    pub instance: InstanceId,
    /// Its name.
    pub name: Name,
    /// The step at work; null when it ended.
    pub step: Option<StepStatus>,
}

/// The control server's logic. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) config: ControlConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) live: Live,
    pub(crate) disk_space: DiskSpaceMonitor,
    pub(crate) tokens: crate::auth::tokens::TokenState,
    pub(crate) images: ImageStore,
    pub(crate) jobs: Jobs,
    /// Sources of images that got further.
    pub(crate) download_steps: broadcast::Sender<Digest>,
    pub(crate) streams: Broker,
    pub(crate) authority: Arc<Authority>,
    pub(crate) progress: broadcast::Sender<Arc<ProgressFrame>>,
    pub(crate) stop: CancellationToken,
    pub(crate) trimmed: crate::nodes::monitor::Trimmed,
    /// Some that wait for a node have still to be tried again.
    pub(crate) retry: Notify,
    /// Each of them has to be looked at, as not all of their classes were told what they wait for.
    pub(crate) retry_all: AtomicBool,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Puts the services together; makes the private CA when there is none. What a broken upload left behind is removed.
    pub async fn new(
        store: Store,
        config: ControlConfig,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, ControlError> {
        let images = ImageStore::open(
            &config.state_dir,
            config.image_max,
            Arc::clone(&config.disk),
        )?;
        let (known, coming) = store
            .read(|tx| {
                Ok::<_, waifud_store::StoreError>((tx.images(None, u32::MAX)?, tx.downloads()?))
            })
            .await?;
        let known: Vec<_> = known.iter().map(|image| image.digest).collect();
        let coming: Vec<_> = coming.iter().map(|row| row.source).collect();
        images.remove_strays(&known, &coming)?;
        let started = clock.now();
        let pki = config.state_dir.join("pki");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pki)
            .map_err(ControlError::io(format!("making {}", pki.display())))?;
        let authority = Arc::new(Authority::open(&pki)?);
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                config,
                clock,
                entropy,
                live: Live::default(),
                disk_space: DiskSpaceMonitor::new(started),
                tokens: crate::auth::tokens::TokenState::default(),
                images,
                jobs: Jobs::default(),
                download_steps: broadcast::Sender::new(256),
                streams: Broker::default(),
                authority,
                progress: broadcast::Sender::new(1024),
                stop: CancellationToken::new(),
                trimmed: crate::nodes::monitor::Trimmed::default(),
                retry: Notify::new(),
                retry_all: AtomicBool::new(false),
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

    /// Where the CA's files are.
    pub fn pki_dir(&self) -> PathBuf {
        self.shared.config.state_dir.join("pki")
    }

    /// Cancelled when waifud stops: watches end then.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.shared.stop
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// How long this process has run.
    pub(crate) fn running(&self) -> Duration {
        self.shared.clock.monotonic()
    }
}
