//! What every node knows about the other nodes: cluster-wide objects of the watch.
//!
//! A change is one write, whatever the number of nodes, and wakes [`Topic::Cluster`]. Each watch then reads the changes
//! after its own revision through an index. Contacts, facts and load of a node do not change its peer.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rusqlite::Row;
use waifud_api::agent::{Peer, SliceKey};
use waifud_types::{MeshFacts, NodeId, Revision};

use crate::codec::{count, json, name, node_id, node16, to_i64};
use crate::nodes::{maybe_net, subnet};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// The kind of a peer in `deleted_objects`.
const PEER: &str = "peer";

/// A peer and the revision of its last change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRow {
    /// The peer as it is sent to nodes.
    pub peer: Peer,
    /// The revision of the last change.
    pub peer_revision: u64,
}

/// A cluster-wide object that was deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeletedObject {
    /// The object.
    pub key: SliceKey,
    /// The revision of the deletion.
    pub revision: u64,
}

impl ReadTx<'_> {
    /// The peers of a node that changed after `since`, in the order of their changes.
    pub fn peers(&self, of: NodeId, since: u64) -> Result<Vec<PeerRow>, StoreError> {
        let mut rows: Vec<PeerRow> = self.all(
            "SELECT id, name, subnet, mesh, reachable, peer_revision FROM nodes
                  WHERE peer_revision > ?1 AND id <> ?2 ORDER BY peer_revision",
            (to_i64(since), node16(&of)),
            peer,
        )?;
        if !rows.is_empty() {
            let mut moved = self.moved_addresses()?;
            for PeerRow { peer, .. } in &mut rows {
                let addresses = moved.remove(&peer.id).unwrap_or_default();
                peer.extra = addresses.into_iter().map(Ipv4Net::from).collect();
            }
        }
        Ok(rows)
    }

    /// The addresses on `default` of instances that are not on the node of their address's subnet, by the node that they are on.
    /// Sorted.
    pub fn moved_addresses(&self) -> Result<BTreeMap<NodeId, Vec<Ipv4Addr>>, StoreError> {
        let sql = "SELECT i.node, i.home, l.address FROM instances i JOIN leases l ON l.instance = i.id
                    WHERE i.home IS NOT NULL AND i.node IS NOT NULL AND l.address IS NOT NULL ORDER BY l.address";
        let rows: Vec<(NodeId, Option<Ipv4Net>, Ipv4Addr)> = self.all(sql, [], |row| {
            let address = Ipv4Addr::from(row.get::<_, u32>("address")?);
            Ok((node_id(row, "node")?, maybe_net(row, "home")?, address))
        })?;
        let mut moved = BTreeMap::<_, Vec<_>>::new();
        for (node, home, address) in rows {
            // Other nics may have fixed addresses on other networks.
            if home.is_some_and(|home| home.contains(&address)) {
                moved.entry(node).or_default().push(address);
            }
        }
        Ok(moved)
    }

    /// Cluster-wide objects that were deleted after `since`, in the order of their deletion.
    pub fn deleted_objects(&self, since: u64) -> Result<Vec<DeletedObject>, StoreError> {
        let sql = "SELECT id, revision FROM deleted_objects WHERE revision > ?1 AND kind = ?2 ORDER BY revision";
        self.all(sql, (to_i64(since), PEER), |row| {
            Ok(DeletedObject {
                key: SliceKey::Peer(node_id(row, "id")?),
                revision: count(row, "revision")?,
            })
        })
    }
}

impl WriteTx<'_> {
    /// Records that other nodes must receive this node again. `revision` is that of the event about the change.
    pub(crate) fn peer_changed(
        &mut self,
        id: NodeId,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET peer_revision = ?2 WHERE id = ?1")?
            .execute((node16(&id), to_i64(revision.number)))?;
        self.conn
            .prepare_cached("DELETE FROM deleted_objects WHERE kind = ?1 AND id = ?2")?
            .execute((PEER, node16(&id)))?;
        self.touch(Topic::Cluster);
        Ok(())
    }

    /// Records that the node left the cluster. `revision` is that of the event about its removal.
    pub(crate) fn peer_removed(
        &mut self,
        id: NodeId,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO deleted_objects (kind, id, revision) VALUES (?1, ?2, ?3)",
            )?
            .execute((PEER, node16(&id), to_i64(revision.number)))?;
        self.touch(Topic::Cluster);
        Ok(())
    }
}

fn peer(row: &Row<'_>) -> Result<PeerRow, StoreError> {
    let mesh: Option<MeshFacts> = json(row, "mesh")?;
    let (public_key, endpoints) = match mesh {
        Some(mesh) => (Some(mesh.public_key), mesh.endpoints),
        None => (None, Vec::new()),
    };
    Ok(PeerRow {
        peer: Peer {
            id: node_id(row, "id")?,
            name: name(row, "name")?,
            subnets: vec![subnet(row)?],
            extra: Vec::new(),
            public_key,
            endpoints,
            reachable: row.get("reachable")?,
        },
        peer_revision: count(row, "peer_revision")?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rusqlite::Connection;
    use waifud_types::Incarnation;

    use super::*;
    use crate::migrate::{MIGRATIONS, migrate, run};

    const NODES: u32 = 1000;

    fn id(number: u32) -> NodeId {
        format!("01890a5d-ac96-774b-bcce-{number:012x}")
            .parse()
            .unwrap()
    }

    fn insert(conn: &Connection, number: u32) {
        conn.execute(
            "INSERT INTO nodes (id, name, facts, subnet, joined_at, slice_revision) VALUES (?1, ?2, '{}', ?3, 0, 0)",
            (
                node16(&id(number)),
                format!("node{number}"),
                format!("10.{}.{}.0/24", number / 256, number % 256),
            ),
        )
        .unwrap();
    }

    /// A database of schema 14 with two nodes and seven events, of which the last was trimmed; then the newest schema.
    fn migrated() -> (tempfile::TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        let mut conn = Connection::open(&path).unwrap();
        run(&mut conn, &path, &MIGRATIONS[..14]).unwrap();
        insert(&conn, 0);
        insert(&conn, 1);
        conn.execute_batch(
            "INSERT INTO events (revision, at, kind, object_type, object_id, object_name, actor, message, details)
             VALUES (7, 0, 'k', 't', 'i', 'n', '{}', 'm', '{}');
             DELETE FROM events",
        )
        .unwrap();
        migrate(&mut conn, &path).unwrap();
        (dir, conn)
    }

    fn changed(conn: &Connection, since: u64) -> Vec<NodeId> {
        let rows = ReadTx::new(conn, Incarnation(1))
            .peers(id(0), since)
            .unwrap();
        rows.into_iter().map(|row| row.peer.id).collect()
    }

    #[test]
    fn after_the_migration_every_resumed_watch_receives_the_peers_once() {
        let (_dir, conn) = migrated();
        for since in [0, 3, 7] {
            assert_eq!(changed(&conn, since), [id(1)], "{since}");
        }
        assert!(changed(&conn, 8).is_empty());
    }

    #[test]
    fn a_change_among_a_thousand_nodes_is_one_row_for_each_watch() {
        let (_dir, conn) = migrated();
        for number in 2..NODES {
            insert(&conn, number);
        }
        conn.execute("UPDATE nodes SET peer_revision = 9", [])
            .unwrap();
        assert_eq!(changed(&conn, 0).len(), NODES as usize - 1);
        conn.execute(
            "UPDATE nodes SET peer_revision = 10 WHERE id = ?1",
            [node16(&id(500))],
        )
        .unwrap();
        let begun = Instant::now();
        for _ in 0..NODES {
            assert_eq!(changed(&conn, 9), [id(500)]);
        }
        println!(
            "{NODES} watches read a changed peer in {:?}",
            begun.elapsed()
        );
        for (query, index) in [
            (
                "SELECT id FROM nodes WHERE peer_revision > 9 AND id <> x'00' ORDER BY peer_revision",
                "nodes_by_peer_revision",
            ),
            (
                "SELECT id FROM deleted_objects WHERE revision > 9 AND kind = 'peer' ORDER BY revision",
                "deleted_objects_by_revision",
            ),
        ] {
            let plan: String = conn
                .query_row(&format!("EXPLAIN QUERY PLAN {query}"), [], |row| row.get(3))
                .unwrap();
            assert!(plan.contains(index), "{plan}");
        }
    }
}
