//! The time, through a trait that simulations replace.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Returns the time.
pub trait Clock: Send + Sync {
    /// The current time in UTC. Can jump when the machine's clock is set.
    fn now(&self) -> Timestamp;

    /// The time since an arbitrary start. Never jumps; use it for intervals.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock, in microseconds: the precision of the database.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    fn monotonic(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_has_no_nanoseconds_and_the_monotonic_time_does_not_go_back() {
        assert_eq!(SystemClock.now().subsec_nanosecond() % 1000, 0);
        let first = SystemClock.monotonic();
        assert!(SystemClock.monotonic() >= first);
    }
}
