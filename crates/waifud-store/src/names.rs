//! The names of the instances of each node, for the guests of all other nodes.
//!
//! Triggers give a node a new revision whenever one of its instances gets or loses its name, its address or its node. The names
//! themselves are read when a watch sends them.

use std::net::Ipv4Addr;

use rusqlite::Row;
use waifud_api::agent::{InstanceName, NodeNames};
use waifud_types::{Name, NodeId};

use crate::codec::{count, name, node_id, node16, to_i64};
use crate::{ReadTx, StoreError};

/// Names of nodes that have changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodesNames {
    /// All names of each of these nodes, in the order of their changes.
    pub nodes: Vec<NodeNames>,
    /// How many names these are.
    pub count: usize,
    /// Whether further nodes have changed.
    pub more: bool,
}

const CHANGED: &str =
    "SELECT node, revision FROM node_names WHERE revision > ?1 AND node <> ?2 ORDER BY revision";
const NAMES: &str = "SELECT i.name, l.address FROM instances i JOIN leases l ON l.instance = i.id
   WHERE i.node = ?1 AND i.deleting = 0 AND l.address IS NOT NULL AND l.removed_nic IS NULL ORDER BY i.name, l.nic";

impl ReadTx<'_> {
    /// The names of nodes other than `of` that have changed after `since`. Once there are `limit` names, no further node is
    /// added; those of one node are never divided.
    pub fn names(&self, of: NodeId, since: u64, limit: usize) -> Result<NodesNames, StoreError> {
        let mut names = NodesNames::default();
        let mut statement = self.conn.prepare_cached(CHANGED)?;
        let mut changed = statement.query((to_i64(since), node16(&of)))?;
        while let Some(row) = changed.next()? {
            if names.count >= limit {
                names.more = true;
                break;
            }
            let node = node_id(row, "node")?;
            let its = self.names_on(node)?;
            // A node without names has a cost, too.
            names.count += its.len().max(1);
            names.nodes.push(NodeNames {
                node,
                revision: self.at(count(row, "revision")?),
                names: its,
            });
        }
        Ok(names)
    }

    /// How many nodes the cluster has.
    pub fn node_count(&self) -> Result<u64, StoreError> {
        let sql = "SELECT count(*) AS nodes FROM node_names";
        let nodes = self.first(sql, [], |row| count(row, "nodes"))?;
        Ok(nodes.unwrap_or(0))
    }

    fn names_on(&self, node: NodeId) -> Result<Vec<InstanceName>, StoreError> {
        let rows: Vec<_> = self.all(NAMES, [node16(&node)], entry)?;
        let mut names: Vec<InstanceName> = Vec::new();
        for (name, address) in rows {
            match names.last_mut() {
                Some(last) if last.name == name => last.addresses.push(address),
                _ => names.push(InstanceName {
                    name,
                    addresses: vec![address],
                }),
            }
        }
        Ok(names)
    }
}

fn entry(row: &Row<'_>) -> Result<(Name, Ipv4Addr), StoreError> {
    Ok((
        name(row, "name")?,
        Ipv4Addr::from(row.get::<_, u32>("address")?),
    ))
}
