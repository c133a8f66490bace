//! A store in a temporary directory, and minimal objects to store in it.

use std::path::Path;

use waifud_store::{Mode, NewEvent, Store, StoreError, WriteTx};
use waifud_types::event::{Cause, ObjectRef};
use waifud_types::{Incarnation, Timestamp};

pub fn open(dir: &Path) -> Store {
    Store::open(
        &dir.join("waifud.db"),
        Mode::Threads { readers: 2 },
        Incarnation(7),
    )
    .unwrap()
}

pub fn event(name: &str) -> NewEvent {
    NewEvent {
        at: Timestamp::now(),
        kind: "test.happened",
        object: ObjectRef {
            kind: "cluster".into(),
            id: name.into(),
            name: name.into(),
        },
        cause: Cause::system(),
        generation: None,
        reason: None,
        message: format!("{name} happened"),
        details: serde_json::json!({}),
    }
}

/// A job that writes one event and then optionally fails.
pub fn note(
    name: String,
    fail: bool,
) -> impl FnOnce(&mut WriteTx<'_>) -> Result<u64, StoreError> + Send {
    move |tx| {
        let revision = tx.emit(&event(&name))?;
        if fail {
            Err(StoreError::Closed)
        } else {
            Ok(revision.number)
        }
    }
}
