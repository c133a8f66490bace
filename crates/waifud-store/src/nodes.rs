//! Nodes: their reported facts, their subnets, and whether they are reachable.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rusqlite::{Row, named_params};
use waifud_api::agent::Unmanaged;
use waifud_types::node::{NodeFacts, Resources};
use waifud_types::{BootId, Epoch, InstanceId, Name, NodeId, Revision, Timestamp};

use crate::codec::{
    corrupt, count, id16, json, maybe_time, name, node_id, node16, size, to_i64, to_json,
};
use crate::error::taken;
use crate::{Labels, ReadTx, StoreError, Taken, Topic, WriteTx};

/// A node that joins.
#[derive(Clone, PartialEq, Debug)]
pub struct NewNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// The reported facts.
    pub facts: NodeFacts,
    /// The guests' subnet on it.
    pub subnet: Ipv4Net,
    /// The current time.
    pub at: Timestamp,
}

/// A stored node.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeRow {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// The facts in its last report.
    pub facts: NodeFacts,
    /// Labels that administrators set.
    pub labels: Labels,
    /// Whether it is reachable.
    pub reachable: bool,
    /// Whether it does not accept new instances.
    pub cordoned: bool,
    /// The drain that was requested, until no instance is left.
    pub drain: Option<DrainRow>,
    /// The guests' subnet on it.
    pub subnet: Ipv4Net,
    /// The last contact; written only when the node becomes unreachable, `None` before.
    pub last_contact: Option<Timestamp>,
    /// The unmanaged objects on it.
    pub unmanaged: UnmanagedSummary,
    /// Whether an administrator has confirmed the database for it; false only after a restore.
    pub confirmed: bool,
    /// The boot id at its last contact; `None` until it was reported.
    pub boot_id: Option<BootId>,
    /// The capacity that is reserved for instances.
    pub promised: Resources,
    /// The revision of the last change of the node's own configuration.
    pub slice_revision: u64,
}

/// The order to move all instances of a node to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrainRow {
    /// When it was requested.
    pub began_at: Timestamp,
    /// Whether the instances may get other addresses.
    pub new_address: bool,
}

/// The unmanaged objects on a node; [`ReadTx::unmanaged_on`] reads them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnmanagedSummary {
    /// Their number.
    pub count: u32,
    /// Their addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether the node has reported them since the database was restored.
    pub swept: bool,
}

impl NodeRow {
    /// The value of one of its labels; an administrator's label overrides a reported one.
    pub fn label(&self, key: &str) -> Option<&String> {
        self.labels.get(key).or_else(|| self.facts.labels.get(key))
    }
}

impl ReadTx<'_> {
    /// One node by id.
    pub fn node(&self, id: NodeId) -> Result<Option<NodeRow>, StoreError> {
        self.first("SELECT * FROM nodes WHERE id = ?1", [node16(&id)], node)
    }

    /// One node by name.
    pub fn node_named(&self, wanted: &str) -> Result<Option<NodeRow>, StoreError> {
        self.first("SELECT * FROM nodes WHERE name = ?1", [wanted], node)
    }

    /// The node with exactly this subnet of guests.
    pub fn node_with_subnet(&self, subnet: Ipv4Net) -> Result<Option<NodeRow>, StoreError> {
        let sql = "SELECT * FROM nodes WHERE subnet = ?1";
        self.first(sql, [subnet.to_string()], node)
    }

    /// Nodes by name, after `after`.
    pub fn nodes(&self, after: &str, limit: u32) -> Result<Vec<NodeRow>, StoreError> {
        self.all(
            "SELECT * FROM nodes WHERE name > ?1 ORDER BY name LIMIT ?2",
            (after, limit),
            node,
        )
    }

    /// The unmanaged objects on the node. They may be megabytes, so they are read only here.
    pub fn unmanaged_on(&self, id: NodeId) -> Result<Vec<Unmanaged>, StoreError> {
        self.conn
            .prepare_cached("SELECT things FROM unmanaged WHERE node = ?1")?
            .query_and_then([node16(&id)], |row| json(row, "things"))?
            .next()
            .unwrap_or_else(|| Ok(Vec::new()))
    }

    /// The nodes that report an unmanaged copy of the instance, with the epoch of the copy; `None` if the node has no record
    /// of it.
    pub fn unmanaged_copies(
        &self,
        id: InstanceId,
    ) -> Result<Vec<(NodeId, Option<Epoch>)>, StoreError> {
        let mut copies = Vec::new();
        let mut lists = self
            .conn
            .prepare_cached("SELECT node, things FROM unmanaged WHERE instr(things, ?1) > 0")?;
        let lists = lists.query_and_then([id.to_string()], |row| {
            Ok::<_, StoreError>((
                node_id(row, "node")?,
                json::<Vec<Unmanaged>>(row, "things")?,
            ))
        })?;
        for list in lists {
            let (node, things) = list?;
            let copy = things.iter().filter(|entry| entry.instance == id);
            let epoch = copy.map(|entry| entry.record.as_ref().map(|record| record.epoch));
            copies.extend(epoch.max().map(|epoch| (node, epoch)));
        }
        Ok(copies)
    }

    /// The first node that no administrator has confirmed since the database was restored.
    pub fn unconfirmed_node(&self) -> Result<Option<Name>, StoreError> {
        self.conn
            .prepare_cached("SELECT name FROM nodes WHERE confirmed = 0 ORDER BY name LIMIT 1")?
            .query_and_then([], |row| name(row, "name"))?
            .next()
            .transpose()
    }

    /// Whether the instance was in a restored database, and its node was not confirmed since.
    pub fn is_restored(&self, id: InstanceId) -> Result<bool, StoreError> {
        let found = self.first(
            "SELECT 1 AS found FROM instances WHERE id = ?1 AND restored = 1",
            [id16(&id)],
            |_| Ok(()),
        )?;
        Ok(found.is_some())
    }

    /// Whether every node has reported its unmanaged objects since the database was restored.
    pub fn all_swept(&self) -> Result<bool, StoreError> {
        let unswept = self.first(
            "SELECT 1 AS found FROM nodes WHERE swept = 0 LIMIT 1",
            [],
            |_| Ok(()),
        )?;
        Ok(unswept.is_none())
    }

    /// Every node's subnet, those of removed nodes included, and those that an instance elsewhere has an address of.
    pub fn subnets(&self) -> Result<Vec<Ipv4Net>, StoreError> {
        self.all(
            "SELECT subnet FROM nodes UNION SELECT subnet FROM removed_nodes
                  UNION SELECT home FROM instances WHERE home IS NOT NULL
                  UNION SELECT subnet FROM client_subnet",
            [],
            subnet,
        )
    }
}

impl WriteTx<'_> {
    /// Adds a node. `revision` is that of the event about this change.
    pub fn insert_node(&mut self, new: &NewNode, revision: Revision) -> Result<(), StoreError> {
        let fabric = self.fabric()?.kind;
        self.conn
            .prepare_cached(
                "INSERT INTO nodes (id, name, facts, mesh, subnet, joined_at, slice_revision)
                 VALUES (:id, :name, :facts, :mesh, :subnet, :at, :revision)",
            )?
            .execute(named_params! {
                ":id": node16(&new.id),
                ":name": new.name.as_str(),
                ":facts": to_json("a node's facts", &new.facts)?,
                ":mesh": to_json("a node's mesh", &new.facts.mesh)?,
                ":subnet": new.subnet.to_string(),
                ":at": new.at.as_microsecond(),
                ":revision": to_i64(revision.number),
            })
            .map_err(|e| {
                taken(
                    e,
                    &[
                        ("nodes.name", Taken::NodeName),
                        ("nodes.subnet", Taken::Subnet),
                    ],
                )
            })?;
        self.touch(Topic::Node(new.id));
        self.fabric_was(fabric, revision)?;
        self.peer_changed(new.id, revision)
    }

    /// Notes that the database does not know what is on a node, because it was restored: the node is given no instance before it
    /// has reported that, and unless it is `confirmed`, it destroys nothing before an administrator has confirmed it.
    pub fn expect_unmanaged(&mut self, id: NodeId, confirmed: bool) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET swept = 0, confirmed = ?2 WHERE id = ?1")?
            .execute((node16(&id), confirmed))?;
        Ok(())
    }

    /// Replaces the reported facts of the node.
    pub fn set_node_facts(&mut self, id: NodeId, facts: &NodeFacts) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET facts = ?2 WHERE id = ?1")?
            .execute((node16(&id), to_json("a node's facts", facts)?))?;
        Ok(())
    }

    /// Renames the node. `revision` is that of the event about this change.
    pub fn rename_node(
        &mut self,
        id: NodeId,
        name: &Name,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE nodes SET name = ?2, slice_revision = ?3 WHERE id = ?1";
        self.set_unique(id, sql, name.as_str(), revision)
    }

    /// Changes the subnet of the node. `revision` is that of the event about this change.
    pub fn set_node_subnet(
        &mut self,
        id: NodeId,
        subnet: Ipv4Net,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE nodes SET subnet = ?2, slice_revision = ?3 WHERE id = ?1";
        self.set_unique(id, sql, &subnet.to_string(), revision)
    }

    /// Sets the name or the subnet of a node and notifies its watch.
    fn set_unique(
        &mut self,
        id: NodeId,
        sql: &str,
        value: &str,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(sql)?
            .execute((node16(&id), value, to_i64(revision.number)))
            .map_err(|e| {
                taken(
                    e,
                    &[
                        ("nodes.name", Taken::NodeName),
                        ("nodes.subnet", Taken::Subnet),
                    ],
                )
            })?;
        self.touch(Topic::Node(id));
        self.peer_changed(id, revision)
    }

    /// Records whether the node is reachable.
    pub fn set_node_reachable(
        &mut self,
        id: NodeId,
        reachable: bool,
        last_contact: Timestamp,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET reachable = ?2, last_contact = ?3 WHERE id = ?1")?
            .execute((node16(&id), reachable, last_contact.as_microsecond()))?;
        // Its instances' states follow from it.
        for instance in self.instances_on(id)? {
            self.touch(Topic::Instance(instance));
        }
        self.peer_changed(id, revision)
    }

    /// Replaces the list of unmanaged objects on the node.
    pub fn set_node_unmanaged(
        &mut self,
        id: NodeId,
        unmanaged: &[Unmanaged],
    ) -> Result<(), StoreError> {
        let mut addresses: Vec<_> = unmanaged.iter().flat_map(|it| &it.addresses).collect();
        addresses.sort_unstable();
        addresses.dedup();
        self.conn
            .prepare_cached(
                "UPDATE nodes SET unmanaged_count = ?2, unmanaged_addresses = ?3, swept = 1 WHERE id = ?1",
            )?
            .execute((
                node16(&id),
                u32::try_from(unmanaged.len()).unwrap_or(u32::MAX),
                to_json("addresses", &addresses)?,
            ))?;
        if unmanaged.is_empty() {
            self.conn
                .prepare_cached("DELETE FROM unmanaged WHERE node = ?1")?
                .execute([node16(&id)])?;
        } else {
            self.conn
                .prepare_cached("INSERT OR REPLACE INTO unmanaged (node, things) VALUES (?1, ?2)")?
                .execute((node16(&id), to_json("unmanaged objects", &unmanaged)?))?;
        }
        Ok(())
    }

    /// Records an administrator's confirmation that the restored database is the right one for this node. `revision` is that
    /// of the event about this change. The node and its instances are sent again.
    pub fn confirm_node(&mut self, id: NodeId, revision: Revision) -> Result<(), StoreError> {
        let revision = to_i64(revision.number);
        self.conn
            .prepare_cached("UPDATE nodes SET confirmed = 1, slice_revision = ?2 WHERE id = ?1")?
            .execute((node16(&id), revision))?;
        self.conn
            .prepare_cached(
                "UPDATE instances SET restored = 0, slice_revision = ?2 WHERE node = ?1 AND restored = 1",
            )?
            .execute((node16(&id), revision))?;
        self.touch(Topic::Node(id));
        Ok(())
    }
}

pub(crate) fn subnet(row: &Row<'_>) -> Result<Ipv4Net, StoreError> {
    parsed("subnet", &row.get::<_, String>("subnet")?)
}

/// A network that may be missing.
pub(crate) fn maybe_net(
    row: &Row<'_>,
    column: &'static str,
) -> Result<Option<Ipv4Net>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| parsed(column, &text)).transpose()
}

fn parsed(column: &'static str, text: &str) -> Result<Ipv4Net, StoreError> {
    text.parse()
        .map_err(|e: ipnet::AddrParseError| corrupt(column)(e.into()))
}

fn drain(row: &Row<'_>) -> Result<Option<DrainRow>, StoreError> {
    let Some(began_at) = maybe_time(row, "drain_began_at")? else {
        return Ok(None);
    };
    let new_address = row.get("drain_new_address")?;
    Ok(Some(DrainRow {
        began_at,
        new_address,
    }))
}

pub(crate) fn node(row: &Row<'_>) -> Result<NodeRow, StoreError> {
    Ok(NodeRow {
        id: node_id(row, "id")?,
        name: name(row, "name")?,
        facts: json(row, "facts")?,
        labels: json(row, "labels")?,
        reachable: row.get("reachable")?,
        cordoned: row.get("cordoned")?,
        drain: drain(row)?,
        subnet: subnet(row)?,
        last_contact: maybe_time(row, "last_contact")?,
        unmanaged: UnmanagedSummary {
            count: row.get("unmanaged_count")?,
            addresses: json(row, "unmanaged_addresses")?,
            swept: row.get("swept")?,
        },
        confirmed: row.get("confirmed")?,
        boot_id: row
            .get::<_, Option<String>>("boot_id")?
            .map(|text| text.parse())
            .transpose()
            .map_err(|e: waifud_types::id::ParseIdError| corrupt("boot_id")(e.into()))?,
        promised: Resources {
            cpus: u32::try_from(count(row, "promised_cpus")?).unwrap_or(u32::MAX),
            memory_bytes: size(row, "promised_memory_bytes")?,
        },
        slice_revision: count(row, "slice_revision")?,
    })
}
