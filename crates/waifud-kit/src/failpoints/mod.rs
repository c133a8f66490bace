//! Named points at which tests stop a daemon.
//!
//! A daemon names its *acts*: everything it does that outlives it (a durable write, an effect on the node) or that others
//! see (a report, an answer). Each act has a point before it and a point after it. A test chooses a point. When the
//! daemon reaches it, the daemon is dead: none of its later acts happens until the test has dropped its tasks and
//! [revived](testing::revive) its name. What the test finds afterwards is what a kill at that line would leave.
//!
//! Points exist only with the feature `points`, which only dev-dependencies enable, *and* debug assertions, which release
//! builds do not have. Without either, an act costs nothing.
//!
//! ```
//! use waifud_kit::failpoints::Act;
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

/// Something a daemon does, before or after which a test can stop it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Act {
    daemon: &'static str,
    name: &'static str,
}

/// The side of its act that a point is on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Side {
    /// Nothing of the act has happened.
    Before,
    /// The act is complete, and its result has not been passed on.
    After,
}

/// A point at which a daemon can be stopped, for example `agentd.define.before`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// The act.
    pub act: Act,
    /// The side of the act.
    pub side: Side,
}

impl Act {
    /// An act of this daemon.
    pub const fn new(daemon: &'static str, name: &'static str) -> Self {
        Self { daemon, name }
    }

    /// The daemon whose act it is.
    pub const fn daemon(self) -> &'static str {
        self.daemon
    }

    /// The points before and after the act.
    pub fn points(self) -> [Point; 2] {
        [Side::Before, Side::After].map(|side| Point { act: self, side })
    }

    /// The point before the act, in synchronous code: a daemon that is stopped here unwinds.
    #[inline]
    pub fn before(self) {
        self.pass(Side::Before);
    }

    /// The point after the act, in synchronous code: a daemon that is stopped here unwinds.
    #[inline]
    pub fn after(self) {
        self.pass(Side::After);
    }

    /// Runs the act between its two points. If the daemon is stopped at one of them, this never returns.
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
            // Without a message: the test asked for it.
            std::panic::resume_unwind(Box::new("a failpoint stopped the daemon"));
        }
    }

    #[cfg(not(all(feature = "points", debug_assertions)))]
    #[inline]
    #[expect(clippy::unused_self, reason = "the variant with points uses it")]
    fn pass(self, _: Side) {}

    #[cfg(all(feature = "points", debug_assertions))]
    async fn wait(self, side: Side) {
        if test_state::is_end(Point { act: self, side }) {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(not(all(feature = "points", debug_assertions)))]
    #[inline]
    #[expect(clippy::unused_async, reason = "the variant with points waits")]
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

/// Names the acts of a daemon and lists them in `ALL`.
#[macro_export]
macro_rules! acts {
    ($daemon:literal: $($(#[$doc:meta])* $act:ident = $name:literal;)+) => {
        $($(#[$doc])* pub const $act: $crate::failpoints::Act = $crate::failpoints::Act::new($daemon, $name);)+
        /// All acts of this list.
        pub const ALL: &[$crate::failpoints::Act] = &[$($act),+];
    };
}
