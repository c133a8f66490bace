//! Nodes join, are cordoned and are removed, and instances that were lost with a machine are created again.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use super::Act;
use super::requests::{any, request};
use super::restore::take_over;
use crate::random::Random;
use crate::world::{Node, Promise, Unanswered, World};

/// Whether an act can happen.
pub(super) fn is_possible(act: Act, world: &World, living: &[Promise]) -> bool {
    let mut members = world.members();
    match act {
        Act::Cordon => members.any(|node| !is_cordoned(world, node)),
        Act::Uncordon => members.any(|node| is_cordoned(world, node)),
        Act::RemoveNode => members.count() > 1,
        Act::RemoveByForce => members.any(may_seem_dead),
        Act::Join => world.nodes.iter().any(may_join),
        Act::LoseDisks => world.nodes.iter().any(may_lose_its_disks),
        Act::Recreate => living.iter().any(|promise| promise.lost),
        _ => false,
    }
}

fn is_cordoned(world: &World, node: &Node) -> bool {
    lock(&world.cordons)
        .get(&node.name)
        .copied()
        .unwrap_or(false)
}

fn may_seem_dead(node: &Node) -> bool {
    !node.is_powered() || node.wire.cuts().any()
}

fn may_join(node: &Node) -> bool {
    !node.is_member() && node.is_powered()
}

fn may_lose_its_disks(node: &Node) -> bool {
    !node.is_member() && !node.is_powered()
}

/// One of the machines that fit.
pub(super) fn one<'a>(
    world: &'a World,
    random: &Random,
    fits: impl Fn(&Node) -> bool,
) -> Option<&'a Node> {
    let fitting: Vec<&Node> = world.nodes.iter().filter(|node| fits(node)).collect();
    random.pick(&fitting).copied()
}

/// An operator cordons a node, or uncordons it.
pub(super) async fn cordon(world: &World, random: &Random, cordoned: bool) -> bool {
    let fits = |node: &Node| node.is_member() && is_cordoned(world, node) != cordoned;
    let Some(node) = one(world, random, fits) else {
        return false;
    };
    let path = format!("/v1/nodes/{}", node.name);
    let answer = request(world, "PATCH", &path, &json!({"cordoned": cordoned})).await;
    let Some(answer) = answer else {
        // Either may be true.
        lock(&world.cordons).remove(&node.name);
        return false;
    };
    if answer.is_success() {
        lock(&world.cordons).insert(node.name.clone(), cordoned);
        if !cordoned {
            // That ends a drain, too.
            lock(&world.drains).remove(&node.name);
        }
    }
    answer.is_success()
}

/// An operator removes a node; by force one that has instances and seems to be dead.
pub(super) async fn remove(world: &World, random: &Random, force: bool) -> bool {
    let empty = |node: &Node| node.is_member() && node.volumes().is_empty();
    let node = if force {
        one(world, random, |node| {
            node.is_member() && may_seem_dead(node)
        })
    } else {
        one(world, random, empty).or_else(|| one(world, random, Node::is_member))
    };
    let Some(node) = node else {
        return false;
    };
    let how = if force {
        "?force=true&confirm_off=true"
    } else {
        ""
    };
    world.forget_backup();
    let path = format!("/v1/nodes/{}{how}", node.name);
    let Some(answer) = request(world, "DELETE", &path, &Value::Null).await else {
        world.remember_unanswered(Unanswered::Remove(node.name.clone()));
        return false;
    };
    if answer.is_success() {
        world.note_removal(node).await;
    }
    answer.is_success()
}

/// A machine joins the cluster: for the first time, or again after it was removed.
pub(super) async fn join(world: &Arc<World>, random: &Random) -> Result<bool> {
    let Some(node) = one(world, random, may_join) else {
        return Ok(false);
    };
    world.forget_backup();
    let joined = world.join(node).await?;
    world
        .history
        .act(&format!("{} joins the cluster: {joined}", node.name));
    Ok(joined)
}

/// The disks of a machine that was removed are lost and replaced.
pub(super) async fn lose_disks(world: &World, random: &Random) -> Result<bool> {
    let Some(node) = one(world, random, may_lose_its_disks) else {
        return Ok(false);
    };
    world
        .history
        .act(&format!("fault: {} loses its disks", node.name));
    world.lose_disks(node).await?;
    Ok(true)
}

/// A user gives a lost instance new disks.
pub(super) async fn recreate(world: &World, random: &Random) -> bool {
    let Some((id, promise)) = any(world, random, |promise| promise.lost) else {
        return false;
    };
    world.forget_backup();
    let path = format!("/v1/instances/{}/recreate", promise.name);
    let Some(answer) = request(world, "POST", &path, &json!({"node": null})).await else {
        world.remember_unanswered(Unanswered::Recreate(id));
        return false;
    };
    if answer.is_success() {
        world.note_recreation(id, answer.json()["generation"].as_u64());
    }
    answer.is_success()
}

/// An operator decides about the copies on machines that were removed and have joined again: half of those that have no node are
/// adopted, and the others are deleted.
pub(super) async fn resolve_copies(world: &World) {
    for (name, id, ordered) in world.abandoned.all() {
        let mut members = world.members();
        if !members.any(|node| node.name == name) {
            continue;
        }
        let promise = world.promises.of(id);
        let is_lost = promise.is_some_and(|promise| promise.lost && !promise.deleted);
        let even = |last: u8| last.is_multiple_of(2);
        // An order from before the removal may not have reached the node, so the deletion is ordered again.
        let adopt = !ordered && is_lost && id.to_string().bytes().last().is_some_and(even);
        // Refused until its node has reported it.
        // It cannot be adopted if another node has a newer copy.
        let _later =
            (adopt && adopt_copy(world, &name, id).await) || delete_copy(world, &name, id).await;
    }
}

async fn adopt_copy(world: &World, node: &str, id: InstanceId) -> bool {
    let path = format!("/v1/nodes/{node}/unmanaged/{id}/adopt");
    let answer = request(world, "POST", &path, &json!({"name": null})).await;
    let adopted = answer.is_some_and(|answer| answer.is_success());
    if adopted {
        world.forget_backup();
        world.abandoned.remove(node, id);
        let mut nodes = world.nodes.iter();
        let at = nodes.find(|at| at.name == node);
        if let Some(mark) = at.and_then(|at| at.mark(id)) {
            world.written.set(id, mark);
        }
        take_over(world, id).await;
    }
    adopted
}

async fn delete_copy(world: &World, node: &str, id: InstanceId) -> bool {
    let path = format!("/v1/nodes/{node}/unmanaged/{id}");
    let answer = request(world, "DELETE", &path, &Value::Null).await;
    let ordered = answer.is_some_and(|answer| answer.is_success());
    if ordered {
        world.abandoned.order_deletion(node, id);
        if world.promises.of(id).is_some_and(|promise| promise.lost) {
            world.written.forget(id);
        }
    }
    ordered
}
