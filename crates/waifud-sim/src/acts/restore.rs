//! Backups of waifud's database, restores of older ones, and what operators do afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use waifud_kit::sync::lock;
use waifud_store::{InstanceFilter, ReadTx};
use waifud_types::InstanceId;

use super::requests::request;
use crate::random::Random;
use crate::world::{Backup, Fields, Node, Promise, World};

/// Whether a backup contains nothing that is changing its owner.
pub(super) fn can_back_up(world: &World) -> bool {
    let all = world.promises.all();
    lock(&world.drains).is_empty()
        && lock(&world.unanswered).is_empty()
        && all.values().all(|promise| !promise.moved)
}

/// Copies waifud's database, with what users were promised until now.
///
/// Not before waifud has given each node its subnet: after a restore of an older backup, another node may get the subnet.
pub(super) async fn back_up(world: &World) -> Result<bool> {
    for node in world.members() {
        let Some(id) = node.id() else {
            return Ok(false);
        };
        let row = world.waifud.read(move |tx| tx.node(id)).await;
        if !matches!(row, Some(Ok(Some(_)))) {
            return Ok(false);
        }
    }
    // An instance that waits for a node may get one after the backup. A restored waifud would place it again, perhaps before the
    // node that has it has reported it.
    let rows = |tx: ReadTx<'_>| tx.instances(&InstanceFilter::default(), "", 10_000);
    let Some(Ok(rows)) = world.waifud.read(rows).await else {
        return Ok(false);
    };
    if rows.iter().any(|row| row.node.is_none()) {
        return Ok(false);
    }
    world.waifud.back_up()?;
    let mut addresses = BTreeMap::new();
    for row in &rows {
        let of_row = row.spec.nics.iter().filter_map(|nic| nic.address);
        addresses.extend(of_row.map(|address| (address, (row.id, row.node))));
    }
    *lock(&world.backup) = Some(Backup {
        promises: world.promises.all(),
        cordons: lock(&world.cordons).clone(),
        addresses,
    });
    world.history.act("waifud's database is backed up");
    Ok(true)
}

/// Replaces waifud's database with the backup. Promises that were made since are void: waifud does not know of them. But
/// nothing may be destroyed that a user has not deleted.
pub(super) async fn restore(world: &Arc<World>) -> Result<bool> {
    let Some(backup) = lock(&world.backup).clone() else {
        return Ok(false);
    };
    if gives_an_address_to_two_nodes(world, &backup) {
        world.forget_backup();
        return Ok(false);
    }
    world
        .history
        .act("fault: waifud's database is restored from the backup");
    world.waifud.restore().await?;
    for (id, now) in world.promises.all() {
        if now.deleted {
            // If it is in the backup, it returns.
            world.written.unsettle(id);
        }
        let promise = match backup.promises.get(&id) {
            // Created since: waifud does not know it.
            None if !now.deleted => Promise {
                unmanaged: true,
                release: None,
                ..now
            },
            None => Promise {
                forgotten: true,
                ..now
            },
            Some(then) => Promise {
                may_stop: true,
                was_released: true,
                // No move needs it, so the node gets the instance back.
                release: None,
                voided: true,
                // A node that does not know of the restore yet destroys what waifud ordered it to destroy.
                may_vanish: now.deleted || now.may_vanish,
                starts_before_reboot: None,
                ..then.clone()
            },
        };
        world.promises.set(id, promise);
    }
    *lock(&world.cordons) = backup.cordons;
    let names = world.members().map(|node| node.name.clone());
    *lock(&world.unconfirmed) = names.collect();
    world.set_undecided();
    Ok(true)
}

/// Whether an instance that was deleted after the backup had an address that an instance of another node has since (ADR 19). Two
/// instances of one node are told apart by the node.
fn gives_an_address_to_two_nodes(world: &World, backup: &Backup) -> bool {
    let now = lock(&world.observed).addresses.clone();
    let database = lock(&world.database).clone();
    let placed = |id: &InstanceId| database.as_ref()?.1.instances.get(id)?.node;
    now.iter().any(|(id, address)| {
        let Some((before, at)) = backup.addresses.get(address) else {
            return false;
        };
        let elsewhere = |node: &Node| {
            let has = placed(id).is_some_and(|on| node.id() == Some(on)) || node.has(*id);
            node.id() != *at && has
        };
        before != id && world.nodes.iter().any(elsewhere)
    })
}

/// Whether an operator has something to decide.
pub(super) fn has_unmanaged(world: &World) -> bool {
    let all = world.promises.all();
    all.values().any(|promise| promise.unmanaged)
}

/// An operator confirms the restored database for a node.
pub(super) async fn confirm(world: &World, random: &Random) -> bool {
    let unconfirmed: Vec<String> = lock(&world.unconfirmed).iter().cloned().collect();
    let Some(node) = random.pick(&unconfirmed) else {
        return false;
    };
    confirm_node(world, node).await
}

async fn confirm_node(world: &World, node: &str) -> bool {
    let path = format!("/v1/nodes/{node}/confirm");
    let answer = request(world, "POST", &path, &Value::Null).await;
    let confirmed = answer.is_some_and(|answer| answer.is_success());
    if confirmed {
        lock(&world.unconfirmed).remove(node);
    }
    confirmed
}

/// An operator adopts an unmanaged instance, or deletes it.
pub(super) async fn resolve_one(world: &World, random: &Random, adopt: bool) -> bool {
    let unmanaged: Vec<InstanceId> = {
        let all = world.promises.all().into_iter();
        all.filter(|(_, promise)| promise.unmanaged)
            .map(|(id, _)| id)
            .collect()
    };
    let Some(id) = random.pick(&unmanaged) else {
        return false;
    };
    resolve(world, *id, adopt).await
}

/// The node that has something of an instance.
fn node_of(world: &World, id: InstanceId) -> Option<&Node> {
    let has = |node: &&Node| {
        let has_domain = || node.domains().iter().any(|domain| domain.id == id);
        !world.has_given_up(node, id) && (node.mark(id).is_some() || has_domain())
    };
    world.nodes.iter().find(has)
}

async fn resolve(world: &World, id: InstanceId, adopt: bool) -> bool {
    // The order to create it may still be on its way to its node.
    let Some(node) = node_of(world, id) else {
        return false;
    };
    let path = format!("/v1/nodes/{}/unmanaged/{id}", node.name);
    if take_over(world, id).await {
        // An earlier request was not answered.
        return true;
    }
    if !adopt {
        // Even without an answer it may happen.
        world
            .promises
            .change(id, |promise| promise.may_vanish = true);
        let answer = request(world, "DELETE", &path, &Value::Null).await;
        let deleted = answer.is_some_and(|answer| answer.is_success());
        if deleted {
            world.promises.change(id, |promise| {
                promise.unmanaged = false;
                promise.deleted = true;
                promise.forgotten = true;
                promise.may_stop = true;
            });
        }
        return deleted;
    }
    // If its name is taken by now, it could be adopted under another one. But its domain keeps the name until its next start,
    // and the other instance waits for that.
    let path = format!("{path}/adopt");
    let answer = request(world, "POST", &path, &json!({"name": null})).await;
    if !answer.is_some_and(|answer| answer.is_success()) {
        return false;
    }
    take_over(world, id).await
}

/// What waifud has for an adopted instance is promised from now on. Returns whether it has adopted it.
pub(super) async fn take_over(world: &World, id: InstanceId) -> bool {
    let row = world.waifud.read(move |tx| tx.instance(id)).await;
    let Some(Ok(Some(row))) = row else {
        return false;
    };
    let may_move = !lock(&world.drains).is_empty();
    world.promises.change(id, |promise| {
        promise.moved |= may_move;
        promise.name = row.name.to_string();
        promise.generation = row.generation.0;
        promise.fields = Fields::of(&row);
        promise.release = None;
        promise.unmanaged = false;
        promise.voided = true;
        promise.may_stop = true;
        promise.was_released = true;
        promise.lost = false;
        promise.starts_before_reboot = None;
    });
    true
}

/// The operator decides everything that is undecided: half of the unmanaged instances are adopted, and every node is confirmed.
pub(super) async fn decide(world: &World) {
    for (id, promise) in world.promises.all() {
        if promise.unmanaged && world.nodes.iter().all(|node| !node.has(id)) {
            // Nothing had been created yet, and nothing is left of the promise.
            world.promises.forget(id);
        } else if promise.unmanaged {
            let adopt = id
                .to_string()
                .bytes()
                .last()
                .is_some_and(|last| last % 2 == 0);
            // Refused until its node has reported it.
            let _later = resolve(world, id, adopt).await || resolve(world, id, false).await;
        }
    }
    let unconfirmed: Vec<String> = lock(&world.unconfirmed).iter().cloned().collect();
    for node in unconfirmed {
        confirm_node(world, &node).await;
    }
    delete_forgotten(world).await;
}

/// Deletes again what a user had deleted, if the restored database does not contain it, so that its node was never told.
async fn delete_forgotten(world: &World) {
    if !world.was_restored() {
        return;
    }
    for (id, promise) in world.promises.all() {
        let Some(node) = Some(id)
            .filter(|_| promise.deleted)
            .and_then(|id| node_of(world, id))
        else {
            continue;
        };
        let row = world.waifud.read(move |tx| tx.instance(id)).await;
        if matches!(row, Some(Ok(None))) {
            let path = format!("/v1/nodes/{}/unmanaged/{id}", node.name);
            // Refused until its node has reported it.
            request(world, "DELETE", &path, &Value::Null).await;
        }
    }
}
