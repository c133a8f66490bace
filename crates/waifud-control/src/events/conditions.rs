//! Which conditions begin, change their reason, or end.

use std::collections::BTreeMap;

use waifud_types::status::Condition;

/// A reason and a message.
pub(crate) type ConditionEvent = (String, String);

/// The conditions that began or ended.
pub(crate) fn condition_changes(old: &[Condition], new: &[Condition]) -> Vec<ConditionEvent> {
    let (old, new) = (bad_conditions(old), bad_conditions(new));
    let began = new
        .iter()
        .filter(|(kind, now)| old.get(*kind).is_none_or(|was| was.reason != now.reason))
        .map(|(kind, now)| (now.reason.clone(), format!("{kind}: {}", now.message)));
    let ended = old
        .keys()
        .filter(|kind| !new.contains_key(*kind))
        .map(|kind| ("ok".to_owned(), format!("{kind}: resolved")));
    began.chain(ended).collect()
}

/// The bad conditions by kind, one of each.
pub(crate) fn bad_conditions(list: &[Condition]) -> BTreeMap<&str, &Condition> {
    let bad = list.iter().rev().filter(|condition| !condition.ok);
    bad.map(|condition| (condition.kind.as_str(), condition))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, ok: bool, reason: &str) -> Condition {
        Condition {
            kind: kind.to_owned(),
            ok,
            reason: reason.to_owned(),
            message: "message".to_owned(),
            since: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_conditions_that_begin_change_or_end_cause_events() {
        let low = [condition("state-dir", false, "low")];
        let full = [condition("state-dir", false, "full")];
        let well = [condition("state-dir", true, "fine")];
        let reasons = |old, new| {
            let events = condition_changes(old, new).into_iter();
            events.map(|(reason, _)| reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&[], &low), ["low"]);
        assert_eq!(reasons(&low, &full), ["full"]);
        assert_eq!(reasons(&full, &[]), ["ok"]);
        assert_eq!(reasons(&full, &well), ["ok"]);
        assert!(reasons(&low, &low).is_empty() && reasons(&[], &well).is_empty());
        assert!(
            condition_changes(&[], &full)[0]
                .1
                .starts_with("state-dir: ")
        );
    }
}
