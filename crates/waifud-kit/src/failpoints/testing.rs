//! How a test controls the points. Everything here affects the current thread, which runs the test and its daemons.

use std::collections::BTreeMap;

use super::Point;
use super::test_state::{TestState, with};

/// Starts to count the points passed, and stops no daemon.
pub fn watch() {
    with(|state| {
        state.counting = true;
        state.hits.clear();
        state.end = None;
    });
}

/// Starts to count, and stops the daemon when it passes this point for the `nth` time, counted from 1.
pub fn die_at(point: Point, nth: u32) {
    watch();
    with(|state| state.end = Some((point, nth)));
}

/// How often each point was passed since counting started.
pub fn hits() -> BTreeMap<Point, u32> {
    with(|state| state.hits.clone())
}

/// Whether this daemon was stopped.
pub fn is_dead(daemon: &str) -> bool {
    with(|state| state.dead.contains(daemon))
}

/// Allows a new process of this name to act, after the test has dropped the tasks of the old one. Ends counting.
pub fn revive(daemon: &str) {
    with(|state| {
        state.dead.remove(daemon);
        state.counting = false;
        state.end = None;
    });
}

/// Resets everything to the state before the first call.
pub fn reset() {
    with(|state| *state = TestState::default());
}
