//! Join tokens, and the key of each node.

use rusqlite::{Row, named_params};
use waifud_types::{Digest, Name, NodeId, Timestamp};

use crate::codec::{digest, maybe_name, maybe_node_id, name, node_id, node16, time};
use crate::error::taken;
use crate::{ReadTx, StoreError, Taken, Topic, WriteTx};

/// A stored join token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinTokenRow {
    /// The token's id.
    pub id: String,
    /// The name of the only node that it admits; `None` for any node.
    pub name: Option<Name>,
    /// Who created it.
    pub created_by: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
    /// The node that joined with it, and that node's key.
    pub spent: Option<(NodeId, Digest)>,
}

/// The key of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeKeyRow {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// The SHA-256 of its public key.
    pub key: Digest,
}

impl ReadTx<'_> {
    /// The token with this secret's digest.
    pub fn join_token(&self, secret: Digest) -> Result<Option<JoinTokenRow>, StoreError> {
        self.first(
            "SELECT * FROM join_tokens WHERE secret = ?1",
            [secret.bytes()],
            token,
        )
    }

    /// All tokens, oldest first, each with the name of the node that joined with it, if that node exists.
    pub fn join_tokens(&self) -> Result<Vec<(JoinTokenRow, Option<Name>)>, StoreError> {
        self.all(
            "SELECT t.*, k.name AS node_name FROM join_tokens t
                 LEFT JOIN node_keys k ON k.node = t.node ORDER BY t.created_at, t.id",
            [],
            |row| Ok((token(row)?, maybe_name(row, "node_name")?)),
        )
    }

    /// The key of a node; `None` if it has not joined.
    pub fn node_key(&self, node: NodeId) -> Result<Option<NodeKeyRow>, StoreError> {
        self.first(
            "SELECT * FROM node_keys WHERE node = ?1",
            [node16(&node)],
            key,
        )
    }

    /// The id of the node with this name, even if it has joined and not reported yet.
    pub fn node_id_named(&self, wanted: &Name) -> Result<Option<NodeId>, StoreError> {
        self.first(
            "SELECT id AS node FROM nodes WHERE name = ?1
                 UNION SELECT node FROM node_keys WHERE name = ?1 LIMIT 1",
            [wanted.as_str()],
            |row| node_id(row, "node"),
        )
    }
}

impl WriteTx<'_> {
    /// Stores a token under its secret's digest. Deletes tokens that expired before `forget`.
    pub fn insert_join_token(
        &mut self,
        row: &JoinTokenRow,
        secret: Digest,
        forget: Timestamp,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("DELETE FROM join_tokens WHERE expires_at < ?1")?
            .execute([forget.as_microsecond()])?;
        self.conn
            .prepare_cached(
                "INSERT INTO join_tokens (id, secret, name, created_by, created_at, expires_at)
                 VALUES (:id, :secret, :name, :created_by, :created_at, :expires_at)",
            )?
            .execute(named_params! {
                ":id": row.id,
                ":secret": secret.bytes(),
                ":name": row.name.as_ref().map(Name::as_str),
                ":created_by": row.created_by,
                ":created_at": row.created_at.as_microsecond(),
                ":expires_at": row.expires_at.as_microsecond(),
            })?;
        Ok(())
    }

    /// Records that the node has joined with the token.
    pub fn spend_join_token(
        &mut self,
        id: &str,
        node: NodeId,
        key: Digest,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE join_tokens SET node = ?2, key = ?3 WHERE id = ?1")?
            .execute((id, node16(&node), key.bytes()))?;
        Ok(())
    }

    /// Deletes a token; false if it does not exist.
    pub fn delete_join_token(&mut self, id: &str) -> Result<bool, StoreError> {
        self.delete("DELETE FROM join_tokens WHERE id = ?1", id)
    }

    /// Sets the only key of the node.
    pub fn put_node_key(&mut self, row: &NodeKeyRow, at: Timestamp) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO node_keys (node, name, key, admitted_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (node) DO UPDATE SET name = excluded.name, key = excluded.key,
                     admitted_at = excluded.admitted_at",
            )?
            .execute((
                node16(&row.node),
                row.name.as_str(),
                row.key.bytes(),
                at.as_microsecond(),
            ))
            .map_err(|e| taken(e, &[("node_keys.name", Taken::NodeName)]))?;
        // Watches that use a former key end.
        self.touch(Topic::Node(row.node));
        Ok(())
    }

    /// Renames the node.
    pub fn rename_node_key(&mut self, node: NodeId, name: &Name) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE node_keys SET name = ?2 WHERE node = ?1")?
            .execute((node16(&node), name.as_str()))
            .map_err(|e| taken(e, &[("node_keys.name", Taken::NodeName)]))?;
        Ok(())
    }
}

fn token(row: &Row<'_>) -> Result<JoinTokenRow, StoreError> {
    let node = maybe_node_id(row, "node")?;
    let spent = node
        .map(|node| digest(row, "key").map(|key| (node, key)))
        .transpose()?;
    Ok(JoinTokenRow {
        id: row.get("id")?,
        name: maybe_name(row, "name")?,
        created_by: row.get("created_by")?,
        created_at: time(row, "created_at")?,
        expires_at: time(row, "expires_at")?,
        spent,
    })
}

fn key(row: &Row<'_>) -> Result<NodeKeyRow, StoreError> {
    Ok(NodeKeyRow {
        node: node_id(row, "node")?,
        name: name(row, "name")?,
        key: digest(row, "key")?,
    })
}
