//! The credentials in a database that is not in use: those that a restored backup would bring back.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::Connection;
use waifud_types::{Digest, Name, NodeId};

use crate::StoreError;
use crate::backup::open;
use crate::codec::{digest, name, node_id, node16};

/// All credentials in a database.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// API tokens: the name and the public part.
    pub tokens: Vec<(Name, [u8; 8])>,
    /// Nodes and their keys.
    pub nodes: Vec<(NodeId, Name, Digest)>,
    /// Join tokens that have not been used.
    pub join_tokens: Vec<String>,
}

/// The result for the credentials of a copy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Voided {
    /// API tokens: those that are void are deleted.
    pub tokens: Validity,
    /// Deleted join tokens.
    pub join_tokens: Vec<String>,
    /// Nodes: those that are void have no access.
    pub nodes: Validity,
}

/// The credentials of one kind, by the names of their holders.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Validity {
    /// Those that give no access any more.
    pub void: Vec<Name>,
    /// Those that give access.
    pub valid: Vec<Name>,
}

/// Reads the credentials in the database at `path`.
pub fn read(path: &Path) -> Result<Credentials, StoreError> {
    let conn = open(path)?;
    let credentials = of(&conn)?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(credentials)
}

/// Deletes credentials from the copy at `path`: join tokens and, unless `keep_tokens` is set, API tokens.
///
/// `today` has the credentials of the database that the copy replaces, if it is readable. API tokens and nodes that it
/// does not contain were revoked or removed after the copy was made, and are deleted too. Its key of a node replaces an
/// older key in the copy.
pub fn delete_credentials(
    path: &Path,
    today: Option<&Credentials>,
    keep_tokens: bool,
) -> Result<Voided, StoreError> {
    let mut conn = open(path)?;
    let tx = conn.transaction()?;
    let copy = of(&tx)?;
    let mut voided = Voided {
        join_tokens: copy.join_tokens,
        ..Voided::default()
    };
    tx.execute("DELETE FROM join_tokens WHERE node IS NULL", [])?;
    let known: Option<BTreeSet<_>> = today.map(|it| it.tokens.iter().map(|(_, id)| *id).collect());
    for (name, id) in copy.tokens {
        if keep_tokens && known.as_ref().is_none_or(|known| known.contains(&id)) {
            voided.tokens.valid.push(name);
        } else {
            tx.execute("DELETE FROM tokens WHERE id = ?1", [id])?;
            voided.tokens.void.push(name);
        }
    }
    for (node, name, key) in copy.nodes {
        let now = today.map(|it| it.nodes.iter().find(|(id, ..)| *id == node));
        match now {
            Some(None) => {
                tx.execute("DELETE FROM node_keys WHERE node = ?1", [node16(&node)])?;
                voided.nodes.void.push(name);
            }
            Some(Some((_, _, newer))) if *newer != key => {
                tx.execute(
                    "UPDATE node_keys SET key = ?2 WHERE node = ?1",
                    (node16(&node), newer.bytes()),
                )?;
                voided.nodes.valid.push(name);
            }
            _ => voided.nodes.valid.push(name),
        }
    }
    tx.commit()?;
    conn.close().map_err(|(_, error)| error)?;
    Ok(voided)
}

fn of(conn: &Connection) -> Result<Credentials, StoreError> {
    let tokens = conn
        .prepare("SELECT name, id FROM tokens ORDER BY name")?
        .query_and_then([], |row| Ok((name(row, "name")?, row.get("id")?)))?
        .collect::<Result<_, StoreError>>()?;
    let nodes = conn
        .prepare("SELECT node, name, key FROM node_keys ORDER BY name")?
        .query_and_then([], |row| {
            Ok((
                node_id(row, "node")?,
                name(row, "name")?,
                digest(row, "key")?,
            ))
        })?
        .collect::<Result<_, StoreError>>()?;
    let join_tokens = conn
        .prepare("SELECT id FROM join_tokens WHERE node IS NULL ORDER BY id")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(Credentials {
        tokens,
        nodes,
        join_tokens,
    })
}
