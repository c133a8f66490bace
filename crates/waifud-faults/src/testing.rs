//! What a test says to the points. All of it is about the thread that the test and its daemons run on.

use std::collections::BTreeMap;

use crate::Point;
use crate::test_state::with;

/// Counts from here on what is passed, and lets nobody die.
pub fn watch() {
    with(|scene| {
        scene.watched = true;
        scene.hits.clear();
        scene.end = None;
    });
}

/// Counts from here on, and lets a daemon die when it passes this point for the `nth` time, counted from 1.
pub fn die_at(point: Point, nth: u32) {
    watch();
    with(|scene| scene.end = Some((point, nth)));
}

/// How often each point was passed since the count began.
pub fn hits() -> BTreeMap<Point, u32> {
    with(|scene| scene.hits.clone())
}

/// Whether this daemon has died.
pub fn is_dead(daemon: &str) -> bool {
    with(|scene| scene.dead.contains(daemon))
}

/// Its tasks are thrown away: another process of this name may act. Nobody dies any more, nothing is counted.
pub fn revive(daemon: &str) {
    with(|scene| {
        scene.dead.remove(daemon);
        scene.watched = false;
        scene.end = None;
    });
}

/// Everything as if nothing had been asked for.
pub fn reset() {
    with(|scene| *scene = crate::test_state::Scene::default());
}
