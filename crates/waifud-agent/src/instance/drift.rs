//! The condition of an instance whose domain somebody edited by hand.

use waifud_types::Timestamp;
use waifud_types::status::Condition;

use crate::instance::conditions::condition;

/// What was seen of it last.
#[derive(Debug)]
pub(crate) struct Drift {
    /// Sentences that name the devices and settings.
    said: Vec<String>,
    /// When just these were first seen.
    since: Timestamp,
}

impl Drift {
    /// What is to be remembered after another look; null when there is none.
    pub(crate) fn after(before: Option<Self>, said: Vec<String>, now: Timestamp) -> Option<Self> {
        if said.is_empty() {
            return None;
        }
        let known = before.filter(|before| before.said == said);
        Some(known.unwrap_or(Self { said, since: now }))
    }

    pub(crate) fn condition(&self) -> Condition {
        let message = format!(
            "its domain was edited by hand, which is kept: {}",
            self.said.join("; ")
        );
        condition("drift", false, "edited-by-hand", message, self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_since_it_was_first_seen_so_and_ends_with_what_was_edited() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let said = |text: &str| vec![text.to_owned()];
        let first = Drift::after(None, said("a"), at(1));
        let same = Drift::after(first, said("a"), at(2));
        assert_eq!(same.as_ref().map(|drift| drift.since), Some(at(1)));
        let other = Drift::after(same, said("b"), at(3));
        assert_eq!(other.as_ref().map(|drift| drift.since), Some(at(3)));
        assert!(Drift::after(other, Vec::new(), at(4)).is_none());
    }
}
