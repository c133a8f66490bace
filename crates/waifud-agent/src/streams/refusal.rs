//! Builds refusals of stream requests.

use waifud_api::stream::{RefusalReason, StreamRefusal};

pub(super) fn refusal(reason: RefusalReason, message: impl Into<String>) -> StreamRefusal {
    StreamRefusal {
        reason,
        message: message.into(),
    }
}
