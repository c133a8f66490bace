//! What a backup of waifud's database contains.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use waifud_types::{InstanceId, NodeId};

use super::Promise;

/// What users were promised, and what operators had ordered, when waifud's database was backed up.
#[derive(Clone)]
pub struct Backup {
    /// The promises.
    pub promises: BTreeMap<InstanceId, Promise>,
    /// The nodes that were cordoned, or uncordoned.
    pub cordons: BTreeMap<String, bool>,
    /// The owner of each address, and its node.
    pub addresses: BTreeMap<Ipv4Addr, (InstanceId, Option<NodeId>)>,
}
