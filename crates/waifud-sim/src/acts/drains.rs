//! Drains of nodes.

use serde_json::{Value, json};
use waifud_kit::sync::lock;

use super::nodes::one;
use super::requests::request;
use crate::random::Random;
use crate::world::{Node, Promise, World};

/// Whether a node can be drained now: no instance is in a state that no request of a user leads to.
pub(super) fn is_possible(world: &World, living: &[Promise]) -> bool {
    let is_usual = |promise: &Promise| promise.release.is_none() && !promise.was_released;
    !world.is_undecided()
        && living.iter().all(is_usual)
        && world.members().any(|node| !is_draining(world, node))
}

fn is_draining(world: &World, node: &Node) -> bool {
    lock(&world.drains).contains(&node.name)
}

/// An operator drains a node: any instance on it may be moved from now on.
pub(super) async fn begin(world: &World, random: &Random) -> bool {
    let fits = |node: &Node| node.is_member() && !is_draining(world, node);
    let Some(node) = one(world, random, fits) else {
        return false;
    };
    let path = format!("/v1/nodes/{}/drain", node.name);
    let body = json!({"new_address": random.percent(50)});
    let answer = request(world, "POST", &path, &body).await;
    let refused = answer.as_ref().is_some_and(|answer| !answer.is_success());
    if refused {
        return false;
    }
    // Without an answer, it may have begun.
    if answer.is_some() {
        lock(&world.cordons).insert(node.name.clone(), true);
    } else {
        lock(&world.cordons).remove(&node.name);
    }
    lock(&world.drains).insert(node.name.clone());
    world.forget_backup();
    for (id, _) in world.promises.living() {
        world.promises.change(id, Promise::may_be_moved);
    }
    answer.is_some()
}

/// An operator ends a drain, which may be over already.
pub(super) async fn cancel(world: &World, random: &Random) -> bool {
    let Some(node) = one(world, random, |node| is_draining(world, node)) else {
        return false;
    };
    cancel_on(world, &node.name).await
}

async fn cancel_on(world: &World, node: &str) -> bool {
    let path = format!("/v1/nodes/{node}/drain");
    let answer = request(world, "DELETE", &path, &Value::Null).await;
    if answer.is_some() {
        lock(&world.drains).remove(node);
    }
    answer.is_some_and(|answer| answer.is_success())
}

/// An operator ends all drains.
pub(super) async fn cancel_all(world: &World) {
    let all = lock(&world.drains).clone();
    for node in all {
        cancel_on(world, &node).await;
    }
}
