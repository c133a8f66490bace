//! What can happen: requests of users, faults, and the end of faults.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use crate::invariants::Violation;
use crate::random::Random;
use crate::world::{Answer, Cuts, Node, Promise, World};

/// Something that happens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Act {
    /// A user creates an instance.
    Create,
    /// A user deletes one.
    Delete,
    /// A user starts one.
    Start,
    /// A user stops one.
    Stop,
    /// A user changes the CPUs or the user-data of one.
    Edit,
    /// A user reboots one.
    Reboot,
    /// waifud orders a node to release an instance.
    Release,
    /// waifud withdraws a release.
    Withdraw,
    /// A wire is cut, in one direction or both.
    CutWire,
    /// A wire is healed.
    HealWire,
    /// waifud is killed.
    KillWaifud,
    /// waifud is started again.
    StartWaifud,
    /// An agent is killed and started again.
    RestartAgent,
    /// A node loses its power.
    CutPower,
    /// A node boots again.
    Boot,
}

impl Act {
    /// Whether it changes what waifud has promised.
    fn is_request(self) -> bool {
        matches!(
            self,
            Self::Create
                | Self::Delete
                | Self::Start
                | Self::Stop
                | Self::Edit
                | Self::Reboot
                | Self::Release
                | Self::Withdraw
        )
    }
}

/// Each act and how often it happens.
const WEIGHTS: &[(Act, u64)] = &[
    (Act::Create, 16),
    (Act::Delete, 12),
    (Act::Start, 8),
    (Act::Stop, 8),
    (Act::Edit, 8),
    (Act::Reboot, 3),
    (Act::Release, 8),
    (Act::Withdraw, 8),
    (Act::CutWire, 6),
    (Act::HealWire, 8),
    (Act::KillWaifud, 6),
    (Act::StartWaifud, 12),
    (Act::RestartAgent, 4),
    (Act::CutPower, 4),
    (Act::Boot, 8),
];

/// The acts that are faults.
pub const FAULTS: &[Act] = &[
    Act::CutWire,
    Act::KillWaifud,
    Act::RestartAgent,
    Act::CutPower,
];

/// The names of instances; a deleted one's name is used again.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// How often each act happened. Acts that had no object are not counted.
pub type Counts = BTreeMap<Act, u64>;

/// One act, chosen by chance. Returns it if it could happen.
pub async fn one(world: &Arc<World>, random: &Random) -> Result<Option<Act>> {
    let act = choose(random);
    // Until the promises are updated.
    world.set_asking(act.is_request());
    let happened = match act {
        Act::Create => create(world, random).await,
        Act::Delete => delete(world, random).await,
        Act::Start => change(world, random, act, &json!({"run": true})).await,
        Act::Stop => {
            let force = random.percent(30);
            let body = json!({"run": false, "force": force});
            change(world, random, act, &body).await
        }
        Act::Edit if random.percent(50) => {
            let cpus = 1 + random.below(2);
            change(world, random, act, &json!({"cpus": cpus})).await
        }
        Act::Edit => {
            let text = format!("#cloud-config\n# {}\n", random.below(1000));
            change(world, random, act, &json!({"user_data": text})).await
        }
        Act::Reboot => change(world, random, act, &json!({"reboot": "clean"})).await,
        Act::Release | Act::Withdraw => release(world, random, act == Act::Withdraw).await,
        Act::CutWire => cut_wire(world, random),
        Act::HealWire => heal_wire(world, random),
        Act::KillWaifud => kill_waifud(world).await,
        Act::StartWaifud => start_waifud(world).await?,
        Act::RestartAgent => restart_agent(world, random).await?,
        Act::CutPower => cut_power(world, random).await?,
        Act::Boot => boot(world, random)?,
    };
    world.set_asking(false);
    Ok(happened.then_some(act))
}

fn choose(random: &Random) -> Act {
    let total = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut left = random.below(total);
    for (act, weight) in WEIGHTS {
        if left < *weight {
            return *act;
        }
        left -= weight;
    }
    Act::Create
}

/// Sends a request of a user. Records it, and a violation if waifud fails.
async fn request(world: &World, method: &str, path: &str, body: &Value) -> Option<Answer> {
    let answer = world.waifud.as_user(method, path, body).await;
    let status = answer
        .as_ref()
        .map_or("no answer".to_owned(), |answer| answer.status.to_string());
    world
        .history
        .act(&format!("user: {method} {path} {body} -> {status}"));
    let answer = answer?;
    if answer.status >= 500 {
        world.violate(Violation {
            invariant: "no_request_ends_with_an_internal_error",
            what: format!(
                "{method} {path}: {} {}",
                answer.status,
                String::from_utf8_lossy(&answer.bytes)
            ),
        });
    }
    Some(answer)
}

async fn create(world: &World, random: &Random) -> bool {
    let Some(name) = random.pick(&NAMES) else {
        return false;
    };
    let run = random.percent(80);
    let cpus = 1 + random.below(2);
    let body = json!({
        "name": name, "template": "debian-12", "cpus": cpus, "memory_bytes": 256 << 20, "run": run,
        "user_data": format!("#cloud-config\n# {name}\n"),
    });
    let Some(answer) = request(world, "POST", "/v1/instances", &body).await else {
        return false;
    };
    if !answer.is_success() {
        return false;
    }
    let created = answer.json();
    let Some(id) = created["id"].as_str().and_then(|id| id.parse().ok()) else {
        return false;
    };
    let promise = Promise {
        name: (*name).to_owned(),
        generation: created["generation"].as_u64().unwrap_or(1),
        run,
        cpus: u32::try_from(cpus).unwrap_or(1),
        deleted: false,
        released: false,
        may_stop: !run,
    };
    world.promises.set(id, promise);
    true
}

/// One of the living instances that fit.
fn any(
    world: &World,
    random: &Random,
    fits: impl Fn(&Promise) -> bool,
) -> Option<(InstanceId, Promise)> {
    let mut living = world.promises.living();
    living.retain(|(_, promise)| fits(promise));
    random.pick(&living).cloned()
}

async fn delete(world: &World, random: &Random) -> bool {
    let Some((id, promise)) = any(world, random, |_| true) else {
        return false;
    };
    let path = format!("/v1/instances/{}", promise.name);
    let answer = request(world, "DELETE", &path, &Value::Null).await;
    if !answer.is_some_and(|answer| answer.is_success()) {
        return false;
    }
    world.promises.change(id, |promise| {
        promise.deleted = true;
        promise.may_stop = true;
    });
    true
}

async fn change(world: &World, random: &Random, act: Act, body: &Value) -> bool {
    let Some((id, promise)) = any(world, random, |_| true) else {
        return false;
    };
    let path = format!("/v1/instances/{}", promise.name);
    let Some(answer) = request(world, "PATCH", &path, body).await else {
        return false;
    };
    if !answer.is_success() {
        return false;
    }
    let generation = answer.json()["generation"].as_u64();
    world.promises.change(id, |promise| {
        promise.generation = generation.unwrap_or(promise.generation);
        if let Some(run) = body["run"].as_bool() {
            promise.run = run;
        }
        if let Some(cpus) = body["cpus"].as_u64() {
            promise.cpus = u32::try_from(cpus).unwrap_or(promise.cpus);
        }
        promise.may_stop |= matches!(act, Act::Stop | Act::Reboot);
    });
    true
}

async fn release(world: &World, random: &Random, withdraw: bool) -> bool {
    let fits = |promise: &Promise| promise.released == withdraw;
    let Some((id, promise)) = any(world, random, fits) else {
        return false;
    };
    let ordered = order_release(world, id, &promise.name, withdraw).await;
    if ordered && withdraw && random.percent(60) {
        // At once, so that the node may not have heard of the withdrawal.
        order_release(world, id, &promise.name, false).await;
    }
    ordered
}

async fn order_release(world: &World, id: InstanceId, name: &str, withdraw: bool) -> bool {
    let status = world.waifud.release(id, withdraw).await;
    let what = if withdraw { "withdraw" } else { "begin" };
    world
        .history
        .act(&format!("{what} the release of {name} -> {status:?}"));
    if status != Some(204) {
        return false;
    }
    world.promises.change(id, |promise| {
        promise.released = !withdraw;
        promise.may_stop = true;
    });
    true
}

fn one_node<'a>(
    world: &'a World,
    random: &Random,
    fits: impl Fn(&Node) -> bool,
) -> Option<&'a Node> {
    let fitting: Vec<&Node> = world.nodes.iter().filter(|node| fits(node)).collect();
    random.pick(&fitting).copied()
}

fn cut_wire(world: &World, random: &Random) -> bool {
    let Some(node) = one_node(world, random, |node| !node.wire.cuts().any()) else {
        return false;
    };
    let (cuts, which) = match random.below(3) {
        0 => ((true, false), "to waifud"),
        1 => ((false, true), "from waifud"),
        _ => ((true, true), "in both directions"),
    };
    world
        .history
        .act(&format!("fault: the wire of {} is cut {which}", node.name));
    node.wire.set_cuts(Cuts {
        to_waifud: cuts.0,
        to_node: cuts.1,
    });
    true
}

fn heal_wire(world: &World, random: &Random) -> bool {
    let Some(node) = one_node(world, random, |node| node.wire.cuts().any()) else {
        return false;
    };
    world
        .history
        .act(&format!("the wire of {} is healed", node.name));
    node.wire.set_cuts(Cuts::default());
    true
}

async fn kill_waifud(world: &World) -> bool {
    if !world.waifud.is_running() {
        return false;
    }
    world.history.act("fault: waifud is killed");
    world.waifud.kill().await;
    true
}

async fn start_waifud(world: &World) -> Result<bool> {
    if world.waifud.is_running() {
        return Ok(false);
    }
    world.history.act("waifud is started again");
    world.waifud.start().await?;
    Ok(true)
}

async fn restart_agent(world: &Arc<World>, random: &Random) -> Result<bool> {
    let Some(node) = one_node(world, random, Node::is_powered) else {
        return Ok(false);
    };
    world
        .history
        .act(&format!("fault: the agent of {} is restarted", node.name));
    node.kill_agent().await;
    tokio::time::sleep(Duration::from_millis(random.below(5000))).await;
    node.start_agent(world)?;
    Ok(true)
}

async fn cut_power(world: &World, random: &Random) -> Result<bool> {
    let Some(node) = one_node(world, random, Node::is_powered) else {
        return Ok(false);
    };
    world
        .history
        .act(&format!("fault: {} loses its power", node.name));
    node.cut_power().await?;
    lock(&world.observed).lost_power(&node.name);
    Ok(true)
}

fn boot(world: &Arc<World>, random: &Random) -> Result<bool> {
    let Some(node) = one_node(world, random, |node| !node.is_powered()) else {
        return Ok(false);
    };
    world.history.act(&format!("{} boots", node.name));
    node.boot(world)?;
    Ok(true)
}

/// Ends every fault.
pub async fn heal(world: &Arc<World>) -> Result<()> {
    world.history.act("every fault ends");
    start_waifud(world).await?;
    for node in &world.nodes {
        node.wire.set_calm(true);
        node.wire.set_cuts(Cuts::default());
        if !node.is_powered() {
            node.boot(world)?;
        }
    }
    Ok(())
}

/// Messages are slow and arrive twice from now on.
pub fn disturb(world: &World) {
    for node in &world.nodes {
        node.wire.set_calm(false);
    }
}
