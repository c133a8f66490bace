//! What holds at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use waifud_kit::sync::lock;
use waifud_store::{InstanceFilter, InstanceRow, StoreError};
use waifud_types::ownership::Part;
use waifud_types::{InstanceId, OwnershipRole, VolumeId};

use super::{Violation, hold};
use crate::world::{Node, World};

/// The rows of waifud's database that the invariants are about.
struct Database {
    instances: BTreeMap<InstanceId, InstanceRow>,
    parts: Vec<(InstanceId, Part)>,
    owners: BTreeMap<Ipv4Addr, InstanceId>,
}

/// Checks all of them.
pub async fn always(world: &World) -> Result<(), Violation> {
    lock(&world.observed).checks += 1;
    absence_destroys_nothing(world).await?;
    nothing_stops_a_guest_without_a_request(world).await?;
    an_instance_never_runs_on_two_nodes(world).await?;
    // What follows compares with the database, which nothing changes while waifud is away.
    let Some(database) = database(world).await? else {
        return Ok(());
    };
    acknowledged_changes_survive(world, &database)?;
    an_instance_stays_in_the_database_until_its_node_confirms(world, &database).await?;
    an_address_stays_reserved_until_its_node_confirms(world, &database).await?;
    documents_are_served_to_the_owner_of_the_address_only(world, &database)?;
    a_release_is_recorded_by_the_node_before_waifud_counts_it(world, &database)
}

async fn database(world: &World) -> Result<Option<Database>, Violation> {
    let known: BTreeSet<Ipv4Addr> = {
        let observed = lock(&world.observed);
        observed.addresses.values().copied().collect()
    };
    let read = world.waifud.read(move |tx| {
        let all = tx.instances(&InstanceFilter::default(), "", 10_000)?;
        let mut parts = Vec::new();
        let mut addresses = known;
        for row in &all {
            let of_row = tx.ownership(row.id)?.into_iter();
            parts.extend(of_row.map(|part| (row.id, part)));
            addresses.extend(row.spec.nics.iter().filter_map(|nic| nic.address));
        }
        let mut owners = BTreeMap::new();
        for address in addresses {
            if let Some(owner) = tx.address_owner(address)? {
                owners.insert(address, owner);
            }
        }
        Ok::<_, StoreError>(Database {
            instances: all.into_iter().map(|row| (row.id, row)).collect(),
            parts,
            owners,
        })
    });
    let database = match read.await {
        None => return Ok(None),
        Some(Ok(database)) => database,
        Some(Err(error)) => {
            return Err(Violation {
                invariant: "no_request_ends_with_an_internal_error",
                what: format!("the database cannot be read: {error}"),
            });
        }
    };
    let mut observed = lock(&world.observed);
    for row in database.instances.values() {
        for address in row.spec.nics.iter().filter_map(|nic| nic.address) {
            observed.addresses.insert(row.id, address);
        }
    }
    drop(observed);
    Ok(Some(database))
}

/// An acknowledged change survives a crash of any daemon, or of a node, at any instant.
fn acknowledged_changes_survive(world: &World, database: &Database) -> Result<(), Violation> {
    for (id, promise) in world.promises.all() {
        let name = &promise.name;
        let row = database.instances.get(&id);
        if promise.deleted {
            hold!(
                row.is_none_or(|row| row.deleting),
                acknowledged_changes_survive,
                "{name} was deleted, and is back"
            );
            continue;
        }
        hold!(
            row.is_some(),
            acknowledged_changes_survive,
            "{name} was created, and does not exist"
        );
        let Some(row) = row else { continue };
        let kept = row.generation.0 >= promise.generation
            && row.spec.run == promise.run
            && row.spec.cpus == promise.cpus
            && !row.deleting;
        hold!(
            kept,
            acknowledged_changes_survive,
            "{name} has generation {}, run {}, {} CPUs, deleting {}; promised was {promise:?}",
            row.generation.0,
            row.spec.run,
            row.spec.cpus,
            row.deleting
        );
    }
    Ok(())
}

/// Absence is not deletion: nothing of an instance disappears from a node before its deletion was requested.
async fn absence_destroys_nothing(world: &World) -> Result<(), Violation> {
    let ordered = |id| world.promises.of(id).is_some_and(|promise| promise.deleted);
    for node in &world.nodes {
        let volumes = node.volumes().await;
        let domains: BTreeSet<InstanceId> = node.domains().await.iter().map(|one| one.id).collect();
        let mut observed = lock(&world.observed);
        let before = observed.volumes.insert(node.name.clone(), volumes.clone());
        let domains_before = observed.domains.insert(node.name.clone(), domains.clone());
        drop(observed);
        let lost = before
            .iter()
            .flatten()
            .find(|volume: &&VolumeId| !volumes.contains(*volume) && !ordered(volume.instance));
        hold!(
            lost.is_none(),
            absence_destroys_nothing,
            "{} destroyed the volume {lost:?}, but no user deleted the instance",
            node.name
        );
        let lost = domains_before.iter().flatten();
        let lost = lost.filter(|id| !domains.contains(*id) && !ordered(**id));
        let lost: Vec<_> = lost.collect();
        hold!(
            lost.is_empty(),
            absence_destroys_nothing,
            "{} removed the domain {lost:?}, but no user deleted the instance",
            node.name
        );
    }
    Ok(())
}

/// Losing waifud or a connection never affects a running guest, and neither does a restart of an agent.
async fn nothing_stops_a_guest_without_a_request(world: &World) -> Result<(), Violation> {
    for node in &world.nodes {
        let running = node.running().await;
        let before = {
            let mut observed = lock(&world.observed);
            observed.running.insert(node.name.clone(), running.clone())
        };
        for id in before.iter().flatten().filter(|id| !running.contains(*id)) {
            let promise = world.promises.of(*id);
            hold!(
                promise.as_ref().is_none_or(|promise| promise.may_stop),
                nothing_stops_a_guest_without_a_request,
                "{} stopped {promise:?}",
                node.name
            );
        }
    }
    Ok(())
}

/// Never two running copies of an instance.
async fn an_instance_never_runs_on_two_nodes(world: &World) -> Result<(), Violation> {
    let mut on: BTreeMap<InstanceId, &Node> = BTreeMap::new();
    for node in &world.nodes {
        for id in node.running().await {
            let other = on.insert(id, node).map(|other| &other.name);
            hold!(
                other.is_none(),
                an_instance_never_runs_on_two_nodes,
                "{id} runs on {other:?} and on {}",
                node.name
            );
        }
    }
    Ok(())
}

/// waifud forgets an instance only when nothing of it is left on any node.
async fn an_instance_stays_in_the_database_until_its_node_confirms(
    world: &World,
    database: &Database,
) -> Result<(), Violation> {
    for node in &world.nodes {
        let volumes = node.volumes().await.into_iter();
        let domains = node.domains().await.into_iter();
        let ids = volumes.map(|volume| volume.instance);
        for id in ids.chain(domains.map(|domain| domain.id)) {
            hold!(
                database.instances.contains_key(&id),
                an_instance_stays_in_the_database_until_its_node_confirms,
                "waifud has forgotten {id}, of which something is on {}",
                node.name
            );
        }
    }
    Ok(())
}

/// Never one address with two owners: it stays reserved for an instance while anything of the instance is on a node.
async fn an_address_stays_reserved_until_its_node_confirms(
    world: &World,
    database: &Database,
) -> Result<(), Violation> {
    let addresses = lock(&world.observed).addresses.clone();
    for node in &world.nodes {
        let mut used: BTreeSet<(InstanceId, Ipv4Addr)> = BTreeSet::new();
        for volume in node.volumes().await {
            let address = addresses.get(&volume.instance);
            used.extend(address.map(|address| (volume.instance, *address)));
        }
        let ports = node.ports();
        used.extend(ports.iter().map(|port| (port.instance, port.address)));
        for (id, address) in used {
            let owner = database.owners.get(&address);
            hold!(
                owner == Some(&id),
                an_address_stays_reserved_until_its_node_confirms,
                "{} uses {address} for {id}, and waifud has reserved it for {owner:?}",
                node.name
            );
        }
    }
    Ok(())
}

/// A guest reads its own documents only: metadatad serves an instance's own documents, at an address that waifud
/// has reserved for this instance.
fn documents_are_served_to_the_owner_of_the_address_only(
    world: &World,
    database: &Database,
) -> Result<(), Violation> {
    for node in &world.nodes {
        for (id, served) in node.metadata.held() {
            let owner = database.owners.get(&served.address);
            hold!(
                owner == Some(&id),
                documents_are_served_to_the_owner_of_the_address_only,
                "{} serves the documents of {id} at {}, which waifud has reserved for {owner:?}",
                node.name,
                served.address
            );
            let bundle = served.bundle.digest;
            let sent = lock(&world.observed).documents.contains(&(id, bundle));
            hold!(
                sent,
                documents_are_served_to_the_owner_of_the_address_only,
                "{} serves {id} the documents {bundle}, which waifud never sent for it",
                node.name
            );
        }
    }
    Ok(())
}

/// The first half of a handover: a release counts at waifud only after the node has recorded it durably, in that epoch.
fn a_release_is_recorded_by_the_node_before_waifud_counts_it(
    world: &World,
    database: &Database,
) -> Result<(), Violation> {
    for (id, part) in &database.parts {
        let deleting = database.instances.get(id).is_none_or(|row| row.deleting);
        if part.role != OwnershipRole::Released || deleting {
            continue;
        }
        let node = world.nodes.iter().find(|node| node.id() == Some(part.node));
        let recorded = node.and_then(|node| node.recorded_release(*id));
        hold!(
            recorded >= Some(part.epoch),
            a_release_is_recorded_by_the_node_before_waifud_counts_it,
            "waifud counts {id} as released in epoch {}, and its node has recorded {recorded:?}",
            part.epoch
        );
    }
    Ok(())
}
