//! An in-memory hypervisor for tests and simulations, deterministic and scriptable. Its domains outlive the handles.
//!
//! A `FakeHypervisor` is a handle to shared state. To restart an agent, a test drops it and passes a clone to a new
//! one; the domains keep running meanwhile, as with libvirt. Methods that are named after an event (`power_off`,
//! `crash`, `pause`, `destroy`) simulate the guest, an administrator or a failure.

mod manual_edits;
mod nics;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::io::DuplexStream;
use tokio::sync::broadcast;
use waifud_kit::fault_injection::Faults;
use waifud_kit::sync::lock;
use waifud_types::node::{HypervisorFacts, Resources};
use waifud_types::status::HypervisorKind;
use waifud_types::{ByteSize, InstanceId, Name, TapName};

use self::manual_edits::ManualEdits;
use self::nics::FakeNics;
use crate::{
    ByteStream, Device, DomainEvent, DomainEventKind, DomainNic, DomainSpec, DomainState,
    HostFacts, Hypervisor, HypervisorError, LiveNic, ObservedDomain, OffReason,
    nics_of_domain_that_is_off, no_such_disk,
};

/// The buffer size of a connection to a device, in bytes per direction.
const DEVICE_BUFFER: usize = 16 << 10;

/// The methods of the trait, for which failures can be scripted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "each is the trait's method of that name")]
pub enum Op {
    Host,
    List,
    Get,
    EnsureDefined,
    EnsureStarted,
    RequestShutdown,
    EnsureOff,
    EnsureAbsent,
    EnsureDiskSize,
    EnsureNics,
    AgentCommand,
    OpenDevice,
}

/// A scripted guest agent: receives a command and returns the value of `return`. `None` means that it does not answer.
pub type AgentScript = Arc<dyn Fn(&Value) -> Option<Value> + Send + Sync>;

/// Simulates a device: receives the other end of a connection to it.
pub type DeviceScript = Arc<dyn Fn(InstanceId, Device, DuplexStream) + Send + Sync>;

/// The fake hypervisor; see the module documentation.
#[derive(Clone)]
pub struct FakeHypervisor {
    state: Arc<Mutex<State>>,
    faults: Faults<Op, HypervisorError>,
    events: broadcast::Sender<DomainEvent>,
}

struct State {
    domains: BTreeMap<InstanceId, FakeDomain>,
    /// Names of domains that do not belong to waifud.
    foreign: Vec<String>,
    host: HostFacts,
    reachable: bool,
    default_agent: Option<AgentScript>,
    devices: Option<DeviceScript>,
    starts: u64,
    /// The number of domains that were defined.
    defined: u64,
}

impl State {
    fn domain(&self, id: InstanceId) -> Result<&FakeDomain, HypervisorError> {
        self.domains.get(&id).ok_or(HypervisorError::NotFound(id))
    }

    fn domain_mut(&mut self, id: InstanceId) -> Result<&mut FakeDomain, HypervisorError> {
        let domain = self.domains.get_mut(&id);
        domain.ok_or(HypervisorError::NotFound(id))
    }
}

struct FakeDomain {
    spec: DomainSpec,
    state: DomainState,
    /// The digest of the spec, which takes long to compute.
    digest: String,
    agent: Option<AgentScript>,
    ignores_shutdown: bool,
    disk_sizes: BTreeMap<Name, ByteSize>,
    manual_edits: ManualEdits,
    nics: FakeNics,
    /// How often its description was read.
    reads: u64,
    /// Distinguishes it from earlier domains of the same instance.
    number: u64,
    /// How often it was started.
    starts: u64,
}

/// A domain as a test sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainFacts {
    /// The instance.
    pub id: InstanceId,
    /// Differs from that of an earlier domain of the same instance.
    pub number: u64,
    /// How often this domain was started.
    pub starts: u64,
    /// Whether it has a QEMU process.
    pub is_active: bool,
    /// The CPUs in its definition.
    pub cpus: u32,
    /// The memory in its definition.
    pub memory: ByteSize,
}

impl FakeDomain {
    fn observed(&mut self) -> ObservedDomain {
        self.reads += 1;
        ObservedDomain {
            id: self.spec.id,
            name: self.spec.name.to_string(),
            epoch: Some(self.spec.epoch),
            state: self.state,
            kind: self.spec.kind,
            spec_digest: Some(self.digest.clone()),
            disks: self.spec.disk_sources(),
            drift: self.manual_edits.drift(self.spec.memory),
        }
    }
}

/// Whether a domain in this state has a QEMU process.
const fn is_active(state: DomainState) -> bool {
    match state {
        DomainState::Running | DomainState::Paused { .. } | DomainState::ShuttingDown => true,
        DomainState::Off(_) | DomainState::Crashed => false,
    }
}

impl Default for FakeHypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHypervisor {
    /// A hypervisor without domains, on a host with 8 CPUs and 16 GiB that emulates.
    pub fn new() -> Self {
        Self::with_host(HostFacts {
            hypervisor: HypervisorFacts {
                kind: HypervisorKind::Tcg,
                reason: "this is a fake".to_owned(),
                cause: None,
            },
            capacity: Resources {
                cpus: 8,
                memory_bytes: ByteSize::gib(16),
            },
            arch: "x86_64".to_owned(),
            cpu_model: "Fake CPU".to_owned(),
        })
    }

    /// A hypervisor without domains on this host.
    pub fn with_host(host: HostFacts) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                domains: BTreeMap::new(),
                foreign: Vec::new(),
                host,
                reachable: true,
                default_agent: None,
                devices: None,
                starts: 0,
                defined: 0,
            })),
            faults: Faults::default(),
            events: broadcast::Sender::new(1024),
        }
    }

    /// The number of starts of all domains since the fake was created.
    pub fn starts(&self) -> u64 {
        self.state().starts
    }

    /// Every domain, without reading its description.
    pub fn domains(&self) -> Vec<DomainFacts> {
        let state = self.state();
        let facts = |domain: &FakeDomain| DomainFacts {
            id: domain.spec.id,
            number: domain.number,
            starts: domain.starts,
            is_active: is_active(domain.state),
            cpus: domain.spec.cpus,
            memory: domain.spec.memory,
        };
        state.domains.values().map(facts).collect()
    }

    /// Breaks or restores the connection. While it is broken, every call fails with `Unreachable`; guests are not
    /// affected.
    pub fn set_reachable(&self, reachable: bool) {
        self.state().reachable = reachable;
        // The event concerns no domain, but it needs an id.
        self.emit(
            InstanceId::from_uuid(uuid::Uuid::nil()),
            DomainEventKind::Resync,
        );
    }

    /// Adds a domain with this name that does not belong to waifud.
    pub fn add_foreign(&self, name: &str) {
        self.state().foreign.push(name.to_owned());
    }

    /// Scripts the guest agent of one domain; `None` silences it.
    pub fn set_agent(&self, id: InstanceId, script: Option<AgentScript>) {
        self.change(id, |domain| {
            domain.agent = script;
            Some(DomainEventKind::AgentChanged)
        });
    }

    /// The guest reboots, which QEMU reports as a reset.
    pub fn reboot(&self, id: InstanceId) {
        self.change(id, |_| Some(DomainEventKind::Rebooted));
    }

    /// Scripts the guest agent of every domain that has no script of its own.
    pub fn set_default_agent(&self, script: Option<AgentScript>) {
        self.state().default_agent = script;
    }

    /// Scripts consoles and screens. Without a script, connections end at once.
    pub fn set_devices(&self, script: Option<DeviceScript>) {
        self.state().devices = script;
    }

    /// Sets whether the guest ignores shutdown requests.
    pub fn set_ignores_shutdown(&self, id: InstanceId, ignores: bool) {
        self.change(id, |domain| {
            domain.ignores_shutdown = ignores;
            None
        });
    }

    /// The guest powers itself off.
    pub fn power_off(&self, id: InstanceId) {
        self.stop_domain(id, OffReason::GuestShutdown);
    }

    /// QEMU is killed, or the guest crashes.
    pub fn crash(&self, id: InstanceId) {
        self.stop_domain(id, OffReason::Crashed);
    }

    /// Destroys the running domain without waifud (`virsh destroy`).
    pub fn destroy(&self, id: InstanceId) {
        self.stop_domain(id, OffReason::Destroyed);
    }

    /// Undefines the domain without waifud, after powering it off.
    pub fn undefine(&self, id: InstanceId) {
        self.destroy(id);
        if self.state().domains.remove(&id).is_some() {
            self.emit(id, DomainEventKind::Changed);
        }
    }

    /// The domain is paused, by an I/O error or by an administrator.
    pub fn pause(&self, id: InstanceId, io_error: bool) {
        self.change(id, |domain| {
            is_active(domain.state).then(|| {
                domain.state = DomainState::Paused { io_error };
                DomainEventKind::Paused
            })
        });
    }

    /// The host loses power: every domain is off, for an unknown reason.
    pub fn host_crash(&self) {
        for domain in self.state().domains.values_mut() {
            domain.state = DomainState::Off(OffReason::Unknown);
        }
    }

    /// The size to which a running domain's disk was grown, if it was.
    pub fn disk_size(&self, id: InstanceId, disk: &str) -> Option<ByteSize> {
        let state = self.state();
        let sizes = &state.domains.get(&id)?.disk_sizes;
        let found = sizes.iter().find(|(name, _)| name.as_str() == disk);
        found.map(|(_, size)| *size)
    }

    /// How often the domain's description was read, which costs libvirt a document in XML each time.
    pub fn reads(&self, id: InstanceId) -> u64 {
        self.state()
            .domains
            .get(&id)
            .map_or(0, |domain| domain.reads)
    }

    /// The spec that a domain was last defined from.
    pub fn spec(&self, id: InstanceId) -> Option<DomainSpec> {
        self.state().domains.get(&id).map(|d| d.spec.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn emit(&self, id: InstanceId, kind: DomainEventKind) {
        // There may be no subscriber; events are only hints.
        let _no_subscriber = self.events.send(DomainEvent { id, kind });
    }

    fn change(&self, id: InstanceId, act: impl FnOnce(&mut FakeDomain) -> Option<DomainEventKind>) {
        let event = self.state().domains.get_mut(&id).and_then(act);
        if let Some(kind) = event {
            self.emit(id, kind);
        }
    }

    fn stop_domain(&self, id: InstanceId, reason: OffReason) {
        self.change(id, |domain| {
            is_active(domain.state).then(|| {
                domain.state = DomainState::Off(reason);
                DomainEventKind::Stopped(reason)
            })
        });
    }

    async fn enter(&self, op: Op) -> Result<MutexGuard<'_, State>, HypervisorError> {
        self.faults.pass(op).await?;
        let state = self.state();
        if state.reachable {
            Ok(state)
        } else {
            Err(HypervisorError::Unreachable {
                uri: "fake:///".to_owned(),
                message: "scripted failure".to_owned(),
            })
        }
    }
}

impl std::ops::Deref for FakeHypervisor {
    type Target = Faults<Op, HypervisorError>;

    /// Faults are scripted on the fake itself.
    fn deref(&self) -> &Self::Target {
        &self.faults
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(self.enter(Op::Host).await?.host.clone())
    }

    async fn list_except(
        &self,
        known: &BTreeSet<InstanceId>,
    ) -> Result<Vec<ObservedDomain>, HypervisorError> {
        let mut state = self.enter(Op::List).await?;
        let domains = state.domains.iter_mut();
        Ok(domains
            .filter(|(id, _)| !known.contains(id))
            .map(|(_, domain)| domain.observed())
            .collect())
    }

    async fn get(&self, id: InstanceId) -> Result<Option<ObservedDomain>, HypervisorError> {
        let mut state = self.enter(Op::Get).await?;
        Ok(state.domains.get_mut(&id).map(FakeDomain::observed))
    }

    async fn ensure_defined(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        {
            let mut state = self.enter(Op::EnsureDefined).await?;
            let name = spec.name.as_str();
            let by_another = state
                .domains
                .values()
                .any(|d| d.spec.id != spec.id && d.spec.name == spec.name);
            if by_another || state.foreign.iter().any(|foreign| foreign == name) {
                return Err(HypervisorError::NameTaken {
                    name: name.to_owned(),
                });
            }
            let state = &mut *state;
            let mut existing = state.domains.get_mut(&spec.id);
            if let Some(domain) = &mut existing {
                domain.reads += 1;
            }
            match existing {
                Some(domain) if domain.spec == *spec => return Ok(()),
                Some(domain) => {
                    domain.spec = spec.clone();
                    domain.digest = spec.digest();
                    domain.manual_edits.redefined();
                }
                None => {
                    state.defined += 1;
                    state.domains.insert(
                        spec.id,
                        FakeDomain {
                            spec: spec.clone(),
                            digest: spec.digest(),
                            number: state.defined,
                            starts: 0,
                            state: DomainState::Off(OffReason::Unknown),
                            agent: None,
                            ignores_shutdown: false,
                            disk_sizes: BTreeMap::new(),
                            manual_edits: ManualEdits::default(),
                            nics: FakeNics::default(),
                            reads: 0,
                        },
                    );
                }
            }
        }
        self.emit(spec.id, DomainEventKind::Changed);
        Ok(())
    }

    async fn ensure_started(&self, id: InstanceId) -> Result<(), HypervisorError> {
        {
            let mut state = self.enter(Op::EnsureStarted).await?;
            let domain = state.domain_mut(id)?;
            if domain.state == DomainState::Running {
                return Ok(());
            }
            let was_off = !is_active(domain.state);
            if was_off {
                domain.nics.started_with(&domain.spec.nics);
            }
            domain.state = DomainState::Running;
            domain.starts += u64::from(was_off);
            state.starts += u64::from(was_off);
        }
        self.emit(id, DomainEventKind::Started);
        Ok(())
    }

    async fn request_shutdown(&self, id: InstanceId) -> Result<(), HypervisorError> {
        let powers_off = {
            let state = self.enter(Op::RequestShutdown).await?;
            let domain = state.domain(id)?;
            domain.state == DomainState::Running && !domain.ignores_shutdown
        };
        if powers_off {
            self.power_off(id);
        }
        Ok(())
    }

    async fn ensure_off(&self, id: InstanceId) -> Result<(), HypervisorError> {
        drop(self.enter(Op::EnsureOff).await?);
        self.stop_domain(id, OffReason::Destroyed);
        Ok(())
    }

    async fn ensure_absent(&self, id: InstanceId) -> Result<(), HypervisorError> {
        drop(self.enter(Op::EnsureAbsent).await?);
        self.undefine(id);
        Ok(())
    }

    async fn ensure_disk_size(
        &self,
        id: InstanceId,
        disk: &Name,
        size: ByteSize,
    ) -> Result<(), HypervisorError> {
        let mut state = self.enter(Op::EnsureDiskSize).await?;
        let domain = state.domain_mut(id)?;
        if !is_active(domain.state) || !domain.spec.disks.iter().any(|d| d.name == *disk) {
            return Err(no_such_disk(disk));
        }
        let has = domain.disk_sizes.entry(disk.clone()).or_insert(size);
        *has = (*has).max(size);
        Ok(())
    }

    async fn ensure_nics(
        &self,
        id: InstanceId,
        nics: &[DomainNic],
    ) -> Result<BTreeMap<TapName, LiveNic>, HypervisorError> {
        let mut state = self.enter(Op::EnsureNics).await?;
        let domain = state.domain_mut(id)?;
        if !is_active(domain.state) {
            return Err(nics_of_domain_that_is_off());
        }
        Ok(domain.nics.ensure(nics))
    }

    async fn agent_command(
        &self,
        id: InstanceId,
        command: Value,
        _timeout: Duration,
    ) -> Result<Value, HypervisorError> {
        let script = {
            let state = self.enter(Op::AgentCommand).await?;
            let domain = state.domain(id)?;
            let script = domain.agent.as_ref().or(state.default_agent.as_ref());
            let script = script.filter(|_| domain.state == DomainState::Running);
            script.cloned()
        };
        // Called without the lock, because a script may call the fake.
        script
            .and_then(|script| script(&command))
            .ok_or(HypervisorError::AgentUnresponsive(id))
    }

    async fn open_device(
        &self,
        id: InstanceId,
        device: Device,
    ) -> Result<Box<dyn ByteStream>, HypervisorError> {
        let script = {
            let state = self.enter(Op::OpenDevice).await?;
            let domain = state.domain(id)?;
            if !is_active(domain.state) {
                return Err(HypervisorError::NotRunning(id));
            }
            state.devices.clone()
        };
        let (ours, theirs) = tokio::io::duplex(DEVICE_BUFFER);
        if let Some(script) = script {
            script(id, device, theirs);
        }
        Ok(Box::new(ours))
    }

    fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.events.subscribe()
    }
}
