//! The hypervisor of real nodes: QEMU through libvirt's C library.
//!
//! ```text
//! agent ──► LibvirtHypervisor ──► threads (4, and 4 + 2 + 3 for guest agents) ──► connections ──► libvirtd ──► QEMU
//!   ▲                                                                        │
//!   └───────────── broadcast ◄── events (libvirt's event loop, 1 thread) ◄───┘ 1 thread reconnects
//! ```
//!
//! libvirtd need not be running: calls fail with `Unreachable`, a thread reconnects, and a `Resync` event reports when
//! libvirtd is back. Guests are not affected, because QEMU runs on without libvirtd.

mod agents;
mod connection;
mod device;
mod domain_locks;
mod error;
mod events;
pub mod kvm;
mod nics;
mod state;
mod threads;
mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OnceCell, broadcast};
use virt::connect::Connect;
use waifud_types::node::{HypervisorFacts, Resources};
use waifud_types::{ByteSize, InstanceId, Name, TapName};

use self::agents::Agents;
use self::connection::Connector;
use self::domain_locks::DomainLocks;
use self::error::Fault;
use self::threads::Threads;
use self::verbs::NodeFacts;
use crate::xml::RenderOptions;
use crate::{
    ByteStream, Device, DomainEvent, DomainNic, DomainSpec, HostFacts, Hypervisor, HypervisorError,
    LiveNic, ObservedDomain,
};

/// Concurrent calls. libvirtd serializes most of them, so more would only be queued there.
const THREADS: usize = 4;
/// Concurrent shutdown requests. They share a connection with calls to slow guests, and libvirtd handles five requests
/// of a connection at a time.
const SHUTDOWN_THREADS: usize = 3;

/// The settings of libvirt.
#[derive(Clone, Debug)]
pub struct LibvirtConfig {
    /// The URI, for example `qemu:///system`, or with `?socket=PATH` for a libvirtd elsewhere.
    pub uri: String,
    /// The time limit of a call. A power-off can take libvirt 20 s if QEMU hangs in the kernel.
    pub call_timeout: Duration,
    /// The file that caches the result of the KVM probe.
    pub probe_cache: PathBuf,
    /// The user and group ids of QEMU processes (`user` and `group` in libvirt's `qemu.conf`), if volumes already
    /// belong to them. Then libvirt changes no owners, and QEMU cannot write to shared images. If `None`, libvirt gives
    /// the files of a domain to QEMU at each start and takes them back afterwards.
    pub qemu_owner: Option<(u32, u32)>,
    /// Whether to create missing directories for console logs and VNC sockets. Disabled where libvirtd sees another
    /// filesystem than this process.
    pub make_directories: bool,
    /// Whether QEMU starts with halted CPUs that are never resumed, for tests that need processes but no guests.
    pub start_paused: bool,
}

impl LibvirtConfig {
    /// The system's libvirtd, with defaults for all other settings.
    pub fn new(probe_cache: impl Into<PathBuf>) -> Self {
        Self {
            uri: "qemu:///system".to_owned(),
            call_timeout: Duration::from_mins(1),
            probe_cache: probe_cache.into(),
            qemu_owner: None,
            make_directories: true,
            start_paused: false,
        }
    }
}

/// The libvirt hypervisor; see the module documentation.
pub struct LibvirtHypervisor {
    config: LibvirtConfig,
    connector: Arc<Connector>,
    threads: Threads,
    domain_locks: DomainLocks,
    agents: Agents,
    /// Separate from the other calls to guest agents: if a shutdown request waited too long for a thread, its guest
    /// would be forced off.
    shutdown_threads: Threads,
    probed: OnceCell<HypervisorFacts>,
}

impl LibvirtHypervisor {
    /// Starts the threads and returns at once. The first call shows whether libvirtd is running.
    pub fn connect(config: LibvirtConfig) -> Result<Arc<Self>, HypervisorError> {
        let failed = |error: std::io::Error| HypervisorError::Other {
            operation: "start threads",
            message: error.to_string(),
        };
        Ok(Arc::new(Self {
            connector: Connector::start(config.uri.clone()).map_err(failed)?,
            threads: Threads::start("libvirt", THREADS).map_err(failed)?,
            domain_locks: DomainLocks::default(),
            agents: Agents::start(&config.uri).map_err(failed)?,
            shutdown_threads: Threads::start("shutdowns", SHUTDOWN_THREADS).map_err(failed)?,
            probed: OnceCell::new(),
            config,
        }))
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let connector = Arc::clone(&self.connector);
        self.threads
            .run(operation, self.config.call_timeout, move || {
                connector.with(call)
            })
            .await
    }

    /// A call about one domain. It starts after the domain's earlier calls have ended, including those that timed out.
    async fn call_on<T: Send + 'static>(
        &self,
        id: InstanceId,
        operation: &'static str,
        call: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let connector = Arc::clone(&self.connector);
        let limit = self.config.call_timeout;
        let call = move || connector.with(call);
        self.domain_locks
            .run(id, &self.threads, operation, limit, call)
            .await
    }

    async fn probe(&self, facts: &NodeFacts) -> HypervisorFacts {
        let features = kvm::HostFeatures::detect(facts.qemu_version);
        let Some(emulator) = &facts.emulator else {
            return kvm::facts(&Err(format!(
                "libvirt has not found QEMU for {}; install the package qemu-system on the node",
                facts.arch
            )));
        };
        let run = kvm::boot::Run::kvm(PathBuf::from(emulator), self.config.qemu_owner);
        let answer = kvm::probe(features, run, &self.config.probe_cache).await;
        tracing::info!(
            kind = answer.kind.as_str(),
            reason = answer.reason,
            "hypervisor"
        );
        answer
    }

    fn options(&self) -> RenderOptions {
        RenderOptions {
            keep_owners: self.config.qemu_owner.is_some(),
        }
    }
}

impl Drop for LibvirtHypervisor {
    fn drop(&mut self) {
        self.connector.wake();
        self.agents.wake();
    }
}

#[async_trait]
impl Hypervisor for LibvirtHypervisor {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        let facts = self
            .call("get the host's properties", verbs::node_facts)
            .await?;
        let hypervisor = self.probed.get_or_init(|| self.probe(&facts)).await.clone();
        Ok(HostFacts {
            hypervisor,
            capacity: Resources {
                cpus: facts.cpus,
                memory_bytes: ByteSize(facts.memory_kib.saturating_mul(1024)),
            },
            arch: facts.arch,
            cpu_model: kvm::HostFeatures::detect(facts.qemu_version).cpu_model,
        })
    }

    async fn list_except(
        &self,
        known: &BTreeSet<InstanceId>,
    ) -> Result<Vec<ObservedDomain>, HypervisorError> {
        let known = known.clone();
        self.call("list domains", move |connect| verbs::list(connect, &known))
            .await
    }

    async fn get(&self, id: InstanceId) -> Result<Option<ObservedDomain>, HypervisorError> {
        self.call_on(id, "get the domain", move |connect| verbs::get(connect, id))
            .await
    }

    async fn ensure_defined(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        let (spec, options) = (spec.clone(), self.options());
        let make = self.config.make_directories;
        let owner = self.config.qemu_owner;
        self.call_on(spec.id, "define the domain", move |connect| {
            if make {
                make_directory(spec.console_log.parent(), None)?;
                make_directory(spec.vnc_socket.parent(), owner)?;
                make_directory(spec.console_socket.parent(), None)?;
            }
            verbs::ensure_defined(connect, &spec, options)
        })
        .await
    }

    async fn ensure_started(&self, id: InstanceId) -> Result<(), HypervisorError> {
        let paused = self.config.start_paused;
        self.call_on(id, "start the domain", move |connect| {
            verbs::ensure_started(connect, id, paused)
        })
        .await
    }

    async fn request_shutdown(&self, id: InstanceId) -> Result<(), HypervisorError> {
        // This may wait for the guest agent, so it uses the threads and the connection for agents.
        let connector = Arc::clone(self.agents.slow_connection());
        self.shutdown_threads
            .run("shut down the guest", self.config.call_timeout, move || {
                connector.with(|connect| verbs::request_shutdown(connect, id))
            })
            .await
    }

    async fn ensure_off(&self, id: InstanceId) -> Result<(), HypervisorError> {
        self.call_on(id, "power off the domain", move |connect| {
            verbs::ensure_off(connect, id)
        })
        .await
    }

    async fn ensure_absent(&self, id: InstanceId) -> Result<(), HypervisorError> {
        self.call_on(id, "undefine the domain", move |connect| {
            verbs::ensure_absent(connect, id)
        })
        .await
    }

    async fn ensure_disk_size(
        &self,
        id: InstanceId,
        disk: &Name,
        size: ByteSize,
    ) -> Result<(), HypervisorError> {
        let disk = disk.clone();
        self.call_on(id, "resize the disk", move |connect| {
            verbs::ensure_disk_size(connect, id, &disk, size)
        })
        .await
    }

    async fn ensure_nics(
        &self,
        id: InstanceId,
        nics: &[DomainNic],
    ) -> Result<BTreeMap<TapName, LiveNic>, HypervisorError> {
        let nics = nics.to_vec();
        self.call_on(id, "change the nics", move |connect| {
            nics::ensure_nics(connect, id, &nics)
        })
        .await
    }

    async fn agent_command(
        &self,
        id: InstanceId,
        command: serde_json::Value,
        timeout: Duration,
    ) -> Result<serde_json::Value, HypervisorError> {
        // libvirt counts in seconds, and 0 would mean not to wait.
        let seconds = timeout.as_millis().div_ceil(1000).clamp(1, 3600);
        let seconds = i32::try_from(seconds).unwrap_or(3600);
        let limit = timeout + self.config.call_timeout;
        let answer = self
            .agents
            .call(id, "call the guest agent", limit, move |connect| {
                verbs::agent_command(connect, id, &command.to_string(), seconds)
            })
            .await?;
        let invalid = |message: String| HypervisorError::Other {
            operation: "call the guest agent",
            message,
        };
        let mut answer: serde_json::Value = serde_json::from_str(&answer)
            .map_err(|error| invalid(format!("the answer is not JSON: {error}")))?;
        answer
            .get_mut("return")
            .map(serde_json::Value::take)
            .ok_or_else(|| invalid("the answer has no return value".to_owned()))
    }

    async fn open_device(
        &self,
        id: InstanceId,
        device: Device,
    ) -> Result<Box<dyn ByteStream>, HypervisorError> {
        let path = self
            .call("get the device's socket", move |connect| {
                verbs::device_socket(connect, id, device)
            })
            .await?;
        device::connect(&path).await
    }

    fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.connector.events()
    }
}

/// Creates a directory that only its owner and root may enter, if it does not exist.
fn make_directory(path: Option<&Path>, owner: Option<(u32, u32)>) -> Result<(), Fault> {
    use std::os::unix::fs::{DirBuilderExt, chown};
    let Some(path) = path.filter(|path| !path.exists()) else {
        return Ok(());
    };
    // Created under a temporary name until its owner is set: a directory that a crash left without its owner could
    // never be used.
    let unfinished = path.with_extension("new");
    let finish = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(&unfinished) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        if let Some((uid, gid)) = owner {
            chown(&unfinished, Some(uid), Some(gid))?;
        }
        std::fs::rename(&unfinished, path)
    };
    let outcome = match finish() {
        // Another call created it meanwhile.
        Err(_) if path.is_dir() => Ok(()),
        other => other,
    };
    outcome.map_err(|error: std::io::Error| {
        Fault::Known(HypervisorError::Other {
            operation: "create a directory",
            message: format!("{}: {error}", path.display()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_unfinished_directory_left_by_a_crash_is_completed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run").join("vnc");
        let own = std::fs::metadata(root.path()).unwrap();
        let owner = Some((own.uid(), own.gid()));
        std::fs::create_dir_all(path.with_extension("new")).unwrap();
        make_directory(Some(&path), owner).unwrap();
        make_directory(Some(&path), owner).unwrap();
        assert!(path.is_dir() && !path.with_extension("new").exists());
    }
}
