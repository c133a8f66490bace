//! Events: the history, from which audit, watch and `why` are read.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Generation, Revision, Timestamp};

/// One entry of the history. Revisions increase strictly in commit order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its place in the history.
    pub revision: Revision,
    /// When it was committed.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// `instance.created`, `instance.placed`, `instance.started`, `node.ready`, …
    pub kind: String,
    /// What it is about.
    pub object: ObjectRef,
    /// Who caused it.
    pub actor: Actor,
    /// The request that caused it; null when none did.
    pub request_id: Option<String>,
    /// The spec's generation it belongs to; null for things without one.
    pub generation: Option<Generation>,
    /// A word for scripts; null where the kind says it all.
    pub reason: Option<String>,
    /// A sentence for people. Never carries secrets.
    pub message: String,
    /// More, by kind. Never carries secrets.
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
}

/// What an event is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectRef {
    /// `instance`, `template`, `image`, `node`, `token`, `cluster`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its id (a template's name, an image's digest, where there is no other).
    pub id: String,
    /// Its name at that time.
    pub name: String,
}

/// Who caused an event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Actor {
    /// `user`, `node` or `system`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A user's name, a node's name, or `waifud`.
    pub name: String,
    /// Where the request came from: `unix:uid=0`, an address; null for the system.
    pub from: Option<String>,
}
