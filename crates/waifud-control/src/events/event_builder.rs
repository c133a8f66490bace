//! Builders for events and their objects.

use serde_json::Value;
use waifud_store::{InstanceRow, NewEvent, TokenRow};
use waifud_types::event::{Cause, ObjectRef};
use waifud_types::{Digest, Generation, Incarnation, InstanceId, Name, NodeId, Timestamp};

use crate::Control;

/// All types of objects of events.
pub const OBJECT_TYPES: [&str; 8] = [
    "instance",
    "template",
    "image",
    "node",
    "network",
    "token",
    "join-token",
    "waifud",
];

/// An event about `object`.
pub fn event(
    at: Timestamp,
    kind: &'static str,
    object: ObjectRef,
    cause: &Cause,
    message: impl Into<String>,
) -> NewEvent {
    debug_assert!(
        OBJECT_TYPES.contains(&object.kind.as_str()),
        "events about {} cannot be filtered",
        object.kind
    );
    NewEvent {
        at,
        kind,
        object,
        cause: cause.clone(),
        generation: None,
        reason: None,
        message: message.into(),
        details: Value::Object(serde_json::Map::new()),
    }
}

impl Control {
    /// An event about `object` that happens now.
    pub(crate) fn event(
        &self,
        kind: &'static str,
        object: ObjectRef,
        cause: &Cause,
        message: impl Into<String>,
    ) -> NewEvent {
        event(self.now(), kind, object, cause, message)
    }

    /// An event about an instance, with its generation, that happens now.
    pub(crate) fn instance_event(
        &self,
        kind: &'static str,
        row: &InstanceRow,
        cause: &Cause,
        message: impl Into<String>,
    ) -> NewEvent {
        self.event(kind, instance(row.id, &row.name), cause, message)
            .generation(row.generation)
    }
}

/// Optional parts of an event.
pub trait EventExt {
    /// The generation of the spec.
    fn generation(self, generation: Generation) -> Self;
    /// A reason code for scripts.
    fn reason(self, reason: impl Into<String>) -> Self;
    /// Details as JSON.
    fn details(self, details: Value) -> Self;
}

impl EventExt for NewEvent {
    fn generation(mut self, generation: Generation) -> Self {
        self.generation = Some(generation);
        self
    }

    fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    fn details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }
}

/// An instance as the object of an event.
pub fn instance(id: InstanceId, name: &Name) -> ObjectRef {
    ObjectRef {
        kind: "instance".to_owned(),
        id: id.to_string(),
        name: name.to_string(),
    }
}

/// A node as the object of an event.
pub fn node(id: NodeId, name: &Name) -> ObjectRef {
    ObjectRef {
        kind: "node".to_owned(),
        id: id.to_string(),
        name: name.to_string(),
    }
}

/// A template as the object of an event.
pub fn template(name: &str) -> ObjectRef {
    ObjectRef {
        kind: "template".to_owned(),
        id: name.to_owned(),
        name: name.to_owned(),
    }
}

/// A token as the object of an event: its name and its public part.
pub fn token(row: &TokenRow) -> ObjectRef {
    ObjectRef {
        kind: "token".to_owned(),
        id: format!("{:016x}", u64::from_be_bytes(row.id)),
        name: row.name.to_string(),
    }
}

/// A network as the object of an event.
pub fn network(name: &Name) -> ObjectRef {
    ObjectRef {
        kind: "network".to_owned(),
        id: name.to_string(),
        name: name.to_string(),
    }
}

/// waifud as the object of an event.
pub fn waifud(incarnation: Incarnation) -> ObjectRef {
    ObjectRef {
        kind: "waifud".to_owned(),
        id: incarnation.to_string(),
        name: "waifud".to_owned(),
    }
}

/// An image as the object of an event.
pub fn image(digest: Digest) -> ObjectRef {
    ObjectRef {
        kind: "image".to_owned(),
        id: digest.to_string(),
        name: digest.short(),
    }
}

/// A time with second precision, for messages.
pub fn to_the_second(at: Timestamp) -> String {
    at.round(jiff::Unit::Second).unwrap_or(at).to_string()
}
