//! Back-off: pauses that double up to a limit, with jitter so that many clients do not retry at once.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The pauses after a series of failures.
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            next: min,
        }
    }

    /// The next pause: 75 to 100 percent of its nominal length.
    pub fn pause(&mut self) -> Duration {
        let nominal = self.next;
        self.next = nominal.saturating_mul(2).min(self.max);
        jittered(nominal)
    }

    /// Starts a new series.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// The pause after `done` attempts in a series whose pauses double from `min` to `max`.
pub fn nth(done: u32, min: Duration, max: Duration) -> Duration {
    let factor = 1_u32.checked_shl(done.min(31)).unwrap_or(u32::MAX);
    jittered(min.saturating_mul(factor).min(max))
}

/// The duration, shortened by up to a quarter.
pub fn jittered(nominal: Duration) -> Duration {
    // A hash with a random key is random enough here.
    let share = u32::try_from(RandomState::new().hash_one(0_u8) % 256).unwrap_or(0);
    nominal.saturating_sub(nominal / 4 * share / 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_pause_is_computed_without_the_others() {
        let (min, max) = (Duration::from_secs(1), Duration::from_mins(1));
        for (done, nominal) in [(0, 1), (1, 2), (5, 32), (6, 60), (400, 60)] {
            let pause = nth(done, min, max);
            let nominal = Duration::from_secs(nominal);
            assert!(pause <= nominal && pause >= nominal * 3 / 4, "{pause:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_limit_and_restart_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for nominal in [100, 200, 400, 800, 1000, 1000] {
            let nominal = Duration::from_millis(nominal);
            let pause = backoff.pause();
            assert!(pause <= nominal && pause >= nominal * 3 / 4, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }
}
