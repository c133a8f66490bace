//! waifud, agentd and metadatad in one thread, on fakes for what is outside: each verb, with each daemon killed at each
//! of its named points, ends as if nobody had been killed. Then the agent's points around libvirt once more, on the real one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests stop at the first surprise"
)]

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

/// On fakes a point is tried at so many of its passages: the writes of one verb are few.
const PASSAGES: u32 = 3;
/// For so long nothing may change any more before the end of a verb counts as reached.
const SETTLED: Duration = Duration::from_millis(150);
/// And in so many looks: on a busy machine time passes while the daemons have no turn.
const SETTLED_LOOKS: u32 = 15;
/// Far more than any verb takes.
const DEADLINE: Duration = Duration::from_mins(1);

/// Where verbs are tried, and where they are disturbed.
#[derive(Clone, Copy)]
struct Ground<'a> {
    /// A node's machine without domains.
    machine: &'a dyn Fn() -> Arc<dyn Machine>,
    /// At how many of its passages a point is tried.
    passages: &'a dyn Fn(Point) -> u32,
}

/// Every act of every daemon.
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

/// The end that a verb has when nobody is killed, and how often it passes each point.
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

/// The verb with one daemon killed once. Says whether it came to that point at all.
async fn disturbed(verb: &Verb, ground: Ground<'_>, point: Point, nth: u32, end: &str) -> bool {
    let cluster = Cluster::prepared(verb.begin, (ground.machine)()).await;
    testing::die_at(point, nth);
    cluster.carry_out(verb).await;
    let begun = Instant::now();
    loop {
        cluster.replace_the_dead().await;
        let now = digest::of(&cluster).await;
        if now == end {
            break;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{} with a kill at {point} ({nth}.) does not end as it should.\nwithout:\n{end}\nwith:\n{now}",
            verb.name
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let died = cluster.deaths() > 0;
    cluster.end().await;
    died
}

/// Each verb on a thread of its own: points belong to threads.
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
                assert!(hits.is_ok(), "{name} failed; its thread said why");
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
                    // How often is a matter of timing, whether at all is not.
                    assert!(nth > 1, "{} never came to {point}", verb.name);
                    break;
                }
            }
        }
        tried
    })
}

#[test]
fn every_verb_has_the_same_result_wherever_a_daemon_is_killed_and_every_point_is_tried() {
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
    assert!(never.is_empty(), "points that no verb comes to: {never:?}");
}
