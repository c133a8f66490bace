//! Faults, and the end of single faults.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use waifud_kit::sync::lock;

use super::Act;
use crate::random::Random;
use crate::world::{Cuts, Node, World};

/// Whether a fault can happen, or end.
pub(super) fn is_possible(act: Act, world: &World) -> bool {
    let any = |fits: fn(&Node) -> bool| world.nodes.iter().any(fits);
    match act {
        Act::CutWire => any(|node| !node.wire.cuts().any()),
        Act::HealWire => any(|node| node.wire.cuts().any()),
        Act::KillWaifud => world.waifud.is_running(),
        Act::StartWaifud => !world.waifud.is_running(),
        Act::RestartAgent | Act::CutPower => any(Node::is_powered),
        Act::Boot => any(|node| !node.is_powered()),
        _ => true,
    }
}

/// Makes it happen.
pub(super) async fn one(world: &Arc<World>, random: &Random, act: Act) -> Result<bool> {
    match act {
        Act::CutWire => Ok(cut_wire(world, random)),
        Act::HealWire => Ok(heal_wire(world, random)),
        Act::KillWaifud => {
            world.history.act("fault: waifud is killed");
            world.waifud.kill().await;
            Ok(true)
        }
        Act::StartWaifud => {
            world.history.act("waifud is started again");
            world.waifud.start().await?;
            Ok(true)
        }
        Act::RestartAgent => restart_agent(world, random).await,
        Act::CutPower => cut_power(world, random).await,
        Act::Boot => boot(world, random),
        Act::JumpClock => Ok(jump_clock(world, random)),
        _ => Ok(false),
    }
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

/// A clock is set forwards or backwards, by seconds or by hours.
fn jump_clock(world: &World, random: &Random) -> bool {
    let most = [30, 300, 100_000];
    let most = random.pick(&most).copied().unwrap_or(1);
    let seconds = i64::try_from(1 + random.below(most)).unwrap_or(1);
    let backwards = random.percent(50);
    let by = if backwards { -seconds } else { seconds };
    let (clock, whose) = if random.percent(40) {
        (&world.waifud.clock, "waifud")
    } else {
        let Some(node) = one_node(world, random, |_| true) else {
            return false;
        };
        (&node.clock, node.name.as_str())
    };
    world
        .history
        .act(&format!("fault: the clock of {whose} jumps by {by} s"));
    clock.jump(by);
    true
}
