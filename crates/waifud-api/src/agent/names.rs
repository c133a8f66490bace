//! Names of instances, which every node resolves for its guests.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::{Name, NodeId, Revision};

/// All names of the instances of one node. They replace those that were sent before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct NodeNames {
    /// The node.
    pub node: NodeId,
    /// Grows with each change of the names of any node. It is not a revision of the history. A watch resumes from the last one.
    pub revision: Revision,
    /// Sorted by name.
    pub names: Vec<InstanceName>,
}

/// The name of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceName {
    /// The name.
    pub name: Name,
    /// Its addresses on `default`, the first nic's first.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Ipv4Addr>,
}

/// The header of a watch that asks for names: a revision of names, or [`ALL_NAMES`]. waifud ignores it in versions that send
/// none, and sends none to agents of versions that do not ask.
pub const NAMES_HEADER: &str = "waifud-names";

/// The value of [`NAMES_HEADER`] that requests all names.
pub const ALL_NAMES: &str = "all";

/// Where a watch begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WatchStart {
    /// The last revision of the slice that the agent has stored; `None` for the beginning.
    pub since: Option<Revision>,
    /// The last revision of names that the agent has stored; `None` for all names.
    pub names: Option<Revision>,
}

impl WatchStart {
    /// The path of the request.
    pub fn path(&self) -> String {
        self.since.map_or_else(
            || "/v1/agent/watch".to_owned(),
            |revision| format!("/v1/agent/watch?since={revision}"),
        )
    }

    /// The value of [`NAMES_HEADER`].
    pub fn names_header(&self) -> String {
        self.names
            .map_or_else(|| ALL_NAMES.to_owned(), |revision| revision.to_string())
    }
}
