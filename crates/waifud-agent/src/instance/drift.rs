//! The condition of an instance whose domain was edited by hand.

use waifud_types::Timestamp;
use waifud_types::status::Condition;

use crate::condition::condition;

/// The drift that was last observed.
#[derive(Debug)]
pub(crate) struct Drift {
    /// Sentences that name the devices and settings.
    changes: Vec<String>,
    /// When exactly these changes were first observed.
    since: Timestamp,
}

impl Drift {
    /// The drift after another observation; `None` if there is none.
    pub(crate) fn after(
        before: Option<Self>,
        changes: Vec<String>,
        now: Timestamp,
    ) -> Option<Self> {
        if changes.is_empty() {
            return None;
        }
        let known = before.filter(|before| before.changes == changes);
        Some(known.unwrap_or(Self {
            changes,
            since: now,
        }))
    }

    pub(crate) fn condition(&self) -> Condition {
        let message = format!(
            "its domain was edited by hand; the changes are kept: {}",
            self.changes.join("; ")
        );
        condition("drift", false, "edited-by-hand", message, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_kept_while_the_changes_stay_the_same() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let changes = |text: &str| vec![text.to_owned()];
        let first = Drift::after(None, changes("a"), at(1));
        let same = Drift::after(first, changes("a"), at(2));
        assert_eq!(same.as_ref().map(|drift| drift.since), Some(at(1)));
        let other = Drift::after(same, changes("b"), at(3));
        assert_eq!(other.as_ref().map(|drift| drift.since), Some(at(3)));
        assert!(Drift::after(other, Vec::new(), at(4)).is_none());
    }
}
