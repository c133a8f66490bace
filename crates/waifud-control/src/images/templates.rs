//! Templates: names for images, with their source and defaults.

use waifud_api::{CreateTemplate, Download, Page};
use waifud_store::{ImageTraits, NewTemplate, ReadTx, StoreError, WriteTx};
use waifud_types::Name;
use waifud_types::event::Cause;
use waifud_types::template::Template;

use crate::events::event_builder;
use crate::images::problems as image_problems;
use crate::pagination::{self, PageRequest};
use crate::{Control, ControlError, problems};

/// A valid template name.
pub(crate) fn checked_name(text: &str) -> Result<Name, ControlError> {
    text.parse()
        .map_err(|e| problems::bad_name("name", &e).into())
}

/// Checks the architecture and the default user of a template.
pub(crate) fn check(arch: Option<&str>, default_user: Option<&str>) -> Result<(), ControlError> {
    if arch.is_some_and(|arch| !["x86_64", "aarch64"].contains(&arch)) {
        return Err(
            waifud_api::Problem::new(422, "unknown-arch", "unknown architecture")
                .field("arch")
                .hint("use x86_64 or aarch64")
                .into(),
        );
    }
    let user_fits = |user: &str| {
        (1..=32).contains(&user.len())
            && user
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
    };
    if default_user.is_some_and(|user| !user_fits(user)) {
        return Err(
            waifud_api::Problem::new(422, "invalid-user", "invalid user name")
                .field("default_user")
                .hint("use 1 to 32 characters of a-z, 0-9, - and _")
                .into(),
        );
    }
    Ok(())
}

/// Stores a template, with an event.
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
            format!("image {} unchanged", new.image.short()),
        ),
        Some(old) => (
            "template.updated",
            format!("image {} replaces {}", new.image.short(), old.short()),
        ),
    };
    let object = event_builder::template(new.name.as_str());
    tx.emit(&event_builder::event(new.at, kind, object, cause, message))?;
    tx.put_template(new)?;
    Ok(())
}

impl Control {
    /// Creates a template from an image; an existing template of that name gets the new image.
    pub async fn create_template(
        &self,
        request: CreateTemplate,
        cause: Cause,
    ) -> Result<Template, ControlError> {
        self.disk_space().require()?;
        let name = checked_name(&request.name)?;
        check(request.arch.as_deref(), request.default_user.as_deref())?;
        let new = NewTemplate {
            name,
            traits: ImageTraits {
                arch: request.arch.unwrap_or_else(|| "x86_64".to_owned()),
                datasource: request.datasource,
                firmware: request.firmware,
            },
            default_user: request.default_user,
            image: request.image,
            checksum: None,
            origin: None,
            at: self.now(),
        };
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let images = &control.images().files();
                let present = match tx.image(new.image)? {
                    Some(row) => images.holds(row.digest, row.size)?,
                    None => false,
                };
                if !present {
                    return Err(image_problems::unknown_image(new.image).into());
                }
                put(tx, &new, &cause)?;
                tx.template(new.name.as_str())?
                    .map(|row| row.template)
                    .ok_or_else(|| {
                        ControlError::Inconsistent("a new template is missing".to_owned())
                    })
            })
            .await
    }

    /// One template.
    pub async fn template(&self, name: &str) -> Result<Template, ControlError> {
        let wanted = name.to_owned();
        let row = self.store().read(move |tx| tx.template(&wanted)).await?;
        row.map(|row| row.template)
            .ok_or_else(|| problems::not_found("template", name).into())
    }

    /// A page of templates, sorted by name.
    pub async fn templates(&self, page: PageRequest) -> Result<Page<Template>, ControlError> {
        let rows = |tx: &ReadTx<'_>, after: &str, limit| tx.templates(after, limit);
        let page = pagination::read(self.store(), page, rows, |row| row.template.name.as_str());
        Ok(page.await?.map(|row| row.template))
    }

    /// Deletes a template and cancels its download. Its instances and the images that they use stay.
    pub async fn delete_template(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        match self.downloads().delete(name, cause.clone()).await {
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
            .store()
            .write(move |tx| {
                let row = tx
                    .template(&wanted)?
                    .ok_or_else(|| problems::not_found("template", &wanted))?;
                tx.emit(&event_builder::event(
                    at,
                    "template.deleted",
                    event_builder::template(&wanted),
                    &cause,
                    "deleted",
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
        self.images().collect(images).await;
        Ok(())
    }

    /// Downloads a template's image from its source again. A newer image becomes a new revision, and a missing file is
    /// restored.
    pub async fn refresh_template(
        &self,
        name: &str,
        cause: Cause,
    ) -> Result<Download, ControlError> {
        let wanted = name.to_owned();
        let row = self
            .store()
            .read(move |tx| tx.template(&wanted))
            .await
            .map_err(|error: StoreError| ControlError::from(error))?;
        let row = row.ok_or_else(|| problems::not_found("template", name))?;
        let mirror = &self.config().downloads.mirror;
        let request = crate::images::downloads::refresh(row, mirror)?;
        self.create_download(request, cause).await
    }
}
