//! Named points at which tests let a daemon die. Nothing at all outside of test builds.
//!
//! A daemon names its *acts*: what it does that outlives it (a durable write, an effect on the node) and what it says
//! (a report, an answer). Each act has two points, before and after it. In a test build a test chooses a point; a daemon
//! that comes to it is dead from then on: no later act of it happens, until the test has thrown its tasks away and
//! [revived](testing::revive) the name. So what a test finds afterwards is what a kill at that very line would leave.
//!
//! Points need the feature `points`, which only dev-dependencies switch on, *and* debug assertions, which release builds
//! do not have. Without either, an act costs nothing.
//!
//! ```
//! use waifud_faults::Act;
//! const SAVE: Act = Act::new("agentd", "record.save");
//! # fn write() {}
//! SAVE.before();
//! write();
//! SAVE.after();
//! ```

#[cfg(all(feature = "points", debug_assertions))]
mod test_state;
#[cfg(all(feature = "points", debug_assertions))]
pub mod testing;

use std::fmt;

/// Something that a daemon does and that its death may come before or after.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Act {
    daemon: &'static str,
    name: &'static str,
}

/// On which side of its act a point is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Nothing of it has happened.
    Before,
    /// All of it has happened, and nobody was told.
    After,
}

/// A place to die: `agentd.define.before`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// The act.
    pub act: Act,
    /// Its side.
    pub side: Side,
}

impl Act {
    /// An act of this daemon.
    pub const fn new(daemon: &'static str, name: &'static str) -> Self {
        Self { daemon, name }
    }

    /// Whose it is.
    pub const fn daemon(self) -> &'static str {
        self.daemon
    }

    /// Its points.
    pub fn points(self) -> [Point; 2] {
        [Side::Before, Side::After].map(|side| Point { act: self, side })
    }

    /// The point before it, where nothing can wait: a daemon that dies here unwinds.
    #[inline]
    pub fn before(self) {
        self.pass(Side::Before);
    }

    /// The point after it, where nothing can wait: a daemon that dies here unwinds.
    #[inline]
    pub fn after(self) {
        self.pass(Side::After);
    }

    /// Does the act between its two points. A daemon that dies at one of them never comes back from here.
    #[inline]
    pub async fn around<T>(self, act: impl Future<Output = T>) -> T {
        self.wait(Side::Before).await;
        let done = act.await;
        self.wait(Side::After).await;
        done
    }

    #[cfg(all(feature = "points", debug_assertions))]
    fn pass(self, side: Side) {
        if test_state::is_end(Point { act: self, side }) {
            // No message: this is what the test asked for.
            std::panic::resume_unwind(Box::new("a daemon died at a point of its test"));
        }
    }

    #[cfg(not(all(feature = "points", debug_assertions)))]
    #[inline]
    #[expect(clippy::unused_self, reason = "its other form asks who it is")]
    fn pass(self, _: Side) {}

    #[cfg(all(feature = "points", debug_assertions))]
    async fn wait(self, side: Side) {
        if test_state::is_end(Point { act: self, side }) {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(not(all(feature = "points", debug_assertions)))]
    #[inline]
    #[expect(clippy::unused_async, reason = "its other form waits")]
    async fn wait(self, _: Side) {}
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Before => "before",
            Side::After => "after",
        };
        write!(f, "{}.{}.{side}", self.act.daemon, self.act.name)
    }
}

/// Names the acts of a daemon, and lists them all in `ALL`: what is named is listed.
#[macro_export]
macro_rules! acts {
    ($daemon:literal: $($(#[$doc:meta])* $act:ident = $name:literal;)+) => {
        $($(#[$doc])* pub const $act: $crate::Act = $crate::Act::new($daemon, $name);)+
        /// Every act of this list.
        pub const ALL: &[$crate::Act] = &[$($act),+];
    };
}
