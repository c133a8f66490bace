//! The conformance tests that every hypervisor, real or fake, must pass.
//!
//! The tests use only the trait, and `ExternalChanges`, which changes domains as other programs and failures do. A
//! violated rule is returned as a `Violation`, which the caller unwraps.

mod drift;
mod nics;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
pub use nics::nics_are_added_and_removed;
use tokio::sync::broadcast;
use tokio::time::timeout;
pub use waifud_kit::conformance::Violation;
use waifud_kit::conformance::{expect, failed};
use waifud_types::status::HypervisorKind;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Epoch, InstanceId, Name};

use crate::{
    DomainEvent, DomainEventKind, DomainSpec, DomainState, Hypervisor, HypervisorError,
    ObservedDomain, OffReason,
};

/// The time limit for a condition. Real guests start within a second, but a busy machine takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Changes of domains that waifud does not cause.
#[async_trait]
pub trait ExternalChanges: Send + Sync {
    /// Destroys a running domain, as an administrator would.
    async fn destroy(&self, id: InstanceId);
    /// Kills the domain's QEMU with SIGKILL.
    async fn kill(&self, id: InstanceId);
    /// Pauses a running domain.
    async fn pause(&self, id: InstanceId);
    /// Adds a tablet (a USB input device) to a domain's definition.
    async fn add_tablet(&self, id: InstanceId);
    /// Changes the memory in a domain's definition.
    async fn set_memory(&self, id: InstanceId, memory: ByteSize);
}

/// Creates a spec with this `(id, name)` that the hypervisor under test can start.
pub type SpecMaker<'a> = &'a (dyn Fn(InstanceId, &str) -> DomainSpec + Send + Sync);

/// A spec that is sufficient to run firmware: 1 CPU, 64 MiB, emulated, without disks and nics.
pub fn diskless_spec(id: InstanceId, name: &str) -> DomainSpec {
    DomainSpec {
        id,
        name: parse_name(name),
        epoch: Epoch(1),
        cpus: 1,
        memory: ByteSize::mib(64),
        kind: HypervisorKind::Tcg,
        firmware: Firmware::Bios,
        datasource: Datasource::Openstack,
        seed: None,
        disks: Vec::new(),
        nics: Vec::new(),
        console_log: PathBuf::from(format!("/var/log/libvirt/qemu/{id}.console.log")),
        console_socket: PathBuf::from(format!("/run/libvirt/{id}.console")),
        vnc_socket: PathBuf::from(format!("/run/libvirt/{id}.vnc")),
    }
}

/// Runs all tests. Removes the domains that they created, unless a rule is violated.
pub async fn run_all(
    hypervisor: &dyn Hypervisor,
    external: &dyn ExternalChanges,
    spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    absent_domains_can_be_removed_but_not_started(hypervisor).await?;
    a_definition_is_idempotent_and_applies_changes(hypervisor, spec).await?;
    a_name_belongs_to_one_domain(hypervisor, spec).await?;
    starting_and_stopping_are_idempotent(hypervisor, spec).await?;
    a_running_domain_survives_redefinition(hypervisor, spec).await?;
    external_changes_are_observed(hypervisor, external, spec).await?;
    drift::manual_edits_are_reported_and_devices_are_kept(hypervisor, external, spec).await?;
    a_missing_agent_differs_from_an_absent_domain(hypervisor, spec).await
}

/// Tests for a spec with a disk. `size_of` returns the size of the running domain's disk as the guest sees it.
pub async fn disks_grow_under_running_domains<F: Future<Output = ByteSize>>(
    hypervisor: &dyn Hypervisor,
    external: &dyn ExternalChanges,
    spec: &DomainSpec,
    size_of: impl Fn(InstanceId, Name) -> F,
) -> Result<(), Violation> {
    let id = spec.id;
    let Some(disk) = spec.disks.first().map(|disk| disk.name.clone()) else {
        return Err(Violation("the spec has no disk".to_owned()));
    };
    let [small, large] = [64, 96].map(ByteSize::mib);
    let absent = hypervisor.ensure_disk_size(id, &disk, large).await;
    not_found("ensure_disk_size", id, &absent)?;
    succeeds("ensure_defined", hypervisor.ensure_defined(spec)).await?;
    let observed = existing(hypervisor, id).await?;
    let holds = observed.disks == spec.disk_sources();
    expect(holds, "a domain's disks are observed as defined", &observed)?;
    let off = hypervisor.ensure_disk_size(id, &disk, large).await;
    expect(
        off.is_err(),
        "growing the disk of a domain that is off is refused",
        &off,
    )?;
    succeeds("ensure_started", hypervisor.ensure_started(id)).await?;
    let grow = |size| hypervisor.ensure_disk_size(id, &disk, size);
    for (wanted, expected) in [
        (small, small),
        (large, large),
        (large, large),
        (small, large),
    ] {
        succeeds("ensure_disk_size", grow(wanted)).await?;
        let has = size_of(id, disk.clone()).await;
        expect(
            has == expected,
            "disks grow and never shrink",
            &(wanted, has),
        )?;
    }
    external.pause(id).await;
    reaches(hypervisor, id, "a pause is reported", |s| {
        s == DomainState::Paused { io_error: false }
    })
    .await?;
    let larger = ByteSize::mib(128);
    succeeds("ensure_disk_size of a paused domain", grow(larger)).await?;
    let has = size_of(id, disk.clone()).await;
    expect(has == larger, "the disk of a paused domain grows", &has)?;
    let other = hypervisor
        .ensure_disk_size(id, &parse_name("no-such-disk"), large)
        .await;
    expect(
        other.is_err(),
        "a disk that the domain does not have is refused",
        &other,
    )?;
    succeeds("ensure_absent", hypervisor.ensure_absent(id)).await
}

async fn absent_domains_can_be_removed_but_not_started(
    hypervisor: &dyn Hypervisor,
) -> Result<(), Violation> {
    let id = InstanceId::generate();
    is_absent(hypervisor, id, "an absent domain is not found").await?;
    succeeds("ensure_off of an absent domain", hypervisor.ensure_off(id)).await?;
    succeeds(
        "ensure_absent of an absent domain",
        hypervisor.ensure_absent(id),
    )
    .await?;
    not_found("ensure_started", id, &hypervisor.ensure_started(id).await)?;
    not_found(
        "request_shutdown",
        id,
        &hypervisor.request_shutdown(id).await,
    )
}

async fn a_definition_is_idempotent_and_applies_changes(
    hypervisor: &dyn Hypervisor,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let mut spec = create_spec(InstanceId::generate(), "conform-define");
    for _ in 0..2 {
        succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    }
    let observed = existing(hypervisor, spec.id).await?;
    let holds = observed.id == spec.id
        && observed.name == spec.name.as_str()
        && observed.epoch == Some(spec.epoch)
        && observed.kind == spec.kind
        && observed.spec_digest == Some(spec.digest())
        && observed.disks == spec.disk_sources()
        && observed.drift.is_empty()
        && matches!(observed.state, DomainState::Off(_));
    expect(holds, "a defined domain matches its spec", &observed)?;

    spec.memory = ByteSize(spec.memory.bytes() + (16 << 20));
    spec.epoch = Epoch(spec.epoch.0 + 1);
    succeeds(
        "ensure_defined of a changed spec",
        hypervisor.ensure_defined(&spec),
    )
    .await?;
    let observed = existing(hypervisor, spec.id).await?;
    let holds = observed.spec_digest == Some(spec.digest()) && observed.epoch == Some(spec.epoch);
    expect(holds, "a changed spec is applied", &observed)?;

    let listed = hypervisor.list().await.map_err(failed("list"))?;
    let count = listed.iter().filter(|d| d.id == spec.id).count();
    expect(count == 1, "list returns each domain once", &listed)?;
    let known = BTreeSet::from([spec.id]);
    let others = hypervisor.list_except(&known).await;
    let others = others.map_err(failed("list_except"))?;
    let holds = others.iter().all(|d| d.id != spec.id) && others.len() + 1 == listed.len();
    expect(holds, "list_except omits the known domains", &others)?;
    for _ in 0..2 {
        succeeds("ensure_absent", hypervisor.ensure_absent(spec.id)).await?;
    }
    is_absent(hypervisor, spec.id, "a removed domain does not exist").await
}

async fn a_name_belongs_to_one_domain(
    hypervisor: &dyn Hypervisor,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let first = create_spec(InstanceId::generate(), "conform-name");
    let second = create_spec(InstanceId::generate(), "conform-name");
    succeeds("ensure_defined", hypervisor.ensure_defined(&first)).await?;
    let refused = hypervisor.ensure_defined(&second).await;
    let holds = matches!(&refused, Err(HypervisorError::NameTaken { name }) if *name == *second.name.as_str());
    expect(holds, "a name that another domain has is refused", &refused)?;
    succeeds("ensure_absent", hypervisor.ensure_absent(first.id)).await?;
    succeeds(
        "ensure_defined after the name became free",
        hypervisor.ensure_defined(&second),
    )
    .await?;
    succeeds("ensure_absent", hypervisor.ensure_absent(second.id)).await
}

async fn starting_and_stopping_are_idempotent(
    hypervisor: &dyn Hypervisor,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let spec = create_spec(InstanceId::generate(), "conform-start");
    let mut events = hypervisor.events();
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    for _ in 0..2 {
        succeeds("ensure_started", hypervisor.ensure_started(spec.id)).await?;
    }
    reaches(hypervisor, spec.id, "a started domain runs", |s| {
        s == DomainState::Running
    })
    .await?;
    receives(&mut events, spec.id, "a start", |k| {
        k == DomainEventKind::Started
    })
    .await?;
    for _ in 0..2 {
        succeeds("ensure_off", hypervisor.ensure_off(spec.id)).await?;
    }
    reaches(
        hypervisor,
        spec.id,
        "the reason after a power-off by waifud is `Destroyed`",
        |s| s == DomainState::Off(OffReason::Destroyed),
    )
    .await?;
    receives(&mut events, spec.id, "a stop", |k| {
        k == DomainEventKind::Stopped(OffReason::Destroyed)
    })
    .await?;
    succeeds(
        "request_shutdown of a domain that is off",
        hypervisor.request_shutdown(spec.id),
    )
    .await?;
    succeeds("a second start", hypervisor.ensure_started(spec.id)).await?;
    succeeds(
        "ensure_absent of a running domain",
        hypervisor.ensure_absent(spec.id),
    )
    .await?;
    is_absent(hypervisor, spec.id, "a running domain can be removed").await
}

async fn a_running_domain_survives_redefinition(
    hypervisor: &dyn Hypervisor,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let mut spec = create_spec(InstanceId::generate(), "conform-redefine");
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    succeeds("ensure_started", hypervisor.ensure_started(spec.id)).await?;
    spec.cpus += 1;
    succeeds(
        "ensure_defined while it runs",
        hypervisor.ensure_defined(&spec),
    )
    .await?;
    let observed = existing(hypervisor, spec.id).await?;
    let holds =
        observed.state == DomainState::Running && observed.spec_digest == Some(spec.digest());
    expect(
        holds,
        "a redefinition applies the spec without stopping the domain",
        &observed,
    )?;
    succeeds("ensure_absent", hypervisor.ensure_absent(spec.id)).await
}

async fn external_changes_are_observed(
    hypervisor: &dyn Hypervisor,
    external: &dyn ExternalChanges,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let spec = create_spec(InstanceId::generate(), "conform-external");
    let id = spec.id;
    let mut events = hypervisor.events();
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;

    succeeds("ensure_started", hypervisor.ensure_started(id)).await?;
    external.pause(id).await;
    reaches(
        hypervisor,
        id,
        "a pause by an administrator is reported",
        |s| s == DomainState::Paused { io_error: false },
    )
    .await?;
    receives(&mut events, id, "a pause", |k| k == DomainEventKind::Paused).await?;
    succeeds(
        "ensure_started of a paused domain",
        hypervisor.ensure_started(id),
    )
    .await?;
    reaches(hypervisor, id, "a paused domain is resumed", |s| {
        s == DomainState::Running
    })
    .await?;

    external.destroy(id).await;
    reaches(
        hypervisor,
        id,
        "a destroy by an administrator is reported",
        |s| s == DomainState::Off(OffReason::Destroyed),
    )
    .await?;
    receives(&mut events, id, "a destroy", |k| {
        k == DomainEventKind::Stopped(OffReason::Destroyed)
    })
    .await?;

    succeeds(
        "ensure_started after a destroy",
        hypervisor.ensure_started(id),
    )
    .await?;
    external.kill(id).await;
    reaches(
        hypervisor,
        id,
        "a killed QEMU is reported as a crash",
        |s| {
            matches!(
                s,
                DomainState::Off(OffReason::Crashed) | DomainState::Crashed
            )
        },
    )
    .await?;
    receives(&mut events, id, "a crash", |k| {
        k == DomainEventKind::Stopped(OffReason::Crashed)
    })
    .await?;
    succeeds("ensure_absent", hypervisor.ensure_absent(id)).await
}

async fn a_missing_agent_differs_from_an_absent_domain(
    hypervisor: &dyn Hypervisor,
    create_spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    let ping = || serde_json::json!({"execute": "guest-ping"});
    let spec = create_spec(InstanceId::generate(), "conform-agent");
    let limit = Duration::from_secs(2);
    let absent = hypervisor.agent_command(spec.id, ping(), limit).await;
    let holds = matches!(absent, Err(HypervisorError::NotFound(_)));
    expect(holds, "an agent of an absent domain is not found", &absent)?;
    succeeds("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    for running in [false, true] {
        if running {
            succeeds("ensure_started", hypervisor.ensure_started(spec.id)).await?;
        }
        let answer = hypervisor.agent_command(spec.id, ping(), limit).await;
        let holds = matches!(answer, Err(HypervisorError::AgentUnresponsive(_)));
        expect(holds, "a guest without an agent does not answer", &answer)?;
    }
    succeeds("ensure_absent", hypervisor.ensure_absent(spec.id)).await
}

async fn is_absent(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
    rule: &str,
) -> Result<(), Violation> {
    let found = get(hypervisor, id).await?;
    expect(found.is_none(), rule, &found)
}

fn parse_name(name: &str) -> Name {
    name.parse().unwrap_or_else(|_| parse_name("invalid-name"))
}

async fn succeeds(
    operation: &str,
    call: impl Future<Output = Result<(), HypervisorError>>,
) -> Result<(), Violation> {
    call.await.map_err(failed(operation))
}

fn not_found(
    operation: &str,
    id: InstanceId,
    outcome: &Result<(), HypervisorError>,
) -> Result<(), Violation> {
    let holds = matches!(outcome, Err(HypervisorError::NotFound(observed)) if *observed == id);
    expect(
        holds,
        &format!("{operation} of an absent domain is `NotFound`"),
        outcome,
    )
}

async fn get(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
) -> Result<Option<ObservedDomain>, Violation> {
    hypervisor.get(id).await.map_err(failed("get"))
}

async fn existing(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
) -> Result<ObservedDomain, Violation> {
    get(hypervisor, id)
        .await?
        .ok_or_else(|| Violation(format!("domain {id} does not exist")))
}

async fn reaches(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
    rule: &str,
    holds: impl Fn(DomainState) -> bool,
) -> Result<(), Violation> {
    let mut last = None;
    let wait = async {
        loop {
            let state = existing(hypervisor, id).await?.state;
            if holds(state) {
                return Ok(());
            }
            last = Some(state);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(DEADLINE, wait).await {
        Ok(outcome) => outcome,
        Err(_late) => Err(Violation(format!("{rule}: the state is still {last:?}"))),
    }
}

async fn receives(
    events: &mut broadcast::Receiver<DomainEvent>,
    id: InstanceId,
    expected: &str,
    holds: impl Fn(DomainEventKind) -> bool,
) -> Result<(), Violation> {
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) if event.id == id && holds(event.kind) => return Ok(()),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(Violation(format!(
                        "the event stream ended before it reported {expected}"
                    )));
                }
            }
        }
    };
    match timeout(DEADLINE, wait).await {
        Ok(outcome) => outcome,
        Err(_late) => Err(Violation(format!("there was no event for {expected}"))),
    }
}
