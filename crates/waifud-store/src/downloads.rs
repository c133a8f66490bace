//! Downloads of template images: the request, and what is needed to continue after a restart.

use rusqlite::{OptionalExtension, Row};
use waifud_api::{CreateDownload, Problem};
use waifud_types::{Digest, Name, Timestamp};

use crate::codec::{corrupt, digest, json, name, time, to_json};
use crate::{ReadTx, StoreError, WriteTx};

/// One download.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DownloadRow {
    /// The template that the download creates.
    pub template: Name,
    /// Identifies the source. Downloads with the same source share one file.
    pub source: Digest,
    /// The request, completed from the catalog.
    pub request: CreateDownload,
    /// Why it failed; `None` while it is running.
    pub error: Option<Problem>,
    /// The server's validator (an ETag or a date) of the partial file.
    pub validator: Option<String>,
    /// The time of the request.
    pub created_at: Timestamp,
}

impl ReadTx<'_> {
    /// The download of one template.
    pub fn download(&self, template: &str) -> Result<Option<DownloadRow>, StoreError> {
        self.first(
            "SELECT * FROM downloads WHERE template = ?1",
            [template],
            download,
        )
    }

    /// Every download, by name.
    pub fn downloads(&self) -> Result<Vec<DownloadRow>, StoreError> {
        self.all("SELECT * FROM downloads ORDER BY template", [], download)
    }

    /// The number of running downloads.
    pub fn downloads_running(&self) -> Result<u64, StoreError> {
        self.conn
            .prepare_cached("SELECT count(*) AS running FROM downloads WHERE error IS NULL")?
            .query_row([], |row| row.get::<_, i64>("running"))
            .map(|count| u64::try_from(count).unwrap_or(0))
            .map_err(Into::into)
    }

    /// The running downloads of a source.
    pub fn downloads_from(&self, source: Digest) -> Result<Vec<DownloadRow>, StoreError> {
        self.all(
            "SELECT * FROM downloads WHERE source = ?1 AND error IS NULL ORDER BY template",
            [source.bytes()],
            download,
        )
    }

    /// The image with this publisher's checksum, if it is stored.
    pub fn image_with_checksum(&self, checksum: &str) -> Result<Option<Digest>, StoreError> {
        let found: Option<[u8; 32]> = self
            .conn
            .prepare_cached(
                "SELECT image FROM template_revisions WHERE checksum = ?1 ORDER BY seen_at DESC LIMIT 1",
            )?
            .query_row([checksum], |row| row.get(0))
            .optional()?;
        Ok(found.map(Digest::from_bytes))
    }
}

impl WriteTx<'_> {
    /// Adds a download, or replaces the one of that template.
    pub fn put_download(&mut self, row: &DownloadRow) -> Result<(), StoreError> {
        let error = row
            .error
            .as_ref()
            .map(|error| to_json("a problem", error))
            .transpose()?;
        self.conn
            .prepare_cached(
                "INSERT INTO downloads (template, source, request, error, validator, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (template) DO UPDATE SET source = excluded.source, request = excluded.request,
                     error = excluded.error, validator = excluded.validator, created_at = excluded.created_at",
            )?
            .execute((
                row.template.as_str(),
                row.source.bytes(),
                to_json("a download", &row.request)?,
                error,
                &row.validator,
                row.created_at.as_microsecond(),
            ))?;
        Ok(())
    }

    /// Stores the validator of the partial file of a source.
    pub fn set_download_validator(
        &mut self,
        source: Digest,
        validator: Option<&str>,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE downloads SET validator = ?2 WHERE source = ?1")?
            .execute((source.bytes(), validator))?;
        Ok(())
    }

    /// Ends all downloads of a source with the same error.
    pub fn fail_downloads(&mut self, source: Digest, error: &Problem) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE downloads SET error = ?2, validator = NULL WHERE source = ?1 AND error IS NULL",
            )?
            .execute((source.bytes(), to_json("a problem", error)?))?;
        Ok(())
    }

    /// Deletes the download of a template; `None` if there was none.
    pub fn remove_download(&mut self, template: &str) -> Result<Option<DownloadRow>, StoreError> {
        let row = self.download(template)?;
        self.conn
            .prepare_cached("DELETE FROM downloads WHERE template = ?1")?
            .execute([template])?;
        Ok(row)
    }
}

fn download(row: &Row<'_>) -> Result<DownloadRow, StoreError> {
    let error: Option<String> = row.get("error")?;
    Ok(DownloadRow {
        template: name(row, "template")?,
        source: digest(row, "source")?,
        request: json(row, "request")?,
        error: error
            .map(|text| serde_json::from_str(&text).map_err(|e| corrupt("error")(e.into())))
            .transpose()?,
        validator: row.get("validator")?,
        created_at: time(row, "created_at")?,
    })
}
