//! Pauses that grow: twice as long each time, up to a limit, with jitter so that many do not come back at once.

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
    /// From `min` to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            next: min,
        }
    }

    /// The next pause: between three quarters and the whole of its nominal length.
    pub fn pause(&mut self) -> Duration {
        let nominal = self.next;
        self.next = nominal.saturating_mul(2).min(self.max);
        jittered(nominal)
    }

    /// The series is over.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// The duration, shortened by up to a quarter.
pub fn jittered(nominal: Duration) -> Duration {
    // A hash of nothing with a random key is all the randomness that this needs.
    let share = u32::try_from(RandomState::new().hash_one(0_u8) % 256).unwrap_or(0);
    nominal.saturating_sub(nominal / 4 * share / 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_begin_again() {
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
