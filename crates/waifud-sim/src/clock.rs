//! The simulated time: tokio's paused clock, which moves only when every task waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use waifud_kit::clock::Clock;
use waifud_types::Timestamp;

/// The time of day at which each run begins, in seconds since 1970.
const BEGIN: i64 = 1_800_000_000;

/// The clock of one machine. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct SimClock {
    begin: Instant,
    /// How far it is ahead of the time of the run, in seconds.
    ahead: Arc<AtomicI64>,
}

impl SimClock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self {
            begin: Instant::now(),
            ahead: Arc::default(),
        }
    }

    /// The clock of another machine, which shows the time of the run.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            begin: self.begin,
            ahead: Arc::default(),
        }
    }

    /// Sets the time of day forwards, or backwards if negative. The monotonic time does not change.
    pub fn jump(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::SeqCst);
    }

    /// How far the clock is ahead of the time of the run, in seconds.
    pub fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::SeqCst)
    }

    /// How long the run has lasted.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let micros = i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX);
        let seconds = BEGIN + self.ahead();
        Timestamp::from_microsecond(seconds * 1_000_000 + micros).unwrap_or(Timestamp::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.elapsed()
    }
}
