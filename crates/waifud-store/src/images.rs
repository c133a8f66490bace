//! Images: the files in the image store, and what uses them.

use rusqlite::{OptionalExtension, Row};
use waifud_types::{ByteSize, Digest, Name, NodeId, Timestamp};

use crate::codec::{digest, name, node16, size, time, to_i64};
use crate::{ReadTx, StoreError, WriteTx};

/// One image file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageRow {
    /// The digest of its file.
    pub digest: Digest,
    /// The size of the file.
    pub size: ByteSize,
    /// The virtual size.
    pub virtual_size: ByteSize,
    /// When it was uploaded.
    pub created_at: Timestamp,
}

impl ReadTx<'_> {
    /// Whether an instance on that node uses the image.
    pub fn image_is_on(&self, wanted: Digest, node: NodeId) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM instances WHERE (image = ?1 OR rescue_image = ?1) AND node = ?2
                 UNION ALL SELECT 1 FROM moves v JOIN instances i ON i.id = v.instance WHERE i.image = ?1 AND v.target = ?2
                 LIMIT 1")?
            .exists((wanted.bytes(), node16(&node)))?)
    }

    /// One image.
    pub fn image(&self, wanted: Digest) -> Result<Option<ImageRow>, StoreError> {
        self.first(
            "SELECT * FROM images WHERE digest = ?1",
            [wanted.bytes()],
            image,
        )
    }

    /// Images sorted by digest, after `after`.
    pub fn images(&self, after: Option<Digest>, limit: u32) -> Result<Vec<ImageRow>, StoreError> {
        let after = after.map_or_else(Vec::new, |d| d.bytes().to_vec());
        self.all(
            "SELECT * FROM images WHERE digest > ?1 ORDER BY digest LIMIT ?2",
            (after, limit),
            image,
        )
    }

    /// The templates with a revision that has the image, by name.
    pub fn templates_with_image(&self, wanted: Digest) -> Result<Vec<Name>, StoreError> {
        let sql = "SELECT template AS name FROM template_revisions WHERE image = ?1 ORDER BY template LIMIT 10";
        self.all(sql, [wanted.bytes()], |row| name(row, "name"))
    }

    /// Whether a template's revision or an instance uses the image.
    pub fn image_is_used(&self, wanted: Digest) -> Result<bool, StoreError> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT 1 WHERE EXISTS (SELECT 1 FROM template_revisions WHERE image = ?1)
                             OR EXISTS (SELECT 1 FROM templates WHERE image = ?1)
                             OR EXISTS (SELECT 1 FROM instances WHERE image = ?1)
                             OR EXISTS (SELECT 1 FROM instances WHERE rescue_image = ?1)",
            )?
            .query_row([wanted.bytes()], |_| Ok(()))
            .optional()?
            .is_some())
    }
}

impl WriteTx<'_> {
    /// Adds an image. Returns false if it exists already.
    pub fn insert_image(&mut self, image: &ImageRow) -> Result<bool, StoreError> {
        let added = self
            .conn
            .prepare_cached("INSERT INTO images VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING")?
            .execute((
                image.digest.bytes(),
                to_i64(image.size.bytes()),
                to_i64(image.virtual_size.bytes()),
                image.created_at.as_microsecond(),
            ))?;
        Ok(added > 0)
    }

    /// Adds an image whose file was verified, or corrects the sizes in its row: an adoption knows them only from a
    /// node's record. Returns whether the row is new.
    pub fn put_image(&mut self, image: &ImageRow) -> Result<bool, StoreError> {
        if self.insert_image(image)? {
            return Ok(true);
        }
        self.conn
            .prepare_cached(
                "UPDATE images SET size_bytes = ?2, virtual_size_bytes = ?3 WHERE digest = ?1",
            )?
            .execute((
                image.digest.bytes(),
                to_i64(image.size.bytes()),
                to_i64(image.virtual_size.bytes()),
            ))?;
        Ok(false)
    }

    /// Deletes an unused image; false if it is absent or in use.
    pub fn remove_unused_image(&mut self, unwanted: Digest) -> Result<bool, StoreError> {
        if self.image_is_used(unwanted)? {
            return Ok(false);
        }
        let removed = self
            .conn
            .prepare_cached("DELETE FROM images WHERE digest = ?1")?
            .execute([unwanted.bytes()])?;
        Ok(removed > 0)
    }
}

fn image(row: &Row<'_>) -> Result<ImageRow, StoreError> {
    Ok(ImageRow {
        digest: digest(row, "digest")?,
        size: size(row, "size_bytes")?,
        virtual_size: size(row, "virtual_size_bytes")?,
        created_at: time(row, "created_at")?,
    })
}
