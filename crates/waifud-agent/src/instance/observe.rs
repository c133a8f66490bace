//! Looks at what there is of one instance, through the interfaces.

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::ObservedDomain;
use waifud_types::status::HypervisorKind;
use waifud_types::{InstanceId, Name};

use crate::control_link::record::{DesiredState, InstanceRecord};
use crate::instance::failure::Failure;
use crate::instance::planner::Observed;
use crate::instance::rescue;
use crate::shared::Shared;

/// What a driver knows beyond what can be seen: what it did itself, in this process.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub(crate) struct Own {
    /// The volumes were ensured for the present spec.
    pub volumes: bool,
    /// The domain was defined from the present spec.
    pub defined: bool,
    /// The disk with its documents was ensured, or taken away, as its next start wants it.
    pub seed: bool,
    /// Its next start reads its documents from that disk.
    pub by_disk: bool,
}

/// What was seen, and what runs it.
pub(crate) struct Sight {
    pub seen: Observed,
    pub hypervisor: Option<HypervisorKind>,
    /// What somebody edited by hand in its domain.
    pub drift: Vec<String>,
}

/// Looks. Costs one question to the hypervisor, and for an instance that is off a few to its pools.
pub(crate) async fn look(
    shared: &Shared,
    record: &InstanceRecord,
    wish: &DesiredState,
    own: Own,
) -> Result<Sight, Failure> {
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
    match wish {
        DesiredState::Keep(want) => {
            seen.bundle = shared.metadata.serves(want, &record.memory);
            seen.seed = own.seed || !own.by_disk && !shared.files.has_seed(want.id).await;
            seen.by_disk = own.by_disk;
            seen.grown = record.memory.disk_sizes == crate::instance::steps::sizes(want);
            if !seen.is_on() {
                look_at_disks(shared, record, want, own, &mut seen).await?;
            }
        }
        DesiredState::Destroy(_) | DesiredState::LeaveAlone => {
            seen.port = match wish {
                DesiredState::Destroy(_) => shared.network.may_hold(record.id),
                _ => shared.network.in_force(record),
            };
            seen.assigned = shared.metadata.may_hold(record.id);
            seen.leftovers = has_volumes(shared, record.id).await?
                || (matches!(wish, DesiredState::Destroy(_))
                    && shared.files.exist(record.id).await);
        }
    }
    Ok(Sight {
        seen,
        hypervisor: domain.as_ref().map(|domain| domain.kind),
        drift: domain.map(|domain| domain.drift).unwrap_or_default(),
    })
}

/// A domain without our mark is somebody else's, unless we defined it and somebody took the mark away.
fn is_foreign(domain: &ObservedDomain, record: &InstanceRecord) -> bool {
    domain.epoch.is_none() && !record.memory.defined
}

async fn look_at_disks(
    shared: &Shared,
    record: &InstanceRecord,
    want: &AgentInstance,
    own: Own,
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
        if record.memory.disks.is_empty() {
            continue;
        }
        // A disk that was made must still be there: making it anew would hide that its data are gone.
        let there = pool.volumes().await?;
        let lost = want.spec.disks.iter().find(|disk| {
            disk.pool == *name
                && record.memory.disks.contains(&disk.name)
                && !there
                    .iter()
                    .any(|volume| volume.id.instance == want.id && volume.id.disk == disk.name)
        });
        seen.lost = seen.lost.take().or(lost.map(|disk| disk.name.clone()));
    }
    seen.volumes = own.volumes && seen.lost.is_none();
    seen.defined = own.defined && seen.domain.is_some();
    Ok(())
}

async fn has_volumes(shared: &Shared, id: InstanceId) -> Result<bool, Failure> {
    for pool in shared.pools.values() {
        let volumes = pool.volumes().await?;
        if volumes.iter().any(|volume| volume.id.instance == id) {
            return Ok(true);
        }
    }
    Ok(false)
}
