//! One run: from a seed to its outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use waifud_kit::planted_bugs::Bug;
use waifud_kit::sync::lock;
use waifud_store::EventFilter;
use waifud_types::Digest;

use crate::acts::{self, Counts};
use crate::errors;
use crate::invariants::{self, Violation};
use crate::random::{self, Random};
use crate::world::{NODES_MAX, World};

/// How long a cluster without faults may take to come to rest.
const REST_MAX: Duration = Duration::from_mins(3);
/// How many acts of a failed run are shown.
const SHOWN: usize = 40;

/// What decides a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// The number of steps.
    pub steps: u64,
    /// Whether waifud's database may be replaced with older copies.
    pub restores: bool,
    /// The bug that the code has.
    pub bug: Option<Bug>,
    /// Which messages of the daemons' log are printed, like `RUST_LOG`.
    pub log: Option<String>,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The number of nodes.
    pub nodes: usize,
    /// The steps that were taken.
    pub steps: u64,
    /// How often each act happened.
    pub acts: Counts,
    /// The simulated time.
    pub lasted: Duration,
    /// The number of messages between nodes and waifud.
    pub messages: u64,
    /// How often the invariants were checked.
    pub checks: u64,
    /// How many objects each invariant has looked at.
    pub looked: BTreeMap<&'static str, u64>,
    /// How many requests waifud refused.
    pub refused: u64,
    /// The digest of the history.
    pub digest: Digest,
    /// The violated invariant.
    pub violation: Option<Violation>,
    /// The last acts.
    pub history: String,
    /// Every act and message.
    pub full_history: String,
}

/// Runs one seed. Only once per process, because the process has one source of random numbers.
pub fn run(options: Options) -> Result<Outcome> {
    if let Some(bug) = options.bug {
        plant(bug)?;
    }
    errors::watch(options.log.as_deref())?;
    random::seed_process(options.seed);
    // A new thread: this one may have chosen the keys of its hash maps already.
    let run = std::thread::Builder::new().spawn(move || {
        waifud_agent::access_files_inline();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build()?;
        runtime.block_on(run_here(options))
    })?;
    run.join().map_err(|_| anyhow!("the simulation panicked"))?
}

#[cfg(debug_assertions)]
#[expect(
    clippy::unnecessary_wraps,
    reason = "the other one, of a release build, fails"
)]
fn plant(bug: Bug) -> Result<()> {
    waifud_kit::planted_bugs::plant(bug);
    Ok(())
}

#[cfg(not(debug_assertions))]
fn plant(bug: Bug) -> Result<()> {
    anyhow::bail!("a release build cannot contain the bug {bug}")
}

async fn run_here(options: Options) -> Result<Outcome> {
    let random = Random::new(options.seed, 0);
    let nodes = usize::try_from(1 + random.below(NODES_MAX as u64))?;
    // Other machines may join later.
    let machines = if random.percent(50) { nodes } else { NODES_MAX };
    let world = World::new(options.seed, machines, nodes, options.restores).await?;
    acts::disturb(&world);
    let mut counts = Counts::new();
    let mut refused = 0;
    let mut steps = 0;
    while steps < options.steps && world.violation().is_none() {
        steps += 1;
        acts::guests_write(&world);
        match acts::one(&world, &random).await? {
            Some(act) => *counts.entry(act).or_default() += 1,
            None => refused += 1,
        }
        world.check().await;
        pass_time(&world, &random).await;
        if random.percent(3) {
            come_to_rest(&world).await?;
            acts::disturb(&world);
        }
    }
    if world.violation().is_none() {
        come_to_rest(&world).await?;
    }
    record_events(&world).await?;
    let (checks, looked) = {
        let observed = lock(&world.observed);
        (observed.checks, observed.looked())
    };
    let history = &world.history;
    Ok(Outcome {
        nodes,
        steps,
        acts: counts,
        lasted: world.clock.elapsed(),
        messages: history.messages(),
        checks,
        looked,
        refused,
        digest: history.digest(),
        violation: world.violation(),
        history: history.shortened(SHOWN),
        full_history: history.full(),
    })
}

/// Between two acts: often no time at all, so that a fault follows a request at once.
async fn pass_time(world: &World, random: &Random) {
    let most = match random.below(10) {
        0..=2 => return,
        3..=5 => 500,
        6..=8 => 10_000,
        _ => 120_000,
    };
    tokio::time::sleep(Duration::from_millis(random.below(most))).await;
    world.check().await;
}

/// Ends every fault, and waits until everything is as it should be. If that takes too long, the last obstacle is a violation.
async fn come_to_rest(world: &Arc<World>) -> Result<()> {
    acts::heal(world).await?;
    let begun = world.clock.elapsed();
    let mut good = 0;
    while good < 2 && world.violation().is_none() {
        tokio::time::sleep(Duration::from_secs(10)).await;
        acts::decide_everything(world).await;
        world.check().await;
        match invariants::at_rest(world).await {
            Ok(()) => good += 1,
            Err(violation) => {
                good = 0;
                if world.clock.elapsed().saturating_sub(begun) > REST_MAX {
                    world.violate(violation);
                }
            }
        }
    }
    acts::rest(world).await;
    world.history.act("the cluster is at rest");
    Ok(())
}

/// Adds waifud's own history to that of the run.
async fn record_events(world: &World) -> Result<()> {
    let events = world.waifud.read(|tx| {
        let filter = EventFilter::default();
        tx.events(0, &filter, 100_000)
    });
    let Some(events) = events.await else {
        return Ok(());
    };
    for event in events.context("the events cannot be read")? {
        let text = serde_json::to_string(&event)?;
        world.history.detail(&format!("event {text}"));
    }
    Ok(())
}
