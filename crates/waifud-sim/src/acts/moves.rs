//! Moves of instances to other nodes, and what guests write to the disks that are moved.

use serde_json::{Value, json};

use super::requests::{any, request};
use crate::random::Random;
use crate::world::{Promise, Unanswered, World};

/// A user moves an instance to a node, or to any other one.
pub(super) async fn begin(world: &World, random: &Random) -> bool {
    let fits = |promise: &Promise| promise.release.is_none();
    let Some((id, promise)) = any(world, random, fits) else {
        return false;
    };
    // A release before the node has made the disks, which no request of a user orders, looks like a stop. A move would then wait
    // for disks that do not exist.
    let has_disk = || world.nodes.iter().any(|node| node.mark(id).is_some());
    if promise.was_released && !has_disk() {
        return false;
    }
    let to = random.pick(&world.nodes).filter(|_| random.percent(60));
    let to = to.map(|node| node.name.as_str());
    // Otherwise it keeps the one that it has.
    let new_address = random.percent(50);
    let path = format!("/v1/instances/{}/move", promise.name);
    let body = json!({"to": to, "new_address": new_address});
    let mut after = promise;
    after.may_be_moved();
    let Some(answer) = request(world, "POST", &path, &body).await else {
        world.forget_backup();
        world.remember_unanswered(Unanswered::Change(id, after));
        return false;
    };
    if answer.is_success() {
        world.forget_backup();
        world.promises.set(id, after);
    }
    answer.is_success()
}

/// A user cancels a move, which may be over already.
pub(super) async fn cancel(world: &World, random: &Random) -> bool {
    let Some((_, promise)) = any(world, random, |promise| promise.moved) else {
        return false;
    };
    let path = format!("/v1/instances/{}/move", promise.name);
    let answer = request(world, "DELETE", &path, &Value::Null).await;
    answer.is_some_and(|answer| answer.is_success())
}

/// Every running guest writes to its disk something that was never written before.
pub fn guests_write(world: &World) {
    for node in &world.nodes {
        for domain in node.domains() {
            // A copy that was given up may run, too, but its disk counts only until the instance gets a new one.
            let counts = || {
                let promise = world.promises.of(domain.id);
                promise.is_some_and(|promise| promise.lost)
            };
            if domain.is_active && (!world.has_given_up(node, domain.id) || counts()) {
                world.written.write(node, domain.id);
            }
        }
    }
}
