//! The kinds of objects and frames that this agent knows.

use std::collections::BTreeSet;

use waifud_api::agent::{NodeSlice, SliceObject, WatchFrame};

/// What this agent understands of a watch. An agent that learns more by an upgrade watches from the beginning.
pub(super) fn known_kinds() -> BTreeSet<String> {
    let objects = SliceObject::KINDS.into_iter().map(str::to_owned);
    let frames = WatchFrame::REVISIONED.into_iter();
    let fields = NodeSlice::NEW_FIELDS.into_iter();
    objects
        .chain(frames.map(|frame| format!("frame {frame}")))
        .chain(fields.map(|field| format!("field {field}")))
        .collect()
}
