//! Templates and images: naming what was uploaded, and forgetting what nobody needs.

use bytes::Bytes;
use futures::Stream;
use waifud_api::{CreateTemplate, Download, Image, Page};
use waifud_store::{ImageRow, NewTemplate, StoreError, WriteTx};
use waifud_types::template::Template;
use waifud_types::{Digest, Name};

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::images::problems as image_problems;
use crate::pagination::{Cursor, PageRequest};
use crate::{Control, ControlError, problems};

/// A template's name.
pub(crate) fn checked_name(text: &str) -> Result<Name, ControlError> {
    text.parse()
        .map_err(|e| problems::bad_name("name", &e).into())
}

/// Refuses what no template can have.
pub(crate) fn check(arch: Option<&str>, default_user: Option<&str>) -> Result<(), ControlError> {
    if arch.is_some_and(|arch| !["x86_64", "aarch64"].contains(&arch)) {
        return Err(waifud_api::Problem::new(
            422,
            "unknown-arch",
            "that architecture is not known",
        )
        .field("arch")
        .hint("x86_64 or aarch64")
        .into());
    }
    let user_fits = |user: &str| {
        (1..=32).contains(&user.len())
            && user
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
    };
    if default_user.is_some_and(|user| !user_fits(user)) {
        return Err(
            waifud_api::Problem::new(422, "invalid-user", "that is no user's name")
                .field("default_user")
                .hint("1 to 32 of a-z, 0-9, - and _")
                .into(),
        );
    }
    Ok(())
}

/// Writes a template down, and tells of it.
pub(crate) fn put(
    tx: &mut WriteTx<'_>,
    new: &NewTemplate,
    cause: &Cause,
) -> Result<(), ControlError> {
    let before = tx
        .template(new.name.as_str())?
        .map(|row| row.template.current);
    let (kind, message) = match before {
        None => ("template.created", format!("image {}", new.image.short())),
        Some(old) if old == new.image => (
            "template.updated",
            format!("image {} as before", new.image.short()),
        ),
        Some(old) => (
            "template.updated",
            format!("image {} after {}", new.image.short(), old.short()),
        ),
    };
    let object = event_builder::template(new.name.as_str());
    tx.emit(&event_builder::event(new.at, kind, object, cause, message))?;
    tx.put_template(new)?;
    Ok(())
}

/// Writes down that a verified file is in the store, and tells of it when that is news. Says whether the row is new.
pub(crate) fn file_is_here(
    tx: &mut WriteTx<'_>,
    row: &ImageRow,
    was_here: bool,
    kind: &'static str,
    cause: &Cause,
) -> Result<bool, StoreError> {
    let new = tx.put_image(row)?;
    let (kind, message) = match (new, was_here) {
        (true, _) => (
            kind,
            format!("{} for a disk of {}", row.size, row.virtual_size),
        ),
        (false, false) => (
            "image.restored",
            "its file was missing or damaged, and is whole again".to_owned(),
        ),
        (false, true) => return Ok(false),
    };
    let object = event_builder::image(row.digest);
    tx.emit(&event_builder::event(
        row.created_at,
        kind,
        object,
        cause,
        message,
    ))?;
    Ok(new)
}

impl Control {
    /// Names an image; the same name again points at the new one.
    pub async fn create_template(
        &self,
        request: CreateTemplate,
        cause: Cause,
    ) -> Result<Template, ControlError> {
        self.require_disk_space()?;
        let name = checked_name(&request.name)?;
        check(request.arch.as_deref(), request.default_user.as_deref())?;
        let arch = request.arch.unwrap_or_else(|| "x86_64".to_owned());
        let new = NewTemplate {
            name,
            arch,
            datasource: request.datasource,
            firmware: request.firmware,
            default_user: request.default_user,
            image: request.image,
            checksum: None,
            origin: None,
            at: self.now(),
        };
        let control = self.clone();
        self.shared
            .store
            .write(move |tx| {
                let images = &control.shared.images;
                let here = match tx.image(new.image)? {
                    Some(row) => images.holds(row.digest, row.size)?,
                    None => false,
                };
                if !here {
                    return Err(image_problems::unknown_image(new.image).into());
                }
                put(tx, &new, &cause)?;
                tx.template(new.name.as_str())?
                    .map(|row| row.template)
                    .ok_or_else(|| {
                        ControlError::Inconsistent("a new template is not there".to_owned())
                    })
            })
            .await
    }

    /// One template.
    pub async fn template(&self, name: &str) -> Result<Template, ControlError> {
        let wanted = name.to_owned();
        let row = self
            .shared
            .store
            .read(move |tx| tx.template(&wanted))
            .await?;
        row.map(|row| row.template)
            .ok_or_else(|| problems::not_found("template", name).into())
    }

    /// A page of templates, by name.
    pub async fn templates(&self, page: PageRequest) -> Result<Page<Template>, ControlError> {
        let limit = page.limit;
        let (rows, revision) = self
            .shared
            .store
            .read(move |tx| {
                let rows = tx.templates(page.after(), page.limit + 1)?;
                Ok::<_, StoreError>((rows, tx.at(tx.newest_event()?)))
            })
            .await?;
        let (rows, next) = Cursor::cut(rows, limit, |row| row.template.name.as_str());
        Ok(Page {
            items: rows.into_iter().map(|row| row.template).collect(),
            next,
            revision,
        })
    }

    /// Forgets a template, and ends its download. Its instances live on, and the images that they need stay.
    pub async fn delete_template(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        match self.delete_download(name, cause.clone()).await {
            Ok(()) => match self.template(name).await {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            },
            Err(error) if !error.is_not_found() => return Err(error),
            Err(_) => {}
        }
        let wanted = name.to_owned();
        let at = self.now();
        let images = self
            .shared
            .store
            .write(move |tx| {
                let row = tx
                    .template(&wanted)?
                    .ok_or_else(|| problems::not_found("template", &wanted))?;
                tx.emit(&event_builder::event(
                    at,
                    "template.deleted",
                    event_builder::template(&wanted),
                    &cause,
                    "forgotten",
                ))?;
                tx.remove_template(&wanted)?;
                Ok::<_, ControlError>(
                    row.template
                        .revisions
                        .iter()
                        .map(|revision| revision.image)
                        .collect::<Vec<_>>(),
                )
            })
            .await?;
        self.collect_images(images).await;
        Ok(())
    }

    /// One image.
    pub async fn image(&self, digest: Digest) -> Result<Image, ControlError> {
        let row = self.shared.store.read(move |tx| tx.image(digest)).await?;
        let row = row.ok_or_else(|| problems::not_found("image", &digest.to_string()))?;
        self.shown_image(&row)
    }

    fn shown_image(&self, row: &ImageRow) -> Result<Image, ControlError> {
        let available = self.shared.images.holds(row.digest, row.size)?;
        Ok(shown(row, available))
    }

    /// A page of images, by digest.
    pub async fn images(&self, page: PageRequest) -> Result<Page<Image>, ControlError> {
        let after = page.after().parse().ok();
        let limit = page.limit;
        let (rows, revision) = self
            .shared
            .store
            .read(move |tx| {
                Ok::<_, StoreError>((tx.images(after, limit + 1)?, tx.at(tx.newest_event()?)))
            })
            .await?;
        let rows = rows
            .iter()
            .map(|row| Ok((row.digest.to_string(), self.shown_image(row)?)))
            .collect::<Result<Vec<_>, ControlError>>()?;
        let (rows, next) = Cursor::cut(rows, limit, |(digest, _)| digest.as_str());
        Ok(Page {
            items: rows.into_iter().map(|(_, image)| image).collect(),
            next,
            revision,
        })
    }

    /// Takes an upload in. Says whether the image is new; the file of one that was known takes the place of what was there.
    pub async fn upload_image<E>(
        &self,
        digest: Digest,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        cause: Cause,
    ) -> Result<(Image, bool), ControlError> {
        let incoming = self.shared.images.receive(digest, body).await?;
        let row = ImageRow {
            digest,
            size: incoming.size,
            virtual_size: incoming.header.virtual_size,
            created_at: self.now(),
        };
        let _changing = self.shared.images.changing.lock().await;
        let was_here = self.shared.images.holds(digest, row.size)?;
        self.shared.images.keep(incoming)?;
        let stored = row.clone();
        let new = self
            .shared
            .store
            .write(move |tx| file_is_here(tx, &stored, was_here, "image.uploaded", &cause))
            .await;
        let new = match new {
            Ok(new) => new,
            Err(error) => {
                // No image without a row: nobody would ever remove it.
                if !self.is_known(digest).await {
                    self.shared.images.remove(digest)?;
                }
                return Err(error.into());
            }
        };
        if !new {
            return Ok((self.image(digest).await?, false));
        }
        Ok((shown(&row, true), true))
    }

    /// Whether the database has the image, or can't say.
    pub(crate) async fn is_known(&self, digest: Digest) -> bool {
        let found: Result<_, StoreError> = self.shared.store.read(move |tx| tx.image(digest)).await;
        !found.is_ok_and(|row| row.is_none())
    }

    /// Removes an image; refused while it is needed.
    pub async fn delete_image(&self, digest: Digest, cause: Cause) -> Result<(), ControlError> {
        self.image(digest).await?;
        if self.collect_image(digest, cause).await? {
            Ok(())
        } else {
            Err(image_problems::image_in_use(digest).into())
        }
    }

    /// Removes those images that nothing needs, after a change that is durable and is not undone by a failure here.
    pub(crate) async fn collect_images(&self, images: impl IntoIterator<Item = Digest>) {
        for image in images {
            if let Err(error) = self.collect_image(image, Cause::system()).await {
                tracing::warn!(%image, %error, "an image that may be unused could not be removed");
            }
        }
    }

    /// Removes an image that nothing needs. Says whether it went.
    pub(crate) async fn collect_image(
        &self,
        digest: Digest,
        cause: Cause,
    ) -> Result<bool, ControlError> {
        let _changing = self.shared.images.changing.lock().await;
        let at = self.now();
        let went = self
            .shared
            .store
            .write(move |tx| {
                let went = tx.remove_unused_image(digest)?;
                if went {
                    let object = event_builder::image(digest);
                    tx.emit(&event_builder::event(
                        at,
                        "image.deleted",
                        object,
                        &cause,
                        "nothing needs it",
                    ))?;
                }
                Ok::<_, StoreError>(went)
            })
            .await?;
        // It is gone from the database already; a file that stays is removed at the next start.
        if went && let Err(error) = self.shared.images.remove(digest) {
            tracing::warn!(image = %digest, %error, "the file of a deleted image could not be removed");
        }
        Ok(went)
    }

    /// Where an image's file is; its digest was verified.
    pub(crate) async fn image_file(
        &self,
        digest: Digest,
    ) -> Result<std::path::PathBuf, ControlError> {
        let (row, templates) = self
            .shared
            .store
            .read(move |tx| {
                Ok::<_, StoreError>((tx.image(digest)?, tx.templates_with_image(digest)?))
            })
            .await?;
        let row = row.ok_or_else(|| problems::not_found("image", &digest.to_string()))?;
        if self.shared.images.is_whole(digest, row.size, false).await? {
            Ok(self.shared.images.path(digest))
        } else {
            Err(image_problems::image_missing(digest, &templates).into())
        }
    }

    /// Asks a template's source again: what its publisher has by now becomes a new revision, and a file that is missing
    /// comes back.
    pub async fn refresh_template(
        &self,
        name: &str,
        cause: Cause,
    ) -> Result<Download, ControlError> {
        let wanted = name.to_owned();
        let row = self
            .shared
            .store
            .read(move |tx| tx.template(&wanted))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        let row = row.ok_or_else(|| problems::not_found("template", name))?;
        let mirror = &self.shared.config.downloads.mirror;
        let request = crate::images::downloads::refresh(row, mirror)?;
        self.create_download(request, cause).await
    }
}

/// An image as it is shown, with or without its file.
fn shown(row: &ImageRow, available: bool) -> Image {
    Image {
        digest: row.digest,
        size_bytes: row.size,
        virtual_size_bytes: row.virtual_size,
        available,
        created_at: row.created_at,
    }
}
