//! Conditions that nodes report become history when they begin and when they end.

use std::collections::BTreeMap;

use waifud_store::{NodeRow, WriteTx};
use waifud_types::status::Condition;

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::{Control, ControlError};

/// A reason, and a text.
type StatusEvent = (String, String);

/// What began and what ended.
fn changes(old: &[Condition], new: &[Condition]) -> Vec<StatusEvent> {
    let (old, new) = (bad(old), bad(new));
    let began = new
        .iter()
        .filter(|(kind, now)| old.get(*kind).is_none_or(|was| was.reason != now.reason))
        .map(|(kind, now)| (now.reason.clone(), format!("{kind}: {}", now.message)));
    let ended = old
        .keys()
        .filter(|kind| !new.contains_key(*kind))
        .map(|kind| ("ok".to_owned(), format!("{kind}: well again")));
    began.chain(ended).collect()
}

/// What is not well, by its kind: one of each.
fn bad(list: &[Condition]) -> BTreeMap<&str, &Condition> {
    let bad = list.iter().rev().filter(|condition| !condition.ok);
    bad.map(|condition| (condition.kind.as_str(), condition))
        .collect()
}

impl Control {
    /// Tells of conditions of a node that began or ended.
    pub(super) fn tell_conditions(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        new: &[Condition],
        cause: &Cause,
    ) -> Result<(), ControlError> {
        for (reason, text) in changes(&row.facts.conditions, new) {
            let object = event_builder::node(row.id, &row.name);
            let event = event_builder::event(self.now(), "node.condition", object, cause, text);
            tx.emit(&event.reason(reason))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, ok: bool, reason: &str) -> Condition {
        Condition {
            kind: kind.to_owned(),
            ok,
            reason: reason.to_owned(),
            message: "so it is".to_owned(),
            since: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_begins_changes_its_reason_or_ends_is_told_and_what_stays_is_not() {
        let low = [condition("state-dir", false, "low")];
        let full = [condition("state-dir", false, "full")];
        let well = [condition("state-dir", true, "fine")];
        let reasons = |old, new| {
            let told = changes(old, new).into_iter();
            told.map(|(reason, _)| reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&[], &low), ["low"]);
        assert_eq!(reasons(&low, &full), ["full"]);
        assert_eq!(reasons(&full, &[]), ["ok"]);
        assert_eq!(reasons(&full, &well), ["ok"]);
        assert!(reasons(&low, &low).is_empty() && reasons(&[], &well).is_empty());
        assert!(changes(&[], &full)[0].1.starts_with("state-dir: "));
    }
}
