//! Events for conditions of nodes that begin, change their reason, or end.

use waifud_store::{NodeRow, WriteTx};
use waifud_types::event::Cause;
use waifud_types::status::Condition;

use crate::events::condition_changes;
use crate::events::event_builder::{self, EventExt};
use crate::{Control, ControlError};

impl Control {
    /// Writes an event for each condition of a node that began or ended.
    pub(super) fn emit_conditions(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        new: &[Condition],
        cause: &Cause,
    ) -> Result<(), ControlError> {
        for (reason, text) in condition_changes(&row.facts.conditions, new) {
            let object = event_builder::node(row.id, &row.name);
            let event = self.event("node.condition", object, cause, text);
            tx.emit(&event.reason(reason))?;
        }
        Ok(())
    }
}
