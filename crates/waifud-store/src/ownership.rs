//! The nodes that have a part in an instance, and what each of them reserves for it.
//!
//! An instance has at most one owner. During a handover the old owner releases the instance while the new one receives
//! it; both hold a reservation and volumes. `instances.node` is the owner, kept by triggers.

use rusqlite::Row;
use serde::{Deserialize, Serialize};
use waifud_types::{Epoch, InstanceId, NodeId};

use crate::codec::{count, id16, instance_id, node_id, node16, to_i64, to_word, word};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// The part that a node has in an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnershipRole {
    /// It runs the instance.
    Owner,
    /// It will run the instance after the owner has released it.
    Receiving,
    /// It gives the instance up.
    Releasing,
}

/// A node's part in an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnershipRow {
    /// The instance.
    pub instance: InstanceId,
    /// The node.
    pub node: NodeId,
    /// The epoch of the instance in which the node has this role.
    pub epoch: Epoch,
    /// The role.
    pub role: OwnershipRole,
}

impl ReadTx<'_> {
    /// The nodes that have a part in an instance; none until it is placed.
    pub fn ownership(&self, id: InstanceId) -> Result<Vec<OwnershipRow>, StoreError> {
        self.conn
            .prepare_cached("SELECT * FROM ownership WHERE instance = ?1 ORDER BY node")?
            .query_and_then([id16(&id)], ownership)?
            .collect()
    }
}

impl WriteTx<'_> {
    /// Gives a node a role in an instance, or changes its role. Fails if that made a second owner.
    pub fn set_ownership(&mut self, row: &OwnershipRow) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO ownership (instance, node, epoch, role) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (instance, node) DO UPDATE SET epoch = excluded.epoch, role = excluded.role",
            )?
            .execute((
                id16(&row.instance),
                node16(&row.node),
                to_i64(row.epoch.0),
                to_word("a role", &row.role)?,
            ))?;
        self.touch(Topic::Instance(row.instance));
        self.touch(Topic::Node(row.node));
        Ok(())
    }

    /// Ends a node's part in an instance, with its reservation and volumes.
    pub fn end_ownership(&mut self, id: InstanceId, node: NodeId) -> Result<(), StoreError> {
        for table in ["reservations", "volumes", "ownership"] {
            self.conn
                .prepare_cached(&format!(
                    "DELETE FROM {table} WHERE instance = ?1 AND node = ?2"
                ))?
                .execute((id16(&id), node16(&node)))?;
        }
        self.touch(Topic::Instance(id));
        self.touch(Topic::Node(node));
        Ok(())
    }
}

fn ownership(row: &Row<'_>) -> Result<OwnershipRow, StoreError> {
    Ok(OwnershipRow {
        instance: instance_id(row, "instance")?,
        node: node_id(row, "node")?,
        epoch: Epoch(count(row, "epoch")?),
        role: word(row, "role")?,
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use crate::migrate::{MIGRATIONS, migrate, run};

    const INSTANCE: &str = "x'00000000000000000000000000000001'";
    const WAITING: &str = "x'00000000000000000000000000000002'";
    const OLD: &str = "x'000000000000000000000000000000aa'";
    const NEW: &str = "x'000000000000000000000000000000bb'";

    /// A database of schema 13 with two nodes, an instance on the first and one that waits; then the newest schema.
    fn migrated() -> (tempfile::TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        let mut conn = Connection::open(&path).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        run(&mut conn, &path, &MIGRATIONS[..13]).unwrap();
        for (id, name, subnet) in [(OLD, "old", "10.0.0.0/24"), (NEW, "new", "10.0.1.0/24")] {
            conn.execute_batch(&format!(
                "INSERT INTO nodes (id, name, facts, subnet, joined_at, slice_revision)
                 VALUES ({id}, '{name}', '{{}}', '{subnet}', 0, 0)"
            ))
            .unwrap();
        }
        conn.execute_batch(
            "INSERT INTO images (digest, size_bytes, virtual_size_bytes, created_at) VALUES (zeroblob(32), 1, 1, 0)",
        )
        .unwrap();
        for (id, name, node) in [(INSTANCE, "web", OLD), (WAITING, "db", "NULL")] {
            conn.execute_batch(&format!(
                "INSERT INTO instances (id, name, generation, epoch, created_at, template, image, arch, datasource,
                                        firmware, node, state, labels, spec, status, placement, ssh_keys, cloud_id,
                                        slice_revision)
                 VALUES ({id}, '{name}', 1, 4, 0, 't', zeroblob(32), 'x86_64', 'openstack', 'bios', {node}, 'running',
                         '{{}}', '{{}}', '{{}}', '[]', '[]', 'c', 0)"
            ))
            .unwrap();
        }
        conn.execute_batch(&format!(
            "INSERT INTO reservations (instance, node, cpus, memory_bytes) VALUES ({INSTANCE}, {OLD}, 2, 1024);
             INSERT INTO volumes (instance, disk, node, pool, size_bytes) VALUES ({INSTANCE}, 'root', {OLD}, 'main', 10)"
        ))
        .unwrap();
        migrate(&mut conn, &path).unwrap();
        (dir, conn)
    }

    fn one(conn: &Connection, sql: &str) -> i64 {
        conn.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn promised(conn: &Connection, node: &str) -> (i64, i64) {
        conn.query_row(
            &format!("SELECT promised_cpus, promised_memory_bytes FROM nodes WHERE id = {node}"),
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap()
    }

    fn is_on(conn: &Connection, node: &str) -> bool {
        one(
            conn,
            &format!("SELECT node IS {node} FROM instances WHERE id = {INSTANCE}"),
        ) == 1
    }

    #[test]
    fn the_migration_makes_nodes_owners_and_keeps_reservations_volumes_and_sums() {
        let (_dir, conn) = migrated();
        let owners = format!(
            "SELECT count(*) FROM ownership WHERE instance = {INSTANCE} AND node = {OLD} AND epoch = 4 AND role = 'owner'"
        );
        assert_eq!(one(&conn, &owners), 1);
        assert_eq!(one(&conn, "SELECT count(*) FROM ownership"), 1);
        assert_eq!(one(&conn, "SELECT sum(cpus) FROM reservations"), 2);
        assert_eq!(one(&conn, "SELECT sum(size_bytes) FROM volumes"), 10);
        assert_eq!(promised(&conn, OLD), (2, 1024));
        assert!(is_on(&conn, OLD));
    }

    #[test]
    fn two_nodes_hold_a_part_of_an_instance_and_each_sum_follows_its_own_part() {
        let (_dir, conn) = migrated();
        conn.execute_batch(&format!(
            "INSERT INTO ownership VALUES ({INSTANCE}, {NEW}, 5, 'receiving');
             INSERT INTO reservations VALUES ({INSTANCE}, {NEW}, 3, 2048);
             INSERT INTO volumes VALUES ({INSTANCE}, {NEW}, 'root', 'main', 10)"
        ))
        .unwrap();
        assert_eq!(promised(&conn, OLD), (2, 1024));
        assert_eq!(promised(&conn, NEW), (3, 2048));
        // The same disk on the same node stays unique.
        let again = format!("INSERT INTO volumes VALUES ({INSTANCE}, {NEW}, 'root', 'other', 1)");
        assert!(conn.execute_batch(&again).is_err());
        conn.execute_batch(&format!(
            "DELETE FROM reservations WHERE instance = {INSTANCE} AND node = {OLD}"
        ))
        .unwrap();
        assert_eq!(promised(&conn, OLD), (0, 0));
        assert_eq!(promised(&conn, NEW), (3, 2048));
    }

    #[test]
    fn an_instance_has_one_owner_and_its_node_follows_the_handover() {
        let (_dir, conn) = migrated();
        let second = format!("INSERT INTO ownership VALUES ({INSTANCE}, {NEW}, 5, 'owner')");
        assert!(conn.execute_batch(&second).is_err(), "a second owner");
        conn.execute_batch(&format!(
            "INSERT INTO ownership VALUES ({INSTANCE}, {NEW}, 5, 'receiving');
             UPDATE ownership SET role = 'releasing' WHERE instance = {INSTANCE} AND node = {OLD}"
        ))
        .unwrap();
        assert!(is_on(&conn, OLD), "it is still released");
        conn.execute_batch(&format!(
            "UPDATE ownership SET role = 'owner' WHERE instance = {INSTANCE} AND node = {NEW};
             DELETE FROM ownership WHERE instance = {INSTANCE} AND node = {OLD}"
        ))
        .unwrap();
        assert!(is_on(&conn, NEW));
        conn.execute_batch(&format!(
            "DELETE FROM ownership WHERE instance = {INSTANCE}"
        ))
        .unwrap();
        assert!(is_on(&conn, "NULL"));
    }
}
