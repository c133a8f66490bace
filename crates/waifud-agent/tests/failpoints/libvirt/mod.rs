//! The same verbs with libvirtd and QEMU instead of the fake: a kill at each step that involves them, and a QEMU that is
//! killed repeatedly. Domains have no disks and are started halted, so a step takes only as long as libvirt does.

mod crash_loop;
mod diskless;
mod node;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use waifud_agent::failpoints;
use waifud_kit::failpoints::{Act, Point};

use self::node::Node;
use crate::verbs::VERBS;
use crate::{Ground, killed_everywhere};

/// The failpoints around libvirt.
const ACTS: [Act; 6] = [
    failpoints::DEFINE,
    failpoints::START,
    failpoints::GROW,
    failpoints::SHUTDOWN,
    failpoints::FORCE_OFF,
    failpoints::UNDEFINE,
];
/// How many verbs run at once, each on its own node. A libvirtd mostly waits for its QEMUs.
const NODES: usize = 2;

/// Serializes tests with libvirt.
static MACHINE: Mutex<()> = Mutex::new(());

#[test]
fn every_step_on_libvirt_has_the_same_result_when_the_agent_is_killed_around_it() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let tried: Mutex<BTreeSet<Point>> = Mutex::default();
    let work = || {
        let Some(node) = Node::up() else { return false };
        let ground = Ground {
            machine: &|| node.clone(),
            passages: &|point| u32::from(ACTS.contains(&point.act)),
        };
        while let Some(verb) = VERBS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let begun = Instant::now();
            let died = killed_everywhere(verb, ground);
            let kills: u32 = died.values().sum();
            println!("{}: {kills} kills in {:?}", verb.name, begun.elapsed());
            tried.lock().unwrap().extend(died.into_keys());
        }
        true
    };
    let done: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..NODES).map(|_| scope.spawn(work)).collect();
        let threads = threads.into_iter();
        threads.map(|thread| thread.join().unwrap()).collect()
    });
    println!("all in {:?}", begun.elapsed());
    if done.contains(&true) {
        let all: BTreeSet<Point> = ACTS.into_iter().flat_map(Act::points).collect();
        assert_eq!(tried.into_inner().unwrap(), all, "every point is tried");
    }
}
