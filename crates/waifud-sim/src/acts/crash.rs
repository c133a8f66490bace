//! Crashes in the middle of something: a process ends at any of its await points, and a node loses its power at any moment.
//!
//! All tasks of a run share one thread. So a task that lets the others run a random number of times, and then ends a process,
//! finds the tasks of that process at await points that no act of the run could choose.

use std::sync::Arc;
use std::time::Duration;

use waifud_kit::sync::lock;

use crate::invariants::Violation;
use crate::random::Random;
use crate::world::World;

/// What ends.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Waifud,
    /// The agent of the node with this index. It is started again at once.
    Agent(usize),
    /// The node with this index.
    Node(usize),
}

/// Lets something end soon, while other things happen.
pub(super) fn prepare(world: &Arc<World>, random: &Random) -> bool {
    let nodes = world.nodes.len() as u64;
    let node = usize::try_from(random.below(nodes)).unwrap_or(0);
    let victim = match random.below(5) {
        0..=1 => Victim::Waifud,
        2..=3 => Victim::Agent(node),
        _ => Victim::Node(node),
    };
    let most = [1, 30, 5000];
    let wait = random.below(random.pick(&most).copied().unwrap_or(1));
    let turns = random.below(25);
    world.history.act(&format!(
        "{victim:?} is to crash after {wait} ms and {turns} turns"
    ));
    let crash = crash(world.clone(), victim, Duration::from_millis(wait), turns);
    lock(&world.crashes).spawn(crash);
    true
}

async fn crash(world: Arc<World>, victim: Victim, wait: Duration, turns: u64) {
    tokio::time::sleep(wait).await;
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
    let what = match victim {
        Victim::Waifud => {
            let running = world.waifud.is_running();
            world.waifud.kill().await;
            running.then(|| "waifud".to_owned())
        }
        Victim::Agent(node) => restart_agent(&world, node).await,
        Victim::Node(node) => cut_power(&world, node).await,
    };
    if let Some(what) = what {
        *lock(&world.crashed) += 1;
        world
            .history
            .act(&format!("fault: {what} crashes in the middle"));
    }
}

async fn restart_agent(world: &Arc<World>, node: usize) -> Option<String> {
    let node = world.nodes.get(node)?;
    if !node.kill_agent().await {
        return None;
    }
    if let Err(error) = node.start_agent(world) {
        fail(world, &error);
    }
    Some(format!("the agent of {}", node.name))
}

async fn cut_power(world: &Arc<World>, node: usize) -> Option<String> {
    let node = world.nodes.get(node)?;
    if !node.is_powered() {
        return None;
    }
    if let Err(error) = node.cut_power().await {
        fail(world, &error);
    }
    lock(&world.observed).lost_power(&node.name);
    Some(node.name.clone())
}

fn fail(world: &World, error: &anyhow::Error) {
    world.violate(Violation {
        invariant: "no_error_is_hidden",
        what: format!("after a crash: {error:#}"),
    });
}
