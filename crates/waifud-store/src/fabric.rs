//! The fabric of the cluster, and what nodes report for it.

use waifud_types::{FabricKind, MeshFacts, NodeId, Revision};

use crate::codec::{corrupt, node16, to_i64, to_json};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// The fabric of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FabricRow {
    /// The fabric in use.
    pub kind: FabricKind,
    /// The fabric that an administrator has chosen; `None` for the default.
    pub configured: Option<FabricKind>,
}

impl ReadTx<'_> {
    /// The fabric.
    pub fn fabric(&self) -> Result<FabricRow, StoreError> {
        let chosen: Vec<Option<FabricKind>> = self.all("SELECT kind FROM fabric", [], |row| {
            let kind: String = row.get("kind")?;
            let kind = kind.parse();
            kind.map(Some)
                .map_err(|e: waifud_types::fabric::ParseFabricError| corrupt("kind")(e.into()))
        })?;
        let configured = chosen.into_iter().next().flatten();
        let nodes: u32 = self
            .conn
            .query_row("SELECT count(*) FROM nodes", [], |row| row.get(0))?;
        Ok(FabricRow {
            kind: configured.unwrap_or_else(|| FabricKind::default_for(nodes.into())),
            configured,
        })
    }
}

impl WriteTx<'_> {
    /// Chooses the fabric. `revision` is that of the event about this change.
    pub fn set_fabric(&mut self, kind: FabricKind, revision: Revision) -> Result<(), StoreError> {
        let before = self.fabric()?.kind;
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO fabric (id, kind) VALUES (1, ?1)")?
            .execute([kind.as_str()])?;
        self.fabric_was(before, revision)
    }

    /// Sends all nodes their configuration again if another fabric was in use before.
    pub(crate) fn fabric_was(
        &mut self,
        before: FabricKind,
        revision: Revision,
    ) -> Result<(), StoreError> {
        if self.fabric()?.kind == before {
            return Ok(());
        }
        self.conn
            .prepare_cached("UPDATE nodes SET slice_revision = ?1")?
            .execute([to_i64(revision.number)])?;
        self.touch(Topic::Cluster);
        Ok(())
    }

    /// Stores what other nodes need to reach the node. `revision` is that of the event about this change.
    pub fn set_node_mesh(
        &mut self,
        id: NodeId,
        mesh: Option<&MeshFacts>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE nodes SET mesh = ?2 WHERE id = ?1")?
            .execute((node16(&id), to_json("a node's mesh", &mesh)?))?;
        self.peer_changed(id, revision)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use waifud_types::Incarnation;

    use super::*;
    use crate::migrate::{MIGRATIONS, migrate, run};

    #[test]
    fn nodes_of_an_earlier_version_receive_their_configuration_with_the_fabric() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud.db");
        let mut conn = Connection::open(&path).unwrap();
        let before = MIGRATIONS
            .iter()
            .position(|sql| sql.contains("CREATE TABLE fabric"));
        run(&mut conn, &path, &MIGRATIONS[..before.unwrap()]).unwrap();
        conn.execute_batch(
            "INSERT INTO nodes (id, name, facts, subnet, joined_at, slice_revision)
             VALUES (zeroblob(16), 'alder', '{}', '10.144.1.0/24', 0, 3),
                    (CAST(x'00000000000000000000000000000001' AS BLOB), 'birch', '{}', '10.144.2.0/24', 0, 4);
             INSERT INTO events (revision, at, kind, object_type, object_id, object_name, actor, message, details)
             VALUES (7, 0, 'k', 't', 'i', 'n', '{}', 'm', '{}')",
        )
        .unwrap();
        migrate(&mut conn, &path).unwrap();
        let revisions: Vec<i64> = ReadTx::new(&conn, Incarnation(1))
            .all("SELECT slice_revision FROM nodes", [], |row| {
                Ok(row.get("slice_revision")?)
            })
            .unwrap();
        assert_eq!(revisions, [8, 8]);
        let fabric = ReadTx::new(&conn, Incarnation(1)).fabric().unwrap();
        assert_eq!(
            (fabric.kind, fabric.configured),
            (FabricKind::Wireguard, None)
        );
    }
}
