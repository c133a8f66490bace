//! Bundles: the encrypted documents of instances, and their keys.

use waifud_types::{Digest, InstanceId, NodeId, Revision, Secret, Timestamp};

use crate::codec::{count, digest, id16, node16, to_i64};
use crate::{ReadTx, StoreError, Topic, WriteTx};

/// One bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredBundle {
    /// The digest of its ciphertext.
    pub digest: Digest,
    /// The key, base64.
    pub key: Secret<String>,
    /// The encrypted bytes.
    pub ciphertext: Vec<u8>,
}

impl ReadTx<'_> {
    /// The encrypted bytes, if they belong to an instance on that node.
    pub fn bundle_ciphertext(
        &self,
        wanted: Digest,
        node: NodeId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT b.ciphertext FROM bundles b JOIN instances i ON i.id = b.instance
                  WHERE b.digest = ?1 AND i.node = ?2",
            )?
            .query_map((wanted.bytes(), node16(&node)), |row| row.get(0))?
            .next()
            .transpose()?)
    }

    /// All bundles with their sizes.
    pub fn bundle_sizes(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        self.all("SELECT digest, size_bytes FROM bundles", (), |row| {
            Ok((digest(row, "digest")?, count(row, "size_bytes")?))
        })
    }

    /// The encrypted bytes of these bundles, without those that do not exist.
    pub fn bundle_ciphertexts(
        &self,
        wanted: &[Digest],
    ) -> Result<Vec<(Digest, Vec<u8>)>, StoreError> {
        let mut found = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let sql = "SELECT ciphertext FROM bundles WHERE digest = ?1";
            if let Some(bytes) = self.first(sql, [wanted.bytes()], |row| Ok(row.get(0)?))? {
                found.push((*wanted, bytes));
            }
        }
        Ok(found)
    }

    /// The text that [`WriteTx::set_redis_mark`] stored last; empty if there is none.
    pub fn redis_mark(&self) -> Result<String, StoreError> {
        let sql = "SELECT value FROM meta WHERE key = 'redis'";
        Ok(self
            .first(sql, (), |row| Ok(row.get(0)?))?
            .unwrap_or_default())
    }
}

impl WriteTx<'_> {
    /// Stores a text that identifies the nodes' access to Redis, and sends the nodes their configuration again. `revision` is
    /// that of the event about this change.
    pub fn set_redis_mark(&mut self, mark: &str, revision: Revision) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('redis', ?1)")?
            .execute([mark])?;
        self.conn
            .prepare_cached("UPDATE nodes SET slice_revision = ?1")?
            .execute([to_i64(revision.number)])?;
        // Wakes the watches of all nodes.
        self.touch(Topic::Cluster);
        Ok(())
    }

    /// Stores the documents of an instance. The previous ones are kept until the next change, for a node that is still
    /// fetching them; older ones are deleted.
    pub fn put_bundle(
        &mut self,
        instance: InstanceId,
        bundle: &StoredBundle,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "DELETE FROM bundles WHERE instance = ?1
                    AND digest IS NOT (SELECT bundle FROM instances WHERE id = ?1)",
            )?
            .execute([id16(&instance)])?;
        self.conn
            .prepare_cached(
                "INSERT INTO bundles (digest, instance, key, size_bytes, created_at, ciphertext)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                bundle.digest.bytes(),
                id16(&instance),
                bundle.key.expose(),
                to_i64(bundle.ciphertext.len() as u64),
                at.as_microsecond(),
                &bundle.ciphertext,
            ))?;
        self.conn
            .prepare_cached("UPDATE instances SET bundle = ?2 WHERE id = ?1")?
            .execute((id16(&instance), bundle.digest.bytes()))?;
        Ok(())
    }
}
