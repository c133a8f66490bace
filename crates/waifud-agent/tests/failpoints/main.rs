//! waifud, agentd and metadatad in one thread, with fakes for the outside: each verb, with each daemon killed at each of its
//! failpoints, must have the same result as without a kill. The agent's failpoints around libvirt are repeated with libvirt.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

#[allow(
    dead_code,
    reason = "these tests use few of the helpers of waifud's own"
)]
#[path = "../../../waifud-control/tests/api/common/answer.rs"]
mod answer;
mod birch;
mod cluster;
mod digest;
mod libvirt;
mod machine;
mod metadatad;
mod verbs;
mod waifud;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use waifud_kit::failpoints::{Act, Point, testing};

use crate::cluster::Cluster;
use crate::machine::{Fake, Machine};
use crate::verbs::{VERBS, Verb};

/// With fakes, how many passages of a point are tried. One verb writes only a few times.
const PASSAGES: u32 = 3;
/// How long nothing may change before a verb counts as finished.
const SETTLED: Duration = Duration::from_millis(150);
/// And for how many checks, because on a busy machine time passes while the daemons do not run.
const SETTLED_LOOKS: u32 = 15;
/// After a kill, how many checks in a row must find the expected result, 10 ms apart. Daemons that were started again work
/// at once: the agent observes every instance as soon as it is connected.
const LOOKS_AFTER_A_KILL: u32 = 4;
/// Far longer than any verb takes.
const DEADLINE: Duration = Duration::from_mins(1);

/// Where verbs run, and at which points they are killed.
#[derive(Clone, Copy)]
struct Ground<'a> {
    /// A new machine without domains.
    machine: &'a dyn Fn() -> Arc<dyn Machine>,
    /// How many passages of a point are tried.
    passages: &'a dyn Fn(Point) -> u32,
}

/// Every failpoint of every daemon.
fn acts() -> BTreeSet<Act> {
    [
        waifud_store::failpoints::ALL,
        waifud_control::failpoints::ALL,
        waifud_agent::failpoints::ALL,
        waifud_metadata::failpoints::ALL,
    ]
    .concat()
    .into_iter()
    .collect()
}

/// The result of a verb without a kill, and how often it passes each point.
async fn undisturbed(verb: &Verb, ground: Ground<'_>) -> (String, BTreeMap<Point, u32>) {
    let cluster = Cluster::prepared(verb.begin, (ground.machine)()).await;
    testing::watch();
    cluster.carry_out(verb).await;
    let mut end = digest::of(&cluster).await;
    let mut since = Instant::now();
    let begun = Instant::now();
    let mut looks = 0;
    while since.elapsed() < SETTLED || looks < SETTLED_LOOKS {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = digest::of(&cluster).await;
        looks += 1;
        if now != end {
            (end, since, looks) = (now, Instant::now(), 0);
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{} never settles:\n{end}",
            verb.name
        );
    }
    let hits = testing::hits();
    cluster.end().await;
    (end, hits)
}

/// Runs the verb with one daemon killed once. Returns whether it reached that point.
async fn disturbed(verb: &Verb, ground: Ground<'_>, point: Point, nth: u32, end: &str) -> bool {
    let cluster = Cluster::prepared(verb.begin, (ground.machine)()).await;
    testing::die_at(point, nth);
    cluster.carry_out(verb).await;
    let begun = Instant::now();
    let (mut since, mut looks) = (Instant::now(), 0);
    loop {
        cluster.replace_the_dead().await;
        let now = digest::of(&cluster).await;
        if now == end {
            looks += 1;
        } else {
            (since, looks) = (Instant::now(), 0);
        }
        // The result may be the expected one before the kill, and before what the new daemon does wrong.
        let settled = if cluster.deaths() > 0 {
            looks >= LOOKS_AFTER_A_KILL
        } else {
            since.elapsed() >= SETTLED && looks >= SETTLED_LOOKS
        };
        if settled {
            break;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{} with a kill at {point} ({nth}.) does not end as it should.\nwithout:\n{end}\nwith:\n{now}",
            verb.name
        );
        tokio::time::sleep(Duration::from_millis(if looks > 0 { 10 } else { 2 })).await;
    }
    let died = cluster.deaths() > 0;
    cluster.end().await;
    died
}

/// Each verb runs on a separate thread, because failpoints are per thread.
fn on_threads(
    work: fn(&'static Verb) -> BTreeMap<Point, u32>,
) -> Vec<(&'static str, BTreeMap<Point, u32>)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = VERBS
            .iter()
            .map(|verb| {
                let thread = std::thread::Builder::new().name(verb.name.to_owned());
                (
                    verb.name,
                    thread.spawn_scoped(scope, || work(verb)).unwrap(),
                )
            })
            .collect();
        threads
            .into_iter()
            .map(|(name, thread)| {
                let hits = thread.join();
                assert!(hits.is_ok(), "{name} failed; see the output of its thread");
                (name, hits.unwrap_or_default())
            })
            .collect()
    })
}

fn killed_everywhere(verb: &Verb, ground: Ground<'_>) -> BTreeMap<Point, u32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        testing::reset();
        let (end, hits) = undisturbed(verb, ground).await;
        let mut tried = BTreeMap::new();
        for (point, passages) in hits {
            for nth in 1..=passages.min((ground.passages)(point)) {
                if disturbed(verb, ground, point, nth, &end).await {
                    *tried.entry(point).or_default() += 1;
                } else {
                    // The number of passages depends on timing, but not whether there is one.
                    assert!(nth > 1, "{} never came to {point}", verb.name);
                    break;
                }
            }
        }
        tried
    })
}

#[test]
fn every_operation_has_the_same_result_whichever_failpoint_kills_a_daemon() {
    let begun = Instant::now();
    let tried = on_threads(|verb| {
        let ground = Ground {
            machine: &|| Arc::new(Fake::new()),
            passages: &|_| PASSAGES,
        };
        killed_everywhere(verb, ground)
    });
    let mut never: BTreeSet<Point> = acts().into_iter().flat_map(Act::points).collect();
    let mut kills = 0;
    for (verb, died) in &tried {
        let count: u32 = died.values().sum();
        println!("{verb}: {} points, {count} kills", died.len());
        kills += count;
        for point in died.keys() {
            never.remove(point);
        }
    }
    println!("{kills} kills in {:?}", begun.elapsed());
    let never: Vec<String> = never.iter().map(ToString::to_string).collect();
    assert!(
        never.is_empty(),
        "failpoints that no operation reaches: {never:?}"
    );
}
