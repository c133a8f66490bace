//! How much of what one node says is written down: a faulty or hostile one must not fill the history, nor the disk, nor
//! keep the writer from the others.

use std::time::Duration;

/// Events that one node may cause at once. A thousand instances that start cause five thousand.
const MOST: f64 = 10_000.0;
/// Events that it may cause each second, on and on.
const PER_SECOND: f64 = 20.0;

/// What is left of it to one node.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Budget {
    left: f64,
    /// When that was so.
    at: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            left: MOST,
            at: Duration::ZERO,
        }
    }
}

impl Budget {
    /// Whether anything is left. What is said then is taken as a whole, whatever it costs.
    pub fn is_left(&mut self, running: Duration) -> bool {
        let passed = running.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + passed * PER_SECOND).min(MOST);
        self.at = self.at.max(running);
        self.left > 0.0
    }

    /// Takes off what something cost.
    #[expect(clippy::cast_precision_loss, reason = "costs are small")]
    pub fn spend(&mut self, cost: u64) {
        self.left -= cost as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_what_goes_on_and_on_is_held_to_the_rate() {
        let mut budget = Budget::default();
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
    fn what_cost_more_than_was_left_is_paid_back_first() {
        let mut budget = Budget::default();
        budget.spend(10_200);
        assert!(!budget.is_left(Duration::from_secs(9)));
        assert!(budget.is_left(Duration::from_secs(11)));
        assert!(budget.is_left(Duration::from_hours(1)));
        budget.spend(9_999);
        assert!(
            budget.is_left(Duration::from_hours(1)),
            "it is never more than full"
        );
        budget.spend(2);
        assert!(!budget.is_left(Duration::from_hours(1)));
    }
}
