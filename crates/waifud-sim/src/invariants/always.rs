//! What holds at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use waifud_kit::sync::lock;
use waifud_types::{InstanceId, InstanceState, MoveState, OwnershipRole, VolumeId};

use super::disks::{
    a_guest_finds_what_it_wrote_to_its_disk, copies_that_were_given_up_stay, has_another_copy,
    what_guests_wrote_survives,
};
use super::documents::documents_are_served_to_the_owner_of_the_address_only;
use super::network::{an_address_belongs_to_one_instance, an_address_is_served_once};
use super::snapshot::{Database, Snapshot};
use super::unknown::{is_unknown, may_share};
use super::{Violation, hold};
use crate::errors;
use crate::world::{Fields, World};

/// Checks all of them.
pub async fn always(world: &World) -> Result<(), Violation> {
    lock(&world.observed).checks += 1;
    no_error_is_hidden(world)?;
    let nodes = Snapshot::of_all(world);
    absence_destroys_nothing(world, &nodes)?;
    nothing_stops_a_guest_without_a_request(world, &nodes)?;
    an_instance_never_runs_on_two_nodes(world, &nodes)?;
    an_address_is_served_once(world, &nodes)?;
    a_guest_finds_what_it_wrote_to_its_disk(world, &nodes)?;
    what_guests_wrote_survives(world, &nodes)?;
    copies_that_were_given_up_stay(world)?;
    // What follows compares with the database, which nothing changes while waifud is away.
    let Some(database) = Database::read(world).await? else {
        return Ok(());
    };
    acknowledged_changes_survive(world, &database)?;
    an_instance_stays_in_the_database_until_its_node_confirms(world, &nodes, &database)?;
    an_address_belongs_to_one_instance(world, &database)?;
    an_address_stays_reserved_until_its_node_confirms(world, &nodes, &database)?;
    documents_are_served_to_the_owner_of_the_address_only(world, &nodes, &database)?;
    a_release_is_recorded_by_the_node_before_waifud_counts_it(world, &nodes, &database)?;
    note_completed_requests(world, &nodes, &database);
    Ok(())
}

/// No daemon logs an error, and no task panics: no fault of a run is a reason for either.
fn no_error_is_hidden(world: &World) -> Result<(), Violation> {
    let error = errors::take();
    hold!(world, error.is_none(), no_error_is_hidden, "{error:?}");
    Ok(())
}

/// An acknowledged change survives a crash of any daemon, or of a node, at any instant.
fn acknowledged_changes_survive(world: &World, database: &Database) -> Result<(), Violation> {
    for row in database.instances.values().filter(|row| !row.deleting) {
        hold!(
            world,
            !world
                .promises
                .is(row.id, |promise| promise.deleted && !promise.unmanaged),
            acknowledged_changes_survive,
            "{} was deleted, and is back",
            row.name
        );
    }
    // There are many that were deleted, so they are not cloned.
    world.promises.try_each(|id, promise| {
        if !promise.is_managed() {
            return Ok(());
        }
        let name = &promise.name;
        let row = database.instances.get(&id);
        hold!(
            world,
            row.is_some(),
            acknowledged_changes_survive,
            "{name} was created, and does not exist"
        );
        let Some(row) = row else {
            return Ok(());
        };
        let fields = Fields::of(row);
        let kept = row.generation.0 >= promise.generation
            && fields == promise.fields
            && row.name.as_str() == *name
            && !row.deleting;
        hold!(
            world,
            kept,
            acknowledged_changes_survive,
            "{} has generation {}, deleting {}, {fields:?}; promised was {promise:?}",
            row.name,
            row.generation.0,
            row.deleting
        );
        Ok(())
    })
}

/// Absence is not deletion: nothing of an instance disappears from a node before its deletion was requested, or before it was
/// moved, and nothing is replaced by a new one.
fn absence_destroys_nothing(world: &World, nodes: &[Snapshot<'_>]) -> Result<(), Violation> {
    let ordered = |id, node: &str| {
        world
            .promises
            .is(id, |promise| promise.deleted || promise.may_vanish)
            || (world.promises.is(id, |promise| promise.moved)
                && has_another_copy(world, nodes, node, id))
    };
    for at in nodes {
        let node = &at.node.name;
        let volumes = at.volumes.iter();
        let volumes: BTreeMap<VolumeId, u64> = volumes
            .map(|(id, facts)| (id.clone(), facts.number))
            .collect();
        let domains = at.domains.iter();
        let domains: BTreeMap<InstanceId, u64> =
            domains.map(|(id, facts)| (*id, facts.number)).collect();
        let mut observed = lock(&world.observed);
        let volumes_before = observed.volumes.remove(node);
        let domains_before = observed.domains.remove(node);
        drop(observed);
        for (volume, number) in volumes_before.iter().flatten() {
            hold!(
                world,
                volumes.get(volume) == Some(number) || ordered(volume.instance, node),
                absence_destroys_nothing,
                "{node} destroyed the volume {volume}, but no user deleted the instance, and no other node has a copy"
            );
        }
        for (id, number) in domains_before.iter().flatten() {
            hold!(
                world,
                domains.get(id) == Some(number) || ordered(*id, node),
                absence_destroys_nothing,
                "{node} removed the domain of {id}, but no user deleted the instance, and no other node has a copy"
            );
        }
        let mut observed = lock(&world.observed);
        observed.volumes.insert(node.clone(), volumes);
        observed.domains.insert(node.clone(), domains);
    }
    Ok(())
}

/// Losing waifud or a connection never affects a running guest, and neither does a restart of an agent.
fn nothing_stops_a_guest_without_a_request(
    world: &World,
    nodes: &[Snapshot<'_>],
) -> Result<(), Violation> {
    for at in nodes {
        let node = &at.node.name;
        let running = at.running();
        let running: BTreeMap<InstanceId, (u64, u64)> = running
            .map(|domain| (domain.id, (domain.number, domain.starts)))
            .collect();
        let before = lock(&world.observed).running.remove(node);
        for (id, start) in before.iter().flatten() {
            let now = running.get(id);
            let may_stop = || {
                let promise = world.promises.of(*id);
                promise.is_none_or(|promise| promise.may_stop)
            };
            hold!(
                world,
                now == Some(start) || may_stop(),
                nothing_stops_a_guest_without_a_request,
                "{node} {} the guest of {:?}",
                if now.is_some() {
                    "restarted"
                } else {
                    "stopped"
                },
                world.promises.of(*id)
            );
        }
        lock(&world.observed).running.insert(node.clone(), running);
    }
    Ok(())
}

/// Never two running copies of an instance.
fn an_instance_never_runs_on_two_nodes(
    world: &World,
    nodes: &[Snapshot<'_>],
) -> Result<(), Violation> {
    let mut on: BTreeMap<InstanceId, &str> = BTreeMap::new();
    for at in nodes {
        for domain in at.running() {
            let other = on.insert(domain.id, &at.node.name);
            hold!(
                world,
                other.is_none(),
                an_instance_never_runs_on_two_nodes,
                "{} runs on {other:?} and on {}",
                domain.id,
                at.node.name
            );
        }
    }
    Ok(())
}

/// waifud forgets an instance only when nothing of it is left on any node, except copies that were given up with a machine: one
/// that was being deleted there may be confirmed by the other node of its move after the machine was removed.
fn an_instance_stays_in_the_database_until_its_node_confirms(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
) -> Result<(), Violation> {
    for at in nodes {
        let volumes = at.volumes.keys().map(|volume| &volume.instance);
        for id in volumes.chain(at.domains.keys()) {
            hold!(
                world,
                database.instances.contains_key(id)
                    || is_unknown(world, *id)
                    || world.has_given_up(at.node, *id),
                an_instance_stays_in_the_database_until_its_node_confirms,
                "waifud has forgotten {id}, of which something is on {}",
                at.node.name
            );
        }
    }
    Ok(())
}

/// Never one address with two owners: it stays reserved for an instance while anything of the instance is on a node.
fn an_address_stays_reserved_until_its_node_confirms(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
) -> Result<(), Violation> {
    let addresses = lock(&world.observed).addresses.clone();
    for at in nodes {
        let mut used: BTreeSet<(InstanceId, Ipv4Addr)> = BTreeSet::new();
        for volume in at.volumes.keys() {
            // The address of a lost instance was one of the node that was removed; this disk is what an earlier move has left.
            if world.promises.is(volume.instance, |promise| promise.lost) {
                continue;
            }
            let address = addresses.get(&volume.instance);
            used.extend(address.map(|address| (volume.instance, *address)));
        }
        used.extend(at.ports.iter().map(|port| (port.instance, port.address)));
        for (id, address) in used {
            let owner = database.owners.get(&address);
            hold!(
                world,
                owner == Some(&id) || may_share(world, id, owner.copied()),
                an_address_stays_reserved_until_its_node_confirms,
                "{} uses {address} for {id}, and waifud has reserved it for {owner:?}",
                at.node.name
            );
        }
    }
    Ok(())
}

/// The first half of a handover: a release counts at waifud only after the node has recorded it durably, in that epoch. Once
/// waifud counts the guest as off, nothing of it runs or is served on the node.
fn a_release_is_recorded_by_the_node_before_waifud_counts_it(
    world: &World,
    nodes: &[Snapshot<'_>],
    database: &Database,
) -> Result<(), Violation> {
    for (id, part) in &database.parts {
        if part.role != OwnershipRole::Released {
            continue;
        }
        let deleting = database.instances.get(id).is_none_or(|row| row.deleting);
        let promise = world.promises.of(*id);
        // Until its node has reported again, a restored database may contain a release that was withdrawn since.
        let outdated = promise.is_none_or(|promise| promise.voided && promise.was_released);
        // The node is told to delete what it has released, and reports that later.
        let row = database.instances.get(id);
        let removing = row.and_then(|row| row.moving.as_ref());
        let removing = removing.is_some_and(|moving| moving.state == MoveState::Removing);
        if deleting || outdated || removing {
            continue;
        }
        let mut of_part = nodes.iter();
        let at = of_part.find(|at| at.node.id() == Some(part.node));
        let recorded = at.and_then(|at| at.node.recorded_release(*id));
        hold!(
            world,
            recorded >= Some(part.epoch),
            a_release_is_recorded_by_the_node_before_waifud_counts_it,
            "waifud counts {id} as released in epoch {}, and its node has recorded {recorded:?}",
            part.epoch
        );
        if part.off {
            let served = at.and_then(|at| at.serves(*id));
            hold!(
                world,
                served.is_none(),
                a_released_guest_that_is_off_stays_off,
                "waifud counts the guest of {id} as off, and on its node {served:?}"
            );
        }
    }
    Ok(())
}

/// A request is complete, and does not excuse a stopped guest any more, once its node has reported its generation and the
/// guest runs.
fn note_completed_requests(world: &World, nodes: &[Snapshot<'_>], database: &Database) {
    for (id, promise) in world.promises.living() {
        if !promise.may_stop || promise.is_off() || promise.was_released {
            continue;
        }
        let status = database.instances.get(&id).map(|row| &row.status);
        let reported = status.is_some_and(|status| {
            let seen = status.observed_generation;
            status.state == InstanceState::Running
                && seen.is_some_and(|seen| seen.0 >= promise.generation)
        });
        let mut domains = nodes.iter().filter_map(|at| at.domains.get(&id));
        let before = promise.starts_before_reboot;
        let started = domains
            .any(|domain| domain.is_active && before.is_none_or(|before| domain.starts > before));
        if reported && started {
            world
                .promises
                .change(id, |promise| promise.may_stop = false);
        }
    }
}
