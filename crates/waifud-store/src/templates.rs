//! Templates and all images that they have referred to.

use rusqlite::Row;
use waifud_types::template::{Datasource, Firmware, Template, TemplateOrigin, TemplateRevision};
use waifud_types::{ByteSize, Digest, Name, Timestamp};

use crate::codec::{corrupt, count, digest, name, size, time, to_json, to_word, word};
use crate::{ReadTx, StoreError, WriteTx};

/// What an image needs from the machine that runs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageTraits {
    /// Its architecture.
    pub arch: String,
    /// How its guests find their documents.
    pub datasource: Datasource,
    /// The firmware that starts its boot loader.
    pub firmware: Firmware,
}

/// A new template, or a new image of an existing one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTemplate {
    /// Its name.
    pub name: Name,
    /// What its image needs.
    pub traits: ImageTraits,
    /// The user that cloud-init creates.
    pub default_user: Option<String>,
    /// The image.
    pub image: Digest,
    /// The publisher's checksum of this image; `None` if it was uploaded.
    pub checksum: Option<String>,
    /// The source of the image; `None` if it was uploaded.
    pub origin: Option<TemplateOrigin>,
    /// The current time.
    pub at: Timestamp,
}

/// A template with its architecture, which the API shows per revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TemplateRow {
    /// As the API shows it.
    pub template: Template,
    /// The architecture of the current image.
    pub arch: String,
}

/// The part of a template that a create needs. Its users and former images are left out, because counting users takes
/// time in proportion to their number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TemplateSource {
    /// Its name.
    pub name: Name,
    /// What its image needs.
    pub traits: ImageTraits,
    /// The image.
    pub image: Digest,
    /// The image's virtual size, which is the minimum size of a disk.
    pub min_disk_bytes: ByteSize,
}

impl ReadTx<'_> {
    /// The part of this template that a create needs.
    pub fn template_source(&self, wanted: &str) -> Result<Option<TemplateSource>, StoreError> {
        self.first(
            "SELECT t.*, i.virtual_size_bytes FROM templates t JOIN images i ON i.digest = t.image
                  WHERE t.name = ?1",
            [wanted],
            |row| {
                Ok(TemplateSource {
                    name: name(row, "name")?,
                    traits: ImageTraits {
                        arch: row.get("arch")?,
                        datasource: word(row, "datasource")?,
                        firmware: word(row, "firmware")?,
                    },
                    image: digest(row, "image")?,
                    min_disk_bytes: size(row, "virtual_size_bytes")?,
                })
            },
        )
    }

    /// One template.
    pub fn template(&self, wanted: &str) -> Result<Option<TemplateRow>, StoreError> {
        self.first(&select("t.name = ?1"), [wanted], |row| {
            self.template_row(row)
        })
    }

    /// Templates by name, after `after`.
    pub fn templates(&self, after: &str, limit: u32) -> Result<Vec<TemplateRow>, StoreError> {
        self.all(
            &select("t.name > ?1 ORDER BY t.name LIMIT ?2"),
            (after, limit),
            |row| self.template_row(row),
        )
    }

    fn template_row(&self, row: &Row<'_>) -> Result<TemplateRow, StoreError> {
        let name = name(row, "name")?;
        let revisions = self
            .conn
            .prepare_cached(
                "SELECT r.*, i.size_bytes FROM template_revisions r JOIN images i ON i.digest = r.image
                  WHERE r.template = ?1 ORDER BY r.seen_at DESC, r.rowid DESC",
            )?
            .query_and_then([name.as_str()], revision)?
            .collect::<Result<_, _>>()?;
        Ok(TemplateRow {
            arch: row.get("arch")?,
            template: Template {
                datasource: word(row, "datasource")?,
                firmware: word(row, "firmware")?,
                default_user: row.get("default_user")?,
                min_disk_bytes: size(row, "virtual_size_bytes")?,
                current: digest(row, "image")?,
                used_by: count(row, "used_by")?,
                source: row
                    .get::<_, Option<String>>("origin")?
                    .map(|text| serde_json::from_str(&text))
                    .transpose()
                    .map_err(|error| corrupt("origin")(error.into()))?,
                revisions,
                name,
            },
        })
    }
}

fn select(condition: &str) -> String {
    format!(
        "SELECT t.*, i.virtual_size_bytes,
                (SELECT count(*) FROM instances WHERE template = t.name) AS used_by
           FROM templates t JOIN images i ON i.digest = t.image WHERE {condition}"
    )
}

fn revision(row: &Row<'_>) -> Result<TemplateRevision, StoreError> {
    Ok(TemplateRevision {
        image: digest(row, "image")?,
        arch: row.get("arch")?,
        source_url: row.get("source_url")?,
        checksum: row.get("checksum")?,
        seen_at: time(row, "seen_at")?,
        size_bytes: size(row, "size_bytes")?,
    })
}

impl WriteTx<'_> {
    /// Adds the template, or changes its image. The image must exist.
    pub fn put_template(&mut self, new: &NewTemplate) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO templates (name, arch, datasource, firmware, default_user, image, created_at, origin)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (name) DO UPDATE SET arch = excluded.arch, datasource = excluded.datasource,
                     firmware = excluded.firmware, default_user = excluded.default_user, image = excluded.image,
                     origin = excluded.origin",
            )?
            .execute((
                new.name.as_str(),
                &new.traits.arch,
                to_word("a datasource", &new.traits.datasource)?,
                to_word("a firmware", &new.traits.firmware)?,
                &new.default_user,
                new.image.bytes(),
                new.at.as_microsecond(),
                new.origin
                    .as_ref()
                    .map(|origin| to_json("a template's origin", origin))
                    .transpose()?,
            ))?;
        self.conn
            .prepare_cached(
                "INSERT INTO template_revisions (template, image, arch, seen_at, source_url, checksum)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET arch = excluded.arch, seen_at = excluded.seen_at,
                     source_url = coalesce(excluded.source_url, source_url),
                     checksum = coalesce(excluded.checksum, checksum)",
            )?
            .execute((
                new.name.as_str(),
                new.image.bytes(),
                &new.traits.arch,
                new.at.as_microsecond(),
                new.origin.as_ref().map(|origin| &origin.url),
                new.checksum.as_ref(),
            ))?;
        Ok(())
    }

    /// Deletes a template; its instances are kept. False if it does not exist.
    pub fn remove_template(&mut self, name: &str) -> Result<bool, StoreError> {
        self.delete("DELETE FROM templates WHERE name = ?1", name)
    }
}
