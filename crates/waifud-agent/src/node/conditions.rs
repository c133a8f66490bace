//! Conditions of the node itself.

use waifud_types::status::Condition;
use waifud_types::{Incarnation, Timestamp};

use crate::condition::condition;

/// Set while deletions wait for an administrator.
pub(crate) fn incarnation_changed(incarnation: Incarnation, now: Timestamp) -> Condition {
    condition(
        "destruction-held",
        false,
        "incarnation-changed",
        format!(
            "waifud's database was replaced since this node last saw it ({incarnation}), for example by a restore; nothing is \
             destroyed on this node until an administrator confirms it"
        ),
        now,
    )
}
