//! Times how long a guest may take to shut down after a request.

use std::time::Duration;

use tokio::time::Instant;

use crate::settings::Timing;

#[derive(Debug, Default)]
pub(super) struct ShutdownTimer {
    /// When the guest was first asked to shut down.
    pub since: Option<Instant>,
    /// When the guest was last asked.
    pub asked: Option<Instant>,
}

impl ShutdownTimer {
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Records a request that was sent to the guest.
    pub fn record_request(&mut self) {
        let now = Instant::now();
        if self.asked.replace(now).is_none() {
            self.since = Some(now);
        }
    }

    /// Whether the guest is still on after its grace period.
    pub fn has_expired(&self, timing: &Timing) -> bool {
        self.since
            .is_some_and(|since| since.elapsed() >= timing.grace)
    }

    /// Whether the guest should be asked (again). A guest that was asked while it booted may not have handled it.
    pub fn should_ask(&self, timing: &Timing) -> bool {
        self.asked
            .is_none_or(|at| at.elapsed() >= ask_interval(timing))
    }

    /// When the next thing is due: another request, or the end of the grace period.
    pub fn next_due(&self, timing: &Timing) -> Option<Instant> {
        let end = self.since.map(|at| at + timing.grace);
        let again = self.asked.map(|at| at + ask_interval(timing));
        end.into_iter().chain(again).min()
    }
}

fn ask_interval(timing: &Timing) -> Duration {
    timing.grace / 4
}
