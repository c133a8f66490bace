//! The state of one test: the chosen point, the daemons that are dead, and the points passed. One per thread, so that
//! tests running in parallel do not affect each other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::Point;

#[derive(Default)]
pub(super) struct TestState {
    pub counting: bool,
    /// The chosen point, and how many more times it is passed before the daemon stops there.
    pub end: Option<(Point, u32)>,
    pub dead: BTreeSet<&'static str>,
    pub hits: BTreeMap<Point, u32>,
}

thread_local! {
    static STATE: RefCell<TestState> = RefCell::default();
}

pub(super) fn with<T>(act: impl FnOnce(&mut TestState) -> T) -> T {
    STATE.with_borrow_mut(act)
}

/// Whether the daemon that reaches this point is dead, or stops here.
pub(super) fn is_end(point: Point) -> bool {
    with(|state| {
        if state.dead.contains(point.act.daemon()) {
            return true;
        }
        if !state.counting {
            return false;
        }
        *state.hits.entry(point).or_default() += 1;
        match &mut state.end {
            Some((end, left)) if *end == point && *left <= 1 => {
                state.end = None;
                state.dead.insert(point.act.daemon());
                true
            }
            Some((end, left)) if *end == point => {
                *left -= 1;
                false
            }
            _ => false,
        }
    })
}
