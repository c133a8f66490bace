//! Conditions that nodes report become history when they begin and when they end.

use waifud_store::{NodeRow, WriteTx};
use waifud_types::status::Condition;

use crate::note::EventExt;
use crate::principal::Cause;
use crate::{Control, ControlError, note};

/// A reason, and a text.
type Told = (String, String);

/// What began and what ended.
fn changes(old: &[Condition], new: &[Condition]) -> Vec<Told> {
    let bad = |list: &[Condition], kind: &str| {
        list.iter()
            .find(|condition| condition.kind == kind && !condition.ok)
            .map(|condition| condition.reason.clone())
    };
    let began = new
        .iter()
        .filter(|condition| !condition.ok)
        .filter(|condition| bad(old, &condition.kind).as_ref() != Some(&condition.reason))
        .map(|condition| {
            let text = format!("{}: {}", condition.kind, condition.message);
            (condition.reason.clone(), text)
        });
    let ended = old
        .iter()
        .filter(|condition| !condition.ok && bad(new, &condition.kind).is_none())
        .map(|condition| ("ok".to_owned(), format!("{}: well again", condition.kind)));
    began.chain(ended).collect()
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
            let object = note::node(row.id, &row.name);
            let event = note::event(self.now(), "node.condition", object, cause, text);
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
