//! What one test plays: who dies where, who is dead, which points were passed. Of the thread, so that tests do not meet.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::Point;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Scene {
    pub watched: bool,
    /// The point, and how many more times it is passed before it is the end.
    pub end: Option<(Point, u32)>,
    pub dead: BTreeSet<&'static str>,
    pub hits: BTreeMap<Point, u32>,
}

thread_local! {
    static SCENE: RefCell<Scene> = RefCell::default();
}

pub(crate) fn with<T>(act: impl FnOnce(&mut Scene) -> T) -> T {
    SCENE.with_borrow_mut(act)
}

/// Whether the daemon that comes to this point is dead, or dies here.
pub(crate) fn is_end(point: Point) -> bool {
    with(|scene| {
        if scene.dead.contains(point.act.daemon()) {
            return true;
        }
        if !scene.watched {
            return false;
        }
        *scene.hits.entry(point).or_default() += 1;
        match &mut scene.end {
            Some((end, left)) if *end == point && *left <= 1 => {
                scene.end = None;
                scene.dead.insert(point.act.daemon());
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
