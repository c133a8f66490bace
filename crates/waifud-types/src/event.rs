//! Events: the history, which audit, watch and `why` are based on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Generation, Revision, Timestamp};

/// An entry of the history. Revisions increase strictly in commit order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Position in the history.
    pub revision: Revision,
    /// Commit time.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// Type of the event: `instance.created`, `instance.placed`, `instance.started`, `node.ready` and others.
    pub kind: String,
    /// The object of the event.
    pub object: ObjectRef,
    /// The cause of the event.
    pub actor: Actor,
    /// Id of the request that caused it; null if none did.
    pub request_id: Option<String>,
    /// Generation of the spec; null for objects without one.
    pub generation: Option<Generation>,
    /// A stable reason for programs; null if the kind is sufficient.
    pub reason: Option<String>,
    /// A message for users. Never contains secrets.
    pub message: String,
    /// Further data, depending on the kind. Never contains secrets.
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
}

/// The object of an event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectRef {
    /// Type of the object: `instance`, `template`, `image`, `node`, `token`, `cluster` and others.
    #[serde(rename = "type")]
    pub kind: String,
    /// Id of the object; the name of a template, the digest of an image.
    pub id: String,
    /// Name of the object at that time.
    pub name: String,
}

/// The cause of an event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Actor {
    /// `user`, `node` or `system`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name of the user or of the node, or `waifud`.
    pub name: String,
    /// Origin of the request: `unix:uid=0` or an IP address; null for the system.
    pub from: Option<String>,
}

/// The actor and the request that cause a change, for its events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// The actor.
    pub actor: Actor,
    /// Id of the request; `None` if waifud itself is the actor.
    pub request_id: Option<String>,
}

impl Cause {
    /// A request of an actor of this type, `user` or `node`.
    pub fn request(kind: &str, name: &str, from: String, request_id: &str) -> Self {
        Self {
            actor: Actor {
                kind: kind.to_owned(),
                name: name.to_owned(),
                from: Some(from),
            },
            request_id: Some(request_id.to_owned()),
        }
    }

    /// waifud itself.
    pub fn system() -> Self {
        Self {
            actor: Actor {
                kind: "system".to_owned(),
                name: "waifud".to_owned(),
                from: None,
            },
            request_id: None,
        }
    }
}
