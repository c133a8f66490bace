//! The contents of disks survive, whatever happens during a move.

use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use super::snapshot::Snapshot;
use super::{Violation, hold};
use crate::world::World;

/// A guest never runs on a disk that is older than what it wrote last, or on an empty one.
pub(super) fn a_guest_finds_what_it_wrote_to_its_disk(
    world: &World,
    nodes: &[Snapshot<'_>],
) -> Result<(), Violation> {
    for at in nodes {
        for domain in at.running() {
            let Some(last) = world.written.last(domain.id) else {
                continue;
            };
            let found = at.mark(domain.id);
            hold!(
                world,
                found == Some(last),
                a_guest_finds_what_it_wrote_to_its_disk,
                "{} runs on {} with a disk that contains {found:?}, and it wrote {last} last",
                domain.id,
                at.node.name
            );
        }
    }
    Ok(())
}

/// What a guest wrote last is on a disk of some node until a user deletes the instance.
pub(super) fn what_guests_wrote_survives(
    world: &World,
    nodes: &[Snapshot<'_>],
) -> Result<(), Violation> {
    world.promises.try_each(|id, promise| {
        if promise.deleted || promise.may_vanish {
            return Ok(());
        }
        let Some(last) = world.written.last(id) else {
            return Ok(());
        };
        let mut found = nodes.iter().filter_map(|at| at.mark(id));
        // A machine that was removed keeps its disks.
        let is_abandoned =
            || promise.lost && world.nodes.iter().any(|at| at.mark(id) == Some(last));
        hold!(
            world,
            found.any(|mark| mark == last) || is_abandoned(),
            what_guests_wrote_survives,
            "{} wrote {last}, and no disk contains it: {:?}",
            promise.name,
            nodes
                .iter()
                .filter_map(|at| at.mark(id).map(|mark| (&at.node.name, mark)))
                .collect::<Vec<_>>()
        );
        Ok(())
    })
}

/// Whether another node has a copy of the instance with everything that its guest wrote, and has recorded it. Only then a
/// node may destroy its own copy although no user deleted the instance: after a move, or after a canceled one.
pub(super) fn has_another_copy(
    world: &World,
    nodes: &[Snapshot<'_>],
    node: &str,
    id: InstanceId,
) -> bool {
    let written = world.written.last(id).unwrap_or(0);
    let is_complete = |mark: u64| mark == written || world.written.is_unsettled(id);
    let mut others = nodes.iter().filter(|at| at.node.name != node);
    others.any(|at| at.mark(id).is_some_and(is_complete) && at.node.has_recorded_copy(id))
}

/// Copies that waifud has given up with a node stay as they are until an operator orders their deletion.
pub(super) fn copies_that_were_given_up_stay(world: &World) -> Result<(), Violation> {
    for (name, id, ordered) in world.abandoned.all() {
        let mut nodes = world.nodes.iter();
        let Some(node) = nodes.find(|node| node.name == name) else {
            continue;
        };
        let now = node.volumes();
        let has_disk = now.keys().any(|volume| volume.instance == id);
        let before = lock(&world.observed).had_disk(&name, id, has_disk);
        let deleted = world.promises.of(id).is_none_or(|promise| promise.deleted);
        hold!(
            world,
            has_disk || !before || ordered || deleted,
            copies_that_were_given_up_stay,
            "{name} destroyed the disk of {id}, which was given up with the node"
        );
    }
    Ok(())
}
