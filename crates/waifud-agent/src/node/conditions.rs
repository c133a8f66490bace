//! Conditions of the node itself.

use waifud_types::status::Condition;
use waifud_types::{Incarnation, Timestamp};

use crate::condition::condition;

/// Set while deletions wait for an operator.
pub(crate) fn incarnation_changed(incarnation: Incarnation, now: Timestamp) -> Condition {
    condition(
        "destruction-held",
        false,
        "incarnation-changed",
        format!(
            "waifud's database is not the one that this node knew ({incarnation}), for example after a restored backup; nothing is \
             destroyed on this node until an operator confirms it"
        ),
        now,
    )
}
