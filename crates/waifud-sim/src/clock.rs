//! The simulated time: tokio's paused clock, which moves only when every task waits.

use std::time::Duration;

use tokio::time::Instant;
use waifud_kit::clock::Clock;
use waifud_types::Timestamp;

/// The time of day at which each run begins, in seconds since 1970.
const BEGIN: i64 = 1_800_000_000;

/// The clock of every daemon of a run.
#[derive(Clone, Copy, Debug)]
pub struct SimClock {
    begin: Instant,
}

impl SimClock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self {
            begin: Instant::now(),
        }
    }

    /// How long the run has lasted.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let micros = i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_microsecond(BEGIN * 1_000_000 + micros).unwrap_or(Timestamp::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.elapsed()
    }
}
