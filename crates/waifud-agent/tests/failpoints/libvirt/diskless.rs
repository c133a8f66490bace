//! The real adapter, for domains that are only a QEMU with halted CPUs: without disks and nics, with little memory. The
//! guest is simulated: it counts as running, grows its disks and answers like a guest agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::broadcast;
use waifud_hypervisor::libvirt::LibvirtHypervisor;
use waifud_hypervisor::{
    ByteStream, Device, DomainEvent, DomainNic, DomainSpec, DomainState, HostFacts, Hypervisor,
    HypervisorError, LiveNic, ObservedDomain,
};
use waifud_types::{ByteSize, InstanceId, Name, TapName};

/// A guest of 2 GiB becomes one of 32 MiB.
const SHARE: u64 = 64;

pub struct Diskless {
    libvirt: Arc<LibvirtHypervisor>,
    /// The node's `/` as seen from outside.
    root: PathBuf,
    starts: Arc<AtomicU32>,
}

impl Diskless {
    pub fn new(libvirt: Arc<LibvirtHypervisor>, root: PathBuf, starts: Arc<AtomicU32>) -> Self {
        Self {
            libvirt,
            root,
            starts,
        }
    }

    /// The path of an agent's file in the node.
    fn inside(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(&self.root).unwrap())
    }

    async fn is_on(&self, id: InstanceId) -> Result<bool, HypervisorError> {
        let seen = self.get(id).await?;
        Ok(seen.is_some_and(|seen| seen.state == DomainState::Running))
    }
}

fn played(mut seen: ObservedDomain) -> ObservedDomain {
    if seen.state == (DomainState::Paused { io_error: false }) {
        seen.state = DomainState::Running;
    }
    seen
}

#[async_trait]
impl Hypervisor for Diskless {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        self.libvirt.host().await
    }

    async fn list_except(
        &self,
        known: &BTreeSet<InstanceId>,
    ) -> Result<Vec<ObservedDomain>, HypervisorError> {
        let list = self.libvirt.list_except(known).await?;
        Ok(list.into_iter().map(played).collect())
    }

    async fn get(&self, id: InstanceId) -> Result<Option<ObservedDomain>, HypervisorError> {
        Ok(self.libvirt.get(id).await?.map(played))
    }

    async fn ensure_defined(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        let spec = DomainSpec {
            memory: ByteSize(spec.memory.bytes() / SHARE),
            disks: Vec::new(),
            nics: Vec::new(),
            seed: None,
            console_log: self.inside(&spec.console_log),
            console_socket: self.inside(&spec.console_socket),
            vnc_socket: self.inside(&spec.vnc_socket),
            ..spec.clone()
        };
        self.libvirt.ensure_defined(&spec).await
    }

    async fn ensure_started(&self, id: InstanceId) -> Result<(), HypervisorError> {
        let was_on = self.is_on(id).await?;
        self.libvirt.ensure_started(id).await?;
        self.starts.fetch_add(u32::from(!was_on), Ordering::Relaxed);
        Ok(())
    }

    /// libvirt is asked, but a halted guest does not react.
    async fn request_shutdown(&self, id: InstanceId) -> Result<(), HypervisorError> {
        self.libvirt.request_shutdown(id).await
    }

    async fn ensure_off(&self, id: InstanceId) -> Result<(), HypervisorError> {
        self.libvirt.ensure_off(id).await
    }

    async fn ensure_absent(&self, id: InstanceId) -> Result<(), HypervisorError> {
        self.libvirt.ensure_absent(id).await
    }

    /// Simulated, because there are no disks. Growing disks with libvirt is tested in the adapter's own tests.
    async fn ensure_disk_size(
        &self,
        id: InstanceId,
        _: &Name,
        _: ByteSize,
    ) -> Result<(), HypervisorError> {
        if self.is_on(id).await? {
            Ok(())
        } else {
            Err(HypervisorError::NotRunning(id))
        }
    }

    /// Simulated, because there are no nics. Changing them with libvirt is tested in the adapter's own tests.
    async fn ensure_nics(
        &self,
        id: InstanceId,
        nics: &[DomainNic],
    ) -> Result<BTreeMap<TapName, LiveNic>, HypervisorError> {
        if !self.is_on(id).await? {
            return Err(HypervisorError::NotRunning(id));
        }
        let taps = nics.iter().map(|nic| nic.tap.clone());
        Ok(taps.map(|tap| (tap, LiveNic::Attached)).collect())
    }

    async fn agent_command(
        &self,
        id: InstanceId,
        command: Value,
        _: Duration,
    ) -> Result<Value, HypervisorError> {
        if !self.is_on(id).await? {
            return Err(HypervisorError::NotRunning(id));
        }
        let answer = crate::verbs::cloud_init_done()(&command);
        answer.ok_or(HypervisorError::AgentUnresponsive(id))
    }

    async fn open_device(
        &self,
        id: InstanceId,
        device: Device,
    ) -> Result<Box<dyn ByteStream>, HypervisorError> {
        self.libvirt.open_device(id, device).await
    }

    fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.libvirt.events()
    }
}
