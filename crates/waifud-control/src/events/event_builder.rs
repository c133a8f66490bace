//! Events of ours, made in one line.

use serde_json::Value;
use waifud_store::{NewEvent, TokenRow};
use waifud_types::event::ObjectRef;
use waifud_types::{Digest, Generation, Incarnation, InstanceId, Name, NodeId, Timestamp};

use crate::auth::principal::Cause;

/// Every type of object that events are about.
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
        "events about {} can't be asked for",
        object.kind
    );
    NewEvent {
        at,
        kind,
        object,
        actor: cause.actor.clone(),
        request_id: cause.request_id.clone(),
        generation: None,
        reason: None,
        message: message.into(),
        details: Value::Object(serde_json::Map::new()),
    }
}

/// What may be added to an event.
pub trait EventExt {
    /// The spec's generation.
    fn generation(self, generation: Generation) -> Self;
    /// A word for scripts.
    fn reason(self, reason: impl Into<String>) -> Self;
    /// More.
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

/// An instance.
pub fn instance(id: InstanceId, name: &Name) -> ObjectRef {
    ObjectRef {
        kind: "instance".to_owned(),
        id: id.to_string(),
        name: name.to_string(),
    }
}

/// A node.
pub fn node(id: NodeId, name: &Name) -> ObjectRef {
    ObjectRef {
        kind: "node".to_owned(),
        id: id.to_string(),
        name: name.to_string(),
    }
}

/// A template.
pub fn template(name: &str) -> ObjectRef {
    ObjectRef {
        kind: "template".to_owned(),
        id: name.to_owned(),
        name: name.to_owned(),
    }
}

/// A token: by its name and the part of it that is no secret.
pub fn token(row: &TokenRow) -> ObjectRef {
    ObjectRef {
        kind: "token".to_owned(),
        id: format!("{:016x}", u64::from_be_bytes(row.id)),
        name: row.name.to_string(),
    }
}

/// A network.
pub fn network(name: &Name) -> ObjectRef {
    ObjectRef {
        kind: "network".to_owned(),
        id: name.to_string(),
        name: name.to_string(),
    }
}

/// waifud itself.
pub fn waifud(incarnation: Incarnation) -> ObjectRef {
    ObjectRef {
        kind: "waifud".to_owned(),
        id: incarnation.to_string(),
        name: "waifud".to_owned(),
    }
}

/// An image.
pub fn image(digest: Digest) -> ObjectRef {
    ObjectRef {
        kind: "image".to_owned(),
        id: digest.to_string(),
        name: digest.short(),
    }
}

/// A time to the second, for sentences.
pub fn to_the_second(at: Timestamp) -> String {
    at.round(jiff::Unit::Second).unwrap_or(at).to_string()
}
