//! A hypervisor in memory, for tests and simulations: deterministic, scriptable, and it outlives whoever uses it.
//!
//! A `FakeHypervisor` is a handle on a *world*. Clones share the world, so a test restarts "the agent" by dropping it
//! and handing a clone to a new one: domains keep running meanwhile, as with libvirt. Methods whose names say what
//! happens to a guest (`power_off`, `crash`, `pause`, `destroy`) play the guest, the operator or bad luck.

mod by_hand;

use std::collections::BTreeMap;
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
use waifud_types::{ByteSize, InstanceId, Name};

use self::by_hand::ByHand;
use crate::{
    ByteStream, Device, DomainEvent, DomainEventKind, DomainSpec, DomainState, HostFacts,
    Hypervisor, HypervisorError, ObservedDomain, OffReason, no_such_disk,
};

/// Bytes that a connection to a device holds in each direction.
const DEVICE_BUFFER: usize = 16 << 10;

/// The verbs of the trait, for scripting faults.
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
    AgentCommand,
    OpenDevice,
}

/// A scripted guest agent: gets the command, returns what the agent would put into `return`; `None` is silence.
pub type AgentScript = Arc<dyn Fn(&Value) -> Option<Value> + Send + Sync>;

/// Plays what is behind a device: gets the other end of a connection to it.
pub type DeviceScript = Arc<dyn Fn(InstanceId, Device, DuplexStream) + Send + Sync>;

/// The fake. See the module's text.
#[derive(Clone)]
pub struct FakeHypervisor {
    world: Arc<Mutex<World>>,
    faults: Faults<Op, HypervisorError>,
    events: broadcast::Sender<DomainEvent>,
}

struct World {
    domains: BTreeMap<InstanceId, FakeDomain>,
    /// Names of domains that are not ours.
    foreign: Vec<String>,
    host: HostFacts,
    reachable: bool,
    default_agent: Option<AgentScript>,
    devices: Option<DeviceScript>,
    starts: u64,
}

struct FakeDomain {
    spec: DomainSpec,
    state: DomainState,
    agent: Option<AgentScript>,
    ignores_shutdown: bool,
    disk_sizes: BTreeMap<Name, ByteSize>,
    by_hand: ByHand,
}

impl FakeDomain {
    fn observed(&self) -> ObservedDomain {
        ObservedDomain {
            id: self.spec.id,
            name: self.spec.name.to_string(),
            epoch: Some(self.spec.epoch),
            state: self.state,
            kind: self.spec.kind,
            spec_digest: Some(self.spec.digest()),
            disks: self.spec.disk_sources(),
            drift: self.by_hand.drift(self.spec.memory),
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
    /// A world with no domains on a host of 8 CPUs and 16 GiB that emulates.
    pub fn new() -> Self {
        Self::with_host(HostFacts {
            hypervisor: HypervisorFacts {
                kind: HypervisorKind::Tcg,
                reason: "this is a fake".to_owned(),
            },
            capacity: Resources {
                cpus: 8,
                memory_bytes: ByteSize::gib(16),
            },
            arch: "x86_64".to_owned(),
            cpu_model: "Fake CPU".to_owned(),
        })
    }

    /// A world with no domains on the given host.
    pub fn with_host(host: HostFacts) -> Self {
        Self {
            world: Arc::new(Mutex::new(World {
                domains: BTreeMap::new(),
                foreign: Vec::new(),
                host,
                reachable: true,
                default_agent: None,
                devices: None,
                starts: 0,
            })),
            faults: Faults::default(),
            events: broadcast::Sender::new(1024),
        }
    }

    /// The next call of `op` fails with `error`; several are used up in order.
    pub fn fail_next(&self, op: Op, error: HypervisorError) {
        self.faults.fail_next(op, error);
    }

    /// Calls of `op` hang until `release`; a dropped call has done nothing.
    pub fn hang(&self, op: Op) {
        self.faults.hang(op);
    }

    /// Lets hanging and later calls of `op` through.
    pub fn release(&self, op: Op) {
        self.faults.release(op);
    }

    /// How often `op` was called.
    pub fn calls(&self, op: Op) -> u64 {
        self.faults.calls(op)
    }

    /// How often any domain went from off to running, since the world began.
    pub fn starts(&self) -> u64 {
        self.world().starts
    }

    /// Loses (or makes anew) the connection: every call fails with `Unreachable` while it is lost. Guests don't notice.
    pub fn set_reachable(&self, reachable: bool) {
        self.world().reachable = reachable;
        // Without a domain: the real one names none either, but an event needs an id.
        self.emit(
            InstanceId::from_uuid(uuid::Uuid::nil()),
            DomainEventKind::Resync,
        );
    }

    /// A domain of somebody else's, which has the name.
    pub fn add_foreign(&self, name: &str) {
        self.world().foreign.push(name.to_owned());
    }

    /// Scripts the guest agent of one domain; `None` silences it.
    pub fn set_agent(&self, id: InstanceId, script: Option<AgentScript>) {
        self.change(id, |domain| {
            domain.agent = script;
            Some(DomainEventKind::AgentChanged)
        });
    }

    /// The guest reboots by itself, as QEMU's reset tells.
    pub fn reboot(&self, id: InstanceId) {
        self.change(id, |_| Some(DomainEventKind::Rebooted));
    }

    /// Scripts the guest agent of every domain that has no script of its own.
    pub fn set_default_agent(&self, script: Option<AgentScript>) {
        self.world().default_agent = script;
    }

    /// Scripts consoles and screens; without a script nobody is behind them, and connections end at once.
    pub fn set_devices(&self, script: Option<DeviceScript>) {
        self.world().devices = script;
    }

    /// Whether the guest pays no heed to shutdown requests.
    pub fn set_ignores_shutdown(&self, id: InstanceId, ignores: bool) {
        self.change(id, |domain| {
            domain.ignores_shutdown = ignores;
            None
        });
    }

    /// The guest powers itself off.
    pub fn power_off(&self, id: InstanceId) {
        self.go_off(id, OffReason::GuestShutdown);
    }

    /// QEMU is killed, or the guest crashes.
    pub fn crash(&self, id: InstanceId) {
        self.go_off(id, OffReason::Crashed);
    }

    /// Somebody destroys the running domain behind our back (`virsh destroy`).
    pub fn destroy(&self, id: InstanceId) {
        self.go_off(id, OffReason::Destroyed);
    }

    /// Somebody undefines the domain behind our back; it goes off first.
    pub fn undefine(&self, id: InstanceId) {
        self.destroy(id);
        if self.world().domains.remove(&id).is_some() {
            self.emit(id, DomainEventKind::Changed);
        }
    }

    /// The domain is halted, by an input/output error or by somebody.
    pub fn pause(&self, id: InstanceId, io_error: bool) {
        self.change(id, |domain| {
            is_active(domain.state).then(|| {
                domain.state = DomainState::Paused { io_error };
                DomainEventKind::Paused
            })
        });
    }

    /// The whole host loses power: every domain is off, and nobody remembers why.
    pub fn host_crash(&self) {
        for domain in self.world().domains.values_mut() {
            domain.state = DomainState::Off(OffReason::Unknown);
        }
    }

    /// How large a running domain's disk was made, when it was.
    pub fn disk_size(&self, id: InstanceId, disk: &str) -> Option<ByteSize> {
        let world = self.world();
        let sizes = &world.domains.get(&id)?.disk_sizes;
        let found = sizes.iter().find(|(name, _)| name.as_str() == disk);
        found.map(|(_, size)| *size)
    }

    /// The spec that a domain was last defined from.
    pub fn spec(&self, id: InstanceId) -> Option<DomainSpec> {
        self.world().domains.get(&id).map(|d| d.spec.clone())
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    fn emit(&self, id: InstanceId, kind: DomainEventKind) {
        // Nobody listening is fine: events are hints.
        let _unheard = self.events.send(DomainEvent { id, kind });
    }

    fn change(&self, id: InstanceId, act: impl FnOnce(&mut FakeDomain) -> Option<DomainEventKind>) {
        let happened = self.world().domains.get_mut(&id).and_then(act);
        if let Some(kind) = happened {
            self.emit(id, kind);
        }
    }

    fn go_off(&self, id: InstanceId, reason: OffReason) {
        self.change(id, |domain| {
            is_active(domain.state).then(|| {
                domain.state = DomainState::Off(reason);
                DomainEventKind::Stopped(reason)
            })
        });
    }

    async fn enter(&self, op: Op) -> Result<MutexGuard<'_, World>, HypervisorError> {
        self.faults.pass(op).await?;
        let world = self.world();
        if world.reachable {
            Ok(world)
        } else {
            Err(HypervisorError::Unreachable {
                uri: "fake:///".to_owned(),
                message: "the fake was told so".to_owned(),
            })
        }
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(self.enter(Op::Host).await?.host.clone())
    }

    async fn list(&self) -> Result<Vec<ObservedDomain>, HypervisorError> {
        let world = self.enter(Op::List).await?;
        Ok(world.domains.values().map(FakeDomain::observed).collect())
    }

    async fn get(&self, id: InstanceId) -> Result<Option<ObservedDomain>, HypervisorError> {
        let world = self.enter(Op::Get).await?;
        Ok(world.domains.get(&id).map(FakeDomain::observed))
    }

    async fn ensure_defined(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        {
            let mut world = self.enter(Op::EnsureDefined).await?;
            let name = spec.name.as_str();
            let by_another = world
                .domains
                .values()
                .any(|d| d.spec.id != spec.id && d.spec.name == spec.name);
            if by_another || world.foreign.iter().any(|foreign| foreign == name) {
                return Err(HypervisorError::NameTaken {
                    name: name.to_owned(),
                });
            }
            match world.domains.get_mut(&spec.id) {
                Some(domain) if domain.spec == *spec => return Ok(()),
                Some(domain) => {
                    domain.spec = spec.clone();
                    domain.by_hand.redefined();
                }
                None => {
                    world.domains.insert(
                        spec.id,
                        FakeDomain {
                            spec: spec.clone(),
                            state: DomainState::Off(OffReason::Unknown),
                            agent: None,
                            ignores_shutdown: false,
                            disk_sizes: BTreeMap::new(),
                            by_hand: ByHand::default(),
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
            let mut world = self.enter(Op::EnsureStarted).await?;
            let domain = world
                .domains
                .get_mut(&id)
                .ok_or(HypervisorError::NotFound(id))?;
            if domain.state == DomainState::Running {
                return Ok(());
            }
            let was_off = !is_active(domain.state);
            domain.state = DomainState::Running;
            world.starts += u64::from(was_off);
        }
        self.emit(id, DomainEventKind::Started);
        Ok(())
    }

    async fn request_shutdown(&self, id: InstanceId) -> Result<(), HypervisorError> {
        let obeys = {
            let world = self.enter(Op::RequestShutdown).await?;
            let domain = world
                .domains
                .get(&id)
                .ok_or(HypervisorError::NotFound(id))?;
            domain.state == DomainState::Running && !domain.ignores_shutdown
        };
        if obeys {
            self.power_off(id);
        }
        Ok(())
    }

    async fn ensure_off(&self, id: InstanceId) -> Result<(), HypervisorError> {
        drop(self.enter(Op::EnsureOff).await?);
        self.go_off(id, OffReason::Destroyed);
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
        let mut world = self.enter(Op::EnsureDiskSize).await?;
        let domain = world
            .domains
            .get_mut(&id)
            .ok_or(HypervisorError::NotFound(id))?;
        if !is_active(domain.state) || !domain.spec.disks.iter().any(|d| d.name == *disk) {
            return Err(no_such_disk(disk));
        }
        let has = domain.disk_sizes.entry(disk.clone()).or_insert(size);
        *has = (*has).max(size);
        Ok(())
    }

    async fn agent_command(
        &self,
        id: InstanceId,
        command: Value,
        _timeout: Duration,
    ) -> Result<Value, HypervisorError> {
        let script = {
            let world = self.enter(Op::AgentCommand).await?;
            let domain = world
                .domains
                .get(&id)
                .ok_or(HypervisorError::NotFound(id))?;
            let script = domain.agent.clone().or_else(|| world.default_agent.clone());
            script.filter(|_| domain.state == DomainState::Running)
        };
        // Outside of the lock: a script may call the fake.
        script
            .and_then(|script| script(&command))
            .ok_or(HypervisorError::AgentSilent(id))
    }

    async fn open_device(
        &self,
        id: InstanceId,
        device: Device,
    ) -> Result<Box<dyn ByteStream>, HypervisorError> {
        let script = {
            let world = self.enter(Op::OpenDevice).await?;
            let domain = world
                .domains
                .get(&id)
                .ok_or(HypervisorError::NotFound(id))?;
            if !is_active(domain.state) {
                return Err(HypervisorError::NotRunning(id));
            }
            world.devices.clone()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Outside};

    #[async_trait]
    impl Outside for FakeHypervisor {
        async fn destroy(&self, id: InstanceId) {
            FakeHypervisor::destroy(self, id);
        }

        async fn kill(&self, id: InstanceId) {
            self.crash(id);
        }

        async fn pause(&self, id: InstanceId) {
            FakeHypervisor::pause(self, id, false);
        }

        async fn add_tablet(&self, id: InstanceId) {
            self.add_device(id, "input tablet");
        }

        async fn set_memory(&self, id: InstanceId, memory: ByteSize) {
            FakeHypervisor::set_memory(self, id, memory);
        }
    }

    #[tokio::test]
    async fn the_fake_conforms() {
        let fake = FakeHypervisor::new();
        conformance::everything(&fake, &fake, &conformance::diskless_spec)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn the_fakes_disks_conform() {
        let fake = FakeHypervisor::new();
        let mut spec = conformance::diskless_spec(InstanceId::generate(), "conform-disk");
        spec.disks.push(crate::DomainDisk {
            name: "root".parse().unwrap(),
            source: waifud_types::VolumeSource::File("/pool/root.qcow2".into()),
            format: waifud_types::DiskFormat::Qcow2,
            backing: None,
        });
        let size_of = |id, disk: Name| {
            let size = fake.disk_size(id, disk.as_str()).unwrap();
            async move { size }
        };
        conformance::disks_grow_under_running_domains(&fake, &fake, &spec, size_of)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn scripted_errors_are_used_up_in_order_and_hanging_calls_end_when_released() {
        let fake = FakeHypervisor::new();
        let id = InstanceId::generate();
        fake.fail_next(Op::Get, HypervisorError::NotFound(id));
        assert!(fake.get(id).await.is_err());
        assert!(fake.get(id).await.is_ok());

        fake.hang(Op::List);
        let hanging = tokio::spawn({
            let fake = fake.clone();
            async move { fake.list().await }
        });
        tokio::task::yield_now().await;
        assert!(!hanging.is_finished());
        fake.release(Op::List);
        assert!(hanging.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn the_world_outlives_a_lost_connection() {
        let fake = FakeHypervisor::new();
        let spec = conformance::diskless_spec(InstanceId::generate(), "kept");
        fake.ensure_defined(&spec).await.unwrap();
        fake.ensure_started(spec.id).await.unwrap();
        let mut events = fake.events();
        fake.set_reachable(false);
        assert!(matches!(
            fake.list().await,
            Err(HypervisorError::Unreachable { .. })
        ));
        fake.set_reachable(true);
        assert_eq!(events.recv().await.unwrap().kind, DomainEventKind::Resync);
        let seen = fake.get(spec.id).await.unwrap().unwrap();
        assert_eq!(seen.state, DomainState::Running);
        assert_eq!(fake.starts(), 1);
    }

    #[tokio::test]
    async fn a_scripted_agent_answers_while_its_guest_runs() {
        let fake = FakeHypervisor::new();
        let spec = conformance::diskless_spec(InstanceId::generate(), "talks");
        fake.ensure_defined(&spec).await.unwrap();
        fake.set_agent(spec.id, Some(Arc::new(|_| Some(serde_json::json!({})))));
        let ping = || {
            fake.agent_command(
                spec.id,
                serde_json::json!({"execute": "guest-ping"}),
                Duration::from_secs(1),
            )
        };
        assert!(matches!(ping().await, Err(HypervisorError::AgentSilent(_))));
        fake.ensure_started(spec.id).await.unwrap();
        assert_eq!(ping().await.unwrap(), serde_json::json!({}));
    }
}
