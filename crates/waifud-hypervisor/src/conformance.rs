//! What every hypervisor must do, fake or real: one suite that all of them pass.
//!
//! The suite sees the trait only, plus an `Outside` that does to domains what other people and bad luck do. Broken
//! rules come back as `Violation`; the caller unwraps it in a test.

mod drift;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio::time::timeout;
use waifud_types::status::HypervisorKind;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Epoch, InstanceId, Name};

use crate::{
    DomainEvent, DomainEventKind, DomainSpec, DomainState, Hypervisor, HypervisorError,
    ObservedDomain, OffReason,
};

/// How long the suite waits for a condition; real guests start in a second, busy machines take longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// A rule that the hypervisor broke, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// What happens to domains without our doing.
#[async_trait]
pub trait Outside: Send + Sync {
    /// Somebody destroys a running domain.
    async fn destroy(&self, id: InstanceId);
    /// QEMU dies (SIGKILL).
    async fn kill(&self, id: InstanceId);
    /// Somebody halts a running domain.
    async fn pause(&self, id: InstanceId);
    /// Somebody adds a tablet (an input device on USB) to a domain's definition.
    async fn add_tablet(&self, id: InstanceId);
    /// Somebody writes another memory into a domain's definition.
    async fn set_memory(&self, id: InstanceId, memory: ByteSize);
}

/// Makes a spec that the subject can start: `(id, name)`.
pub type SpecMaker<'a> = &'a (dyn Fn(InstanceId, &str) -> DomainSpec + Send + Sync);

/// A spec without disks and nics, enough for firmware to run: 1 CPU, 64 MiB, emulated.
pub fn diskless_spec(id: InstanceId, name: &str) -> DomainSpec {
    DomainSpec {
        id,
        name: label(name),
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

/// Runs the whole suite. Domains that it makes are gone afterwards unless a rule is broken.
pub async fn everything(
    hypervisor: &dyn Hypervisor,
    outside: &dyn Outside,
    spec: SpecMaker<'_>,
) -> Result<(), Violation> {
    absent_domains_are_no_error(hypervisor).await?;
    defining_is_idempotent_and_takes_changes(hypervisor, spec).await?;
    names_are_taken_once(hypervisor, spec).await?;
    starting_and_stopping_are_idempotent(hypervisor, spec).await?;
    a_running_domain_survives_redefinition(hypervisor, spec).await?;
    outside_changes_are_seen(hypervisor, outside, spec).await?;
    drift::edits_by_hand_are_seen_and_devices_are_kept(hypervisor, outside, spec).await?;
    silent_agents_are_told_from_absent_domains(hypervisor, spec).await
}

/// For a spec with a disk: `size_of` tells how large the running domain's disk is, to the guest.
pub async fn disks_grow_under_running_domains<F: Future<Output = ByteSize>>(
    hypervisor: &dyn Hypervisor,
    outside: &dyn Outside,
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
    done("ensure_defined", hypervisor.ensure_defined(spec)).await?;
    let seen = found(hypervisor, id).await?;
    let right = seen.disks == spec.disk_sources();
    expect(right, "a domain's disks are observed as defined", &seen)?;
    let off = hypervisor.ensure_disk_size(id, &disk, large).await;
    expect(
        off.is_err(),
        "the disk of a domain that is off is its pool's",
        &off,
    )?;
    done("ensure_started", hypervisor.ensure_started(id)).await?;
    let grow = |size| hypervisor.ensure_disk_size(id, &disk, size);
    for (wanted, expected) in [
        (small, small),
        (large, large),
        (large, large),
        (small, large),
    ] {
        done("ensure_disk_size", grow(wanted)).await?;
        let has = size_of(id, disk.clone()).await;
        expect(
            has == expected,
            "disks grow and never shrink",
            &(wanted, has),
        )?;
    }
    outside.pause(id).await;
    settles(hypervisor, id, "the pause is seen", |s| {
        s == DomainState::Paused { io_error: false }
    })
    .await?;
    let larger = ByteSize::mib(128);
    done("ensure_disk_size of a paused domain", grow(larger)).await?;
    let has = size_of(id, disk.clone()).await;
    expect(has == larger, "the disk of a paused domain grows", &has)?;
    let other = hypervisor
        .ensure_disk_size(id, &label("no-such-disk"), large)
        .await;
    expect(other.is_err(), "a disk that it has not is refused", &other)?;
    done("ensure_absent", hypervisor.ensure_absent(id)).await
}

async fn absent_domains_are_no_error(hypervisor: &dyn Hypervisor) -> Result<(), Violation> {
    let id = InstanceId::generate();
    expect(
        get(hypervisor, id).await?.is_none(),
        "get of an absent domain",
        &"found",
    )?;
    done("ensure_off of an absent domain", hypervisor.ensure_off(id)).await?;
    done(
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

async fn defining_is_idempotent_and_takes_changes(
    hypervisor: &dyn Hypervisor,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let mut spec = make(InstanceId::generate(), "conform-define");
    for _ in 0..2 {
        done("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    }
    let seen = found(hypervisor, spec.id).await?;
    let right = seen.id == spec.id
        && seen.name == spec.name.as_str()
        && seen.epoch == Some(spec.epoch)
        && seen.kind == spec.kind
        && seen.spec_digest == Some(spec.digest())
        && seen.disks == spec.disk_sources()
        && seen.drift.is_empty()
        && matches!(seen.state, DomainState::Off(_));
    expect(right, "a defined domain looks like its spec", &seen)?;

    spec.memory = ByteSize(spec.memory.bytes() + (16 << 20));
    spec.epoch = Epoch(spec.epoch.0 + 1);
    done(
        "ensure_defined of a changed spec",
        hypervisor.ensure_defined(&spec),
    )
    .await?;
    let seen = found(hypervisor, spec.id).await?;
    let right = seen.spec_digest == Some(spec.digest()) && seen.epoch == Some(spec.epoch);
    expect(right, "a changed spec is taken over", &seen)?;

    let listed = hypervisor.list().await.map_err(failed("list"))?;
    let count = listed.iter().filter(|d| d.id == spec.id).count();
    expect(count == 1, "list names each domain once", &listed)?;
    let known = BTreeSet::from([spec.id]);
    let others = hypervisor.list_except(&known).await;
    let others = others.map_err(failed("list_except"))?;
    let right = others.iter().all(|d| d.id != spec.id) && others.len() + 1 == listed.len();
    expect(right, "list_except leaves the known ones out", &others)?;
    for _ in 0..2 {
        done("ensure_absent", hypervisor.ensure_absent(spec.id)).await?;
    }
    let gone = get(hypervisor, spec.id).await?;
    expect(gone.is_none(), "an absent domain is gone", &gone)
}

async fn names_are_taken_once(
    hypervisor: &dyn Hypervisor,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let first = make(InstanceId::generate(), "conform-name");
    let second = make(InstanceId::generate(), "conform-name");
    done("ensure_defined", hypervisor.ensure_defined(&first)).await?;
    let refused = hypervisor.ensure_defined(&second).await;
    let right = matches!(&refused, Err(HypervisorError::NameTaken { name }) if *name == *second.name.as_str());
    expect(
        right,
        "a name is refused while another domain has it",
        &refused,
    )?;
    done("ensure_absent", hypervisor.ensure_absent(first.id)).await?;
    done(
        "ensure_defined once the name is free",
        hypervisor.ensure_defined(&second),
    )
    .await?;
    done("ensure_absent", hypervisor.ensure_absent(second.id)).await
}

async fn starting_and_stopping_are_idempotent(
    hypervisor: &dyn Hypervisor,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let spec = make(InstanceId::generate(), "conform-start");
    let mut events = hypervisor.events();
    done("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    for _ in 0..2 {
        done("ensure_started", hypervisor.ensure_started(spec.id)).await?;
    }
    settles(hypervisor, spec.id, "a started domain runs", |s| {
        s == DomainState::Running
    })
    .await?;
    heard(&mut events, spec.id, "a start", |k| {
        k == DomainEventKind::Started
    })
    .await?;
    for _ in 0..2 {
        done("ensure_off", hypervisor.ensure_off(spec.id)).await?;
    }
    settles(hypervisor, spec.id, "off by our word is `Destroyed`", |s| {
        s == DomainState::Off(OffReason::Destroyed)
    })
    .await?;
    heard(&mut events, spec.id, "a stop", |k| {
        k == DomainEventKind::Stopped(OffReason::Destroyed)
    })
    .await?;
    done(
        "request_shutdown when off",
        hypervisor.request_shutdown(spec.id),
    )
    .await?;
    done("a second start", hypervisor.ensure_started(spec.id)).await?;
    done(
        "ensure_absent of a running domain",
        hypervisor.ensure_absent(spec.id),
    )
    .await?;
    let gone = get(hypervisor, spec.id).await?;
    expect(gone.is_none(), "a running domain can be made absent", &gone)
}

async fn a_running_domain_survives_redefinition(
    hypervisor: &dyn Hypervisor,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let mut spec = make(InstanceId::generate(), "conform-redefine");
    done("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    done("ensure_started", hypervisor.ensure_started(spec.id)).await?;
    spec.cpus += 1;
    done(
        "ensure_defined while it runs",
        hypervisor.ensure_defined(&spec),
    )
    .await?;
    let seen = found(hypervisor, spec.id).await?;
    let right = seen.state == DomainState::Running && seen.spec_digest == Some(spec.digest());
    expect(
        right,
        "redefinition takes the spec and stops nothing",
        &seen,
    )?;
    done("ensure_absent", hypervisor.ensure_absent(spec.id)).await
}

async fn outside_changes_are_seen(
    hypervisor: &dyn Hypervisor,
    outside: &dyn Outside,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let spec = make(InstanceId::generate(), "conform-outside");
    let id = spec.id;
    let mut events = hypervisor.events();
    done("ensure_defined", hypervisor.ensure_defined(&spec)).await?;

    done("ensure_started", hypervisor.ensure_started(id)).await?;
    outside.pause(id).await;
    settles(hypervisor, id, "a pause from outside is seen", |s| {
        s == DomainState::Paused { io_error: false }
    })
    .await?;
    heard(&mut events, id, "a pause", |k| k == DomainEventKind::Paused).await?;
    done(
        "ensure_started of a paused domain",
        hypervisor.ensure_started(id),
    )
    .await?;
    settles(hypervisor, id, "a paused domain is resumed", |s| {
        s == DomainState::Running
    })
    .await?;

    outside.destroy(id).await;
    settles(hypervisor, id, "a destroy from outside is seen", |s| {
        s == DomainState::Off(OffReason::Destroyed)
    })
    .await?;
    heard(&mut events, id, "a destroy", |k| {
        k == DomainEventKind::Stopped(OffReason::Destroyed)
    })
    .await?;

    done(
        "ensure_started after a destroy",
        hypervisor.ensure_started(id),
    )
    .await?;
    outside.kill(id).await;
    settles(hypervisor, id, "a dead QEMU is seen as a crash", |s| {
        matches!(
            s,
            DomainState::Off(OffReason::Crashed) | DomainState::Crashed
        )
    })
    .await?;
    heard(&mut events, id, "a crash", |k| {
        k == DomainEventKind::Stopped(OffReason::Crashed)
    })
    .await?;
    done("ensure_absent", hypervisor.ensure_absent(id)).await
}

async fn silent_agents_are_told_from_absent_domains(
    hypervisor: &dyn Hypervisor,
    make: SpecMaker<'_>,
) -> Result<(), Violation> {
    let ping = || serde_json::json!({"execute": "guest-ping"});
    let spec = make(InstanceId::generate(), "conform-agent");
    let limit = Duration::from_secs(2);
    let absent = hypervisor.agent_command(spec.id, ping(), limit).await;
    let right = matches!(absent, Err(HypervisorError::NotFound(_)));
    expect(right, "an agent of an absent domain is not found", &absent)?;
    done("ensure_defined", hypervisor.ensure_defined(&spec)).await?;
    for running in [false, true] {
        if running {
            done("ensure_started", hypervisor.ensure_started(spec.id)).await?;
        }
        let silent = hypervisor.agent_command(spec.id, ping(), limit).await;
        let right = matches!(silent, Err(HypervisorError::AgentSilent(_)));
        expect(right, "a guest without agent is silent", &silent)?;
    }
    done("ensure_absent", hypervisor.ensure_absent(spec.id)).await
}

fn label(name: &str) -> Name {
    name.parse().unwrap_or_else(|_| label("misnamed"))
}

fn expect(right: bool, rule: &str, seen: &dyn Debug) -> Result<(), Violation> {
    if right {
        Ok(())
    } else {
        Err(Violation(format!("{rule}: {seen:?}")))
    }
}

fn failed(what: &str) -> impl FnOnce(HypervisorError) -> Violation {
    move |error| Violation(format!("{what} failed: {error:?}"))
}

async fn done(
    what: &str,
    call: impl Future<Output = Result<(), HypervisorError>>,
) -> Result<(), Violation> {
    call.await.map_err(failed(what))
}

fn not_found(
    what: &str,
    id: InstanceId,
    outcome: &Result<(), HypervisorError>,
) -> Result<(), Violation> {
    let right = matches!(outcome, Err(HypervisorError::NotFound(seen)) if *seen == id);
    expect(
        right,
        &format!("{what} of an absent domain is `NotFound`"),
        outcome,
    )
}

async fn get(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
) -> Result<Option<ObservedDomain>, Violation> {
    hypervisor.get(id).await.map_err(failed("get"))
}

async fn found(hypervisor: &dyn Hypervisor, id: InstanceId) -> Result<ObservedDomain, Violation> {
    get(hypervisor, id)
        .await?
        .ok_or_else(|| Violation(format!("domain {id} is not found")))
}

async fn settles(
    hypervisor: &dyn Hypervisor,
    id: InstanceId,
    rule: &str,
    right: impl Fn(DomainState) -> bool,
) -> Result<(), Violation> {
    let mut last = None;
    let wait = async {
        loop {
            let state = found(hypervisor, id).await?.state;
            if right(state) {
                return Ok(());
            }
            last = Some(state);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match timeout(DEADLINE, wait).await {
        Ok(outcome) => outcome,
        Err(_late) => Err(Violation(format!("{rule}: still {last:?}"))),
    }
}

async fn heard(
    events: &mut broadcast::Receiver<DomainEvent>,
    id: InstanceId,
    what: &str,
    right: impl Fn(DomainEventKind) -> bool,
) -> Result<(), Violation> {
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) if event.id == id && right(event.kind) => return Ok(()),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(Violation(format!("events ended before {what} was heard")));
                }
            }
        }
    };
    match timeout(DEADLINE, wait).await {
        Ok(outcome) => outcome,
        Err(_late) => Err(Violation(format!("no event tells of {what}"))),
    }
}
