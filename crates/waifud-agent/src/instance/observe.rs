//! Observes one instance through the interfaces.

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::ObservedDomain;
use waifud_types::status::HypervisorKind;
use waifud_types::{InstanceId, Name};

use crate::control_link::record::{DesiredState, InstanceRecord};
use crate::instance::failure::Failure;
use crate::instance::planner::Observed;
use crate::instance::rescue;
use crate::shared::Shared;

/// What the driver of this process has ensured itself, which cannot be observed.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub(crate) struct Ensured {
    /// The volumes, for the present spec.
    pub volumes: bool,
    /// The definition of the domain, from the present spec.
    pub defined: bool,
    /// That the disk with the documents exists or is absent, as the next start needs it.
    pub seed: bool,
    /// Whether the next start reads the documents from that disk.
    pub by_disk: bool,
    /// That the running guest has exactly its nics.
    pub nics: bool,
}

pub(crate) struct Observation {
    pub seen: Observed,
    pub hypervisor: Option<HypervisorKind>,
    /// What was edited by hand in its domain.
    pub drift: Vec<String>,
}

/// Costs one call to the hypervisor, and for an instance that is off also a few calls to its pools.
pub(crate) async fn observe(
    shared: &Shared,
    record: &InstanceRecord,
    desired: &DesiredState,
    ensured: Ensured,
) -> Result<Observation, Failure> {
    let domain = shared.hypervisor.get(record.id).await?;
    let mut seen = Observed {
        domain: domain.as_ref().map(|domain| domain.state),
        epoch: domain.as_ref().and_then(|domain| domain.epoch),
        foreign: domain
            .as_ref()
            .is_some_and(|domain| is_foreign(domain, record)),
        port: shared.network.in_force(record),
        ..Observed::default()
    };
    match desired {
        DesiredState::Keep(want) => {
            seen.bundle = shared.metadata.serves(want, &record.memory);
            seen.seed =
                ensured.seed || !ensured.by_disk && !shared.instances.files.has_seed(want.id).await;
            seen.by_disk = ensured.by_disk;
            seen.nics = ensured.nics;
            seen.grown = record.memory.disks.sizes == crate::instance::disks::sizes(want);
            if !seen.is_on() {
                observe_disks(shared, record, want, ensured, &mut seen).await?;
            }
        }
        DesiredState::Destroy(_)
        | DesiredState::Release(_)
        | DesiredState::Receive(_)
        | DesiredState::LeaveAlone => {
            seen.port = match desired {
                DesiredState::Destroy(_) | DesiredState::Release(_) => {
                    shared.network.may_hold(record.id)
                }
                _ => shared.network.in_force(record),
            };
            seen.assigned = shared.metadata.may_hold(record.id);
            // A release keeps the volumes, so a pool that does not answer must not delay it.
            if !matches!(desired, DesiredState::Release(_)) {
                seen.leftovers = has_volumes(shared, record.id).await?
                    || (matches!(desired, DesiredState::Destroy(_))
                        && shared.instances.files.exist(record.id).await);
            }
        }
    }
    Ok(Observation {
        seen,
        hypervisor: domain.as_ref().map(|domain| domain.kind),
        drift: domain.map(|domain| domain.drift).unwrap_or_default(),
    })
}

/// A domain without our mark was not created by waifud, unless the record shows that we defined it and the mark was removed.
fn is_foreign(domain: &ObservedDomain, record: &InstanceRecord) -> bool {
    domain.epoch.is_none() && !record.memory.defined
}

async fn observe_disks(
    shared: &Shared,
    record: &InstanceRecord,
    want: &AgentInstance,
    ensured: Ensured,
    seen: &mut Observed,
) -> Result<(), Failure> {
    seen.image = true;
    for (name, image, _) in rescue::images(want) {
        if let Some(pool) = shared.pool(name) {
            seen.image &= pool.has_image(image).await?;
        }
    }
    let mut pools: Vec<&Name> = want.spec.disks.iter().map(|disk| &disk.pool).collect();
    pools.sort();
    pools.dedup();
    for name in pools {
        let pool = shared
            .pool(name)
            .ok_or_else(|| Failure::lasting(format!("this node has no pool {name}")))?;
        if record.memory.disks.created.is_empty() {
            continue;
        }
        // A disk that was created must still exist. Creating it again would hide the loss of its data.
        let there = pool.volumes().await?;
        let lost = want.spec.disks.iter().find(|disk| {
            disk.pool == *name
                && record.memory.disks.created.contains(&disk.name)
                && !there
                    .iter()
                    .any(|volume| volume.id.instance == want.id && volume.id.disk == disk.name)
        });
        seen.lost = seen.lost.take().or(lost.map(|disk| disk.name.clone()));
    }
    seen.volumes = ensured.volumes && seen.lost.is_none();
    seen.defined = ensured.defined && seen.domain.is_some();
    Ok(())
}

async fn has_volumes(shared: &Shared, id: InstanceId) -> Result<bool, Failure> {
    for pool in shared.pools.values() {
        let volumes = pool.volumes().await?;
        let received = pool.incoming().await?;
        if volumes.iter().any(|volume| volume.id.instance == id)
            || received.iter().any(|volume| volume.instance == id)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
