//! Bundles: the encrypted documents of instances, and their keys.

use waifud_types::{Digest, InstanceId, NodeId, Secret, Timestamp};

use crate::codec::{id16, node16, to_i64};
use crate::{ReadTx, StoreError, WriteTx};

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
}

impl WriteTx<'_> {
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
