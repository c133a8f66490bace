//! The write budget of a node, so that a faulty or malicious node cannot fill the history or the disk, or block the writer.

use std::time::Duration;

/// The burst of events that one node may cause. 1,000 starting instances cause 5,000 events.
const BURST: f64 = 10_000.0;
/// The sustained rate of events per second.
const EVENTS_PER_SECOND: f64 = 20.0;

/// The remaining budget of one node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct WriteBudget {
    remaining: f64,
    /// The running time of the process when `remaining` was computed.
    at: Duration,
}

impl Default for WriteBudget {
    fn default() -> Self {
        Self {
            remaining: BURST,
            at: Duration::ZERO,
        }
    }
}

impl WriteBudget {
    /// Whether anything is left. A report is then accepted as a whole, whatever it costs.
    pub fn is_left(&mut self, running: Duration) -> bool {
        let passed = running.saturating_sub(self.at).as_secs_f64();
        self.remaining = (self.remaining + passed * EVENTS_PER_SECOND).min(BURST);
        self.at = self.at.max(running);
        self.remaining > 0.0
    }

    /// Deducts a cost.
    #[expect(clippy::cast_precision_loss, reason = "costs are small")]
    pub fn spend(&mut self, cost: u64) {
        self.remaining -= cost as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_accepted_and_further_reports_are_limited_to_the_rate() {
        let mut budget = WriteBudget::default();
        let mut taken = 0;
        for tenth in 0..6000 {
            let now = Duration::from_millis(tenth * 100);
            for _ in 0..10 {
                if budget.is_left(now) {
                    budget.spend(50);
                    taken += 50;
                }
            }
        }
        let allowed = 10_000 + 600 * 20;
        assert!((allowed - 100..=allowed + 100).contains(&taken), "{taken}");
    }

    #[test]
    fn an_overdrawn_budget_recovers_before_it_accepts_again() {
        let mut budget = WriteBudget::default();
        budget.spend(10_200);
        assert!(!budget.is_left(Duration::from_secs(9)));
        assert!(budget.is_left(Duration::from_secs(11)));
        assert!(budget.is_left(Duration::from_hours(1)));
        budget.spend(9_999);
        assert!(
            budget.is_left(Duration::from_hours(1)),
            "it never exceeds the burst"
        );
        budget.spend(2);
        assert!(!budget.is_left(Duration::from_hours(1)));
    }
}
