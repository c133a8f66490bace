//! Builds conditions, the statements about an instance or the node that accompany its state.

use waifud_types::Timestamp;
use waifud_types::status::Condition;

/// `since` is when the condition first held, as far as known.
pub(crate) fn condition(
    kind: &str,
    ok: bool,
    reason: &str,
    message: String,
    since: Timestamp,
) -> Condition {
    Condition {
        kind: kind.to_owned(),
        ok,
        reason: reason.to_owned(),
        message,
        since,
    }
}
