//! `waifuctl template add`

use waifud_api::{CreateDownload, CreateTemplate};
use waifud_types::name::NameError;
use waifud_types::{Digest, Name};

use super::image_file::inspect;
use super::summary;
use crate::cli::TemplateAddArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::{download, progress};

/// Uploads an image file, or has waifud download an image.
pub async fn run(context: &Context, args: TemplateAddArgs) -> Result<(), Failure> {
    let quiet = context.printer.is_json();
    // Checked before the upload.
    let name: Name = args.name.parse().map_err(|e: NameError| {
        Failure::input("invalid-name", e.to_string())
            .field("name")
            .hint("use a name like debian-12")
    })?;
    let Some(file) = args.file else {
        return fetch(context, args).await;
    };
    let (digest, size) = inspect(&file, quiet)?;
    let known = context.client.image(digest).await?;
    let uploaded = known.is_none_or(|image| !image.available);
    let before = current(context, &args.name).await?;
    if uploaded {
        let bar = progress::bytes(size, "uploading", quiet);
        let shown = bar.clone();
        context
            .client
            .upload_image(digest, &file, move |sent| shown.set_position(sent))
            .await?;
        bar.finish_and_clear();
    }
    let request = CreateTemplate {
        name: name.to_string(),
        image: digest,
        arch: Some(
            args.arch
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        ),
        datasource: args.datasource.unwrap_or_default(),
        firmware: args.firmware.unwrap_or_default(),
        default_user: args.user,
    };
    let template = match context.client.create_template(&request).await {
        Ok(template) => template,
        Err(error) => {
            if uploaded {
                // Removes the upload again. waifud keeps an image that is in use.
                let _kept_or_gone = context.client.delete_image(digest).await;
            }
            return Err(error.into());
        }
    };
    context
        .printer
        .print(&template, || summary(&template, before))
}

/// The current image of a template; `None` if it does not exist.
async fn current(context: &Context, name: &str) -> Result<Option<Digest>, Failure> {
    match context.client.template(name).await {
        Ok(template) => Ok(Some(template.current)),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes waifud download an image, and waits.
async fn fetch(context: &Context, args: TemplateAddArgs) -> Result<(), Failure> {
    let request = CreateDownload {
        name: args.name.clone(),
        catalog: args.catalog,
        url: args.url,
        checksum: args.checksum,
        checksums_url: args.checksums_url,
        checksums_file: args.checksums_file,
        insecure_no_checksum: args.insecure_no_checksum,
        arch: args.arch,
        datasource: args.datasource,
        firmware: args.firmware,
        default_user: args.user,
    };
    let before = current(context, &args.name).await?;
    let begun = context.client.create_download(&request).await?;
    if args.no_wait {
        return context.printer.print(&begun, || {
            format!("{}: downloading {}", begun.name, escape(&begun.source_url))
        });
    }
    let template = download::until_downloaded(context, begun).await?;
    context
        .printer
        .print(&template, || summary(&template, before))
}
