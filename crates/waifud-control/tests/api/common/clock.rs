//! A clock that a test moves.

use std::sync::Mutex;
use std::time::Duration;

use waifud_control::env::{Clock, SystemClock};
use waifud_types::Timestamp;

/// The time of day and the time since the start, which move only when a test moves them.
pub struct ManualClock(Mutex<(Timestamp, Duration)>);

impl Default for ManualClock {
    fn default() -> Self {
        Self(Mutex::new((SystemClock.now(), Duration::ZERO)))
    }
}

impl ManualClock {
    /// Moves both.
    pub fn forward(&self, by: Duration) {
        let mut times = self.0.lock().unwrap();
        times.0 += by;
        times.1 += by;
    }

    /// Sets both: the time of day to the system's with this error, and the time since the start.
    pub fn set(&self, wrong_by_years: i64, running: Duration) {
        let error = jiff::SignedDuration::from_hours(wrong_by_years * 365 * 24);
        *self.0.lock().unwrap() = (SystemClock.now() + error, running);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.lock().unwrap().0
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().1
    }
}
