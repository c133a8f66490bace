//! Every request ends as it should, or shows what it waits for.

use waifud_api::Instance;
use waifud_kit::sync::lock;
use waifud_types::{ByteSize, InstanceId, InstanceState, OwnershipRole};

use super::documents::opened;
use super::snapshot::{Database, Shown, Snapshot};
use super::{Violation, hold};
use crate::world::{Promise, Release, World};

/// An acknowledged request, and what came of it.
struct Outcome<'a> {
    world: &'a World,
    nodes: &'a [Snapshot<'a>],
    database: &'a Database,
    id: InstanceId,
    promise: Promise,
    /// As waifud shows the instance.
    seen: &'a Instance,
}

/// Every request ends as it should, or shows what it waits for.
pub(super) fn every_request_ends(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
    shown: &Shown,
) -> Result<(), Violation> {
    for (id, promise) in world.promises.all() {
        let name = promise.name.clone();
        let seen = shown.get(&id);
        let state = seen.map(|seen| seen.status.state);
        hold!(
            world,
            !promise.unmanaged,
            every_request_ends,
            "{name} is unmanaged, and an operator can neither adopt nor delete it"
        );
        hold!(
            world,
            seen.is_none() == promise.deleted,
            every_request_ends,
            "{name} is shown as {state:?}, deleted: {}",
            promise.deleted
        );
        let Some(seen) = seen else { continue };
        let outcome = Outcome {
            world,
            nodes,
            database,
            id,
            promise,
            seen,
        };
        outcome.every_move_ends()?;
        if outcome.promise.lost {
            outcome.is_shown_as_lost()?;
            continue;
        }
        match outcome.promise.release {
            _ if seen.status.node.is_none() => outcome.waits_with_a_reason()?,
            Some(release) => outcome.is_released(release)?,
            None => {
                outcome.is_as_requested()?;
                outcome.edits_are_applied()?;
            }
        }
    }
    Ok(())
}

impl Outcome<'_> {
    /// The node that waifud shows.
    fn at(&self) -> Option<&Snapshot<'_>> {
        let node = self.seen.status.node.as_ref()?;
        self.nodes.iter().find(|at| at.node.name == node.as_str())
    }

    fn runs(&self) -> bool {
        self.nodes.iter().any(|at| at.runs(self.id))
    }

    /// Every move ends: no fault is left that it could wait for.
    fn every_move_ends(&self) -> Result<(), Violation> {
        let moving = self.seen.moving.as_ref();
        hold!(
            self.world,
            moving.is_none(),
            every_move_ends,
            "{} is still being moved: {moving:?}",
            self.promise.name
        );
        Ok(())
    }

    /// An instance that was lost with its node shows that.
    fn is_shown_as_lost(&self) -> Result<(), Violation> {
        let status = &self.seen.status;
        hold!(
            self.world,
            status.state == InstanceState::Failed && status.reason.is_some(),
            every_request_ends,
            "{} was lost with its node, and is shown as {:?}: {:?}",
            self.promise.name,
            status.state,
            status.reason
        );
        Ok(())
    }

    /// An instance without a node says why, and no node has room for it.
    fn waits_with_a_reason(&self) -> Result<(), Violation> {
        let name = &self.promise.name;
        hold!(
            self.world,
            self.seen.status.reason.is_some(),
            every_request_ends,
            "{name} waits for a node without a reason"
        );
        let strict = self.promise.fields.spread.as_ref();
        if strict.is_some_and(|spread| spread.strict) {
            return Ok(());
        }
        for at in self.nodes {
            // Unknown means that a request was not answered.
            let cordons = lock(&self.world.cordons).clone();
            let may_be_cordoned = cordons.get(&at.node.name).copied().unwrap_or(true);
            if !at.node.is_member() || may_be_cordoned || self.publishes_a_port_of(at) {
                continue;
            }
            let promised = self.memory_promised_on(at);
            let free = at.node.memory().bytes().saturating_sub(promised);
            hold!(
                self.world,
                self.promise.fields.memory.bytes() > free,
                every_request_ends,
                "{name} waits ({:?}), and {} has {} for it",
                self.seen.status.reason,
                at.node.name,
                ByteSize(free)
            );
        }
        Ok(())
    }

    /// Whether another instance of the node publishes one of its ports.
    fn publishes_a_port_of(&self, at: &Snapshot<'_>) -> bool {
        let rows = self.database.instances.values();
        let mut rows = rows.filter(|row| row.node.is_some() && row.node == at.node.id());
        rows.any(|row| {
            let mut published = row.spec.publish.iter();
            published.any(|one| self.promise.fields.published.contains(&one.port))
        })
    }

    /// The memory of a node that its instances have, or that they get at their next start.
    fn memory_promised_on(&self, at: &Snapshot<'_>) -> u64 {
        let rows = self.database.instances.values();
        let rows = rows.filter(|row| row.node.is_some() && row.node == at.node.id());
        rows.map(|row| {
            let domain = at.domains.get(&row.id);
            let has = domain.map_or(ByteSize(0), |domain| domain.memory);
            row.spec.memory_bytes.max(has).bytes()
        })
        .sum()
    }

    /// The node has recorded the release, waifud has counted it, and nothing is left except the disks.
    fn is_released(&self, release: Release) -> Result<(), Violation> {
        let name = &self.promise.name;
        let part = self.database.part(self.id);
        let role = part.map(|part| part.role);
        hold!(
            self.world,
            role == Some(OwnershipRole::Released),
            every_request_ends,
            "{name} was released, and its node is {role:?}"
        );
        let off = part.is_some_and(|part| part.off);
        hold!(
            self.world,
            off != self.runs() && (off || !release.stop),
            every_request_ends,
            "{name} was released ({release:?}); it counts as off: {off}, and runs: {}",
            self.runs()
        );
        if off {
            let served = self.nodes.iter().find_map(|at| at.serves(self.id));
            hold!(
                self.world,
                served.is_none(),
                every_request_ends,
                "{name} was released, and {served:?}"
            );
        }
        Ok(())
    }

    fn is_as_requested(&self) -> Result<(), Violation> {
        let Promise {
            name,
            fields,
            generation,
            ..
        } = &self.promise;
        let role = self.database.part(self.id).map(|part| part.role);
        hold!(
            self.world,
            role == Some(OwnershipRole::Owner),
            every_request_ends,
            "{name} is not released, and its node is {role:?}"
        );
        hold!(
            self.world,
            self.runs() == fields.run,
            every_request_ends,
            "{name} runs: {}, requested: {}; {:?}",
            self.runs(),
            fields.run,
            self.seen.status.reason
        );
        let seen = self.seen.status.observed_generation;
        hold!(
            self.world,
            seen.is_some_and(|seen| seen.0 >= *generation),
            every_request_ends,
            "{name} has generation {generation}, and its node has reported {seen:?}"
        );
        if let Some(before) = self.promise.starts_before_reboot.filter(|_| fields.run) {
            let domain = self.at().and_then(|at| at.domains.get(&self.id));
            let starts = domain.map_or(0, |domain| domain.starts);
            hold!(
                self.world,
                starts > before,
                every_request_ends,
                "{name} was to reboot, and was started {starts} times, before that {before}"
            );
        }
        Ok(())
    }

    /// What the guest gets is what users chose, now or at the next start.
    fn edits_are_applied(&self) -> Result<(), Violation> {
        let Promise { name, fields, .. } = &self.promise;
        let Some(at) = self.at() else { return Ok(()) };
        let next_start = !self.seen.status.restart_needed.is_empty();
        if let Some(domain) = at.domains.get(&self.id).filter(|domain| domain.is_active) {
            hold!(
                self.world,
                next_start || (domain.cpus, domain.memory) == (fields.cpus, fields.memory),
                every_request_ends,
                "{name} has {} CPUs and {}, and was to have {fields:?}",
                domain.cpus,
                domain.memory
            );
        }
        let mut volumes = at.volumes.iter();
        let root = volumes.find(|(volume, _)| volume.instance == self.id);
        if let Some((_, volume)) = root {
            let grown = at.node.grown_disk(self.id);
            let size = grown.map_or(volume.size, |grown| grown.max(volume.size));
            hold!(
                self.world,
                size == fields.disk || (self.promise.voided && size > fields.disk),
                every_request_ends,
                "{name} has a disk of {size}, and was to have one of {}",
                fields.disk
            );
        }
        if let Some(held) = at.held.get(&self.id) {
            let documents = opened(self.world, at, self.id, held.bundle.digest);
            hold!(
                self.world,
                documents.user_data == fields.user_data,
                every_request_ends,
                "{name} reads other user-data than it was given last"
            );
        }
        if let Some(port) = at.ports.iter().find(|port| port.instance == self.id) {
            let published: Vec<u16> = port.publish.iter().map(|one| one.port).collect();
            let as_requested = published.iter().copied().collect();
            hold!(
                self.world,
                fields.published == as_requested,
                every_request_ends,
                "{name} has the published ports {published:?}, and was to have {:?}",
                fields.published
            );
        }
        Ok(())
    }
}
