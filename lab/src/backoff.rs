//! The delay before a service that ended is restarted.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// A run of at least this length resets the delay.
const TRUSTED_AFTER: Duration = Duration::from_secs(10);

/// Delays that double, and start over after a long run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after a run of length `ran`.
    pub(crate) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= TRUSTED_AFTER {
            self.failures = 0;
        }
        let delay = FIRST
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_seconds_and_start_over_after_a_long_run() {
        let mut backoff = Backoff::default();
        let millis: Vec<_> = (0..8)
            .map(|_| backoff.after(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(Duration::from_mins(1)).as_millis(), 100);
    }

    #[test]
    fn a_service_that_always_fails_does_not_overflow_the_delay() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.after(Duration::ZERO), LONGEST);
    }
}
