//! `waifuctl template …`

use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use jiff::Timestamp;
use waifud_api::client::ListQuery;
use waifud_api::{CreateDownload, CreateTemplate};
use waifud_types::name::NameError;
use waifud_types::template::Template;
use waifud_types::{Digest, Name, qcow2};

use crate::cli::{TemplateAddArgs, TemplateCommand};
use crate::context::Context;
use crate::failure::Failure;
use crate::names::confirm;
use crate::printer::table;
use crate::text::{age, clock, escape};
use crate::{download, progress};

/// Runs one of the template verbs.
pub async fn run(context: &Context, command: TemplateCommand) -> Result<(), Failure> {
    match command {
        TemplateCommand::Add(args) => add(context, args).await,
        TemplateCommand::List => list(context).await,
        TemplateCommand::Catalog => catalog(context).await,
        TemplateCommand::Show(args) => show(context, &args.name).await,
        TemplateCommand::Delete(args) => {
            // A download without a template loses nobody anything.
            let coming = context.client.download(&args.name).await?.is_some();
            match context.client.template(&args.name).await {
                Ok(template) if !args.yes => confirm("template", template.name.as_str())?,
                Err(error) if !coming => return Err(error.into()),
                _ => {}
            }
            context.client.delete_template(&args.name).await?;
            let result = serde_json::json!({"name": args.name, "state": "deleted"});
            context
                .printer
                .print(&result, || format!("{}: deleted", args.name))
        }
    }
}

async fn add(context: &Context, args: TemplateAddArgs) -> Result<(), Failure> {
    let quiet = context.printer.is_json();
    // Before anything is read or sent: what is refused afterwards was uploaded for nothing.
    let name: Name = args.name.parse().map_err(|e: NameError| {
        Failure::input("bad-name", e.to_string())
            .field("name")
            .hint("such as debian-12")
    })?;
    let Some(file) = args.file else {
        return fetch(context, args).await;
    };
    let (digest, size) = inspect(&file, quiet)?;
    let uploaded = context.client.image(digest).await?.is_none();
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
                // Nothing is left behind: an image that somebody uses by now is kept by waifud.
                let _kept_or_gone = context.client.delete_image(digest).await;
            }
            return Err(error.into());
        }
    };
    context.printer.print(&template, || summary(&template))
}

fn summary(template: &Template) -> String {
    format!(
        "{}: {} ({} at least)",
        template.name,
        template.current.short(),
        template.min_disk_bytes
    )
}

/// Has waifud download it, and waits.
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
    let begun = context.client.create_download(&request).await?;
    if args.no_wait {
        return context.printer.print(&begun, || {
            format!("{}: downloading {}", begun.name, escape(&begun.source_url))
        });
    }
    let template = download::until_there(context, begun).await?;
    context.printer.print(&template, || summary(&template))
}

async fn catalog(context: &Context) -> Result<(), Failure> {
    let page = context.client.catalog().await?;
    context.printer.print(&page, || {
        let rows = page.items.iter().map(|entry| {
            vec![
                entry.name.to_string(),
                entry.title.clone(),
                entry.arch.clone(),
                entry.min_memory_bytes.to_string(),
                entry.default_user.clone(),
                entry.notes.clone().unwrap_or_default(),
            ]
        });
        let headers = ["NAME", "IMAGE", "ARCH", "MIN MEM", "USER", "NOTES"];
        table(&headers, rows.collect())
    })
}

/// The file's digest and length. What is no image is refused before anything is sent.
fn inspect(path: &Path, quiet: bool) -> Result<(Digest, u64), Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::input(
            "file-unreadable",
            format!("image file {} can't be read", path.display()),
        )
        .field("--file")
        .cause(&e)
    };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(
            Failure::input("not-a-file", format!("{} is not a file", path.display()))
                .field("--file"),
        );
    }
    let bar = progress::bytes(meta.len(), "reading", quiet);
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut head = Vec::with_capacity(qcow2::HEADER_BYTES);
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer).map_err(unreadable)?;
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            break;
        };
        if length == 0 {
            head.extend(bytes.iter().take(qcow2::HEADER_BYTES));
            qcow2::parse(&head).map_err(|e| bad_image(path, &e))?;
        }
        context.update(bytes);
        length += bytes.len() as u64;
        bar.set_position(length);
    }
    bar.finish_and_clear();
    if length == 0 {
        return Err(bad_image(path, &qcow2::Qcow2Error::NotQcow2));
    }
    let bytes: [u8; 32] = context
        .finish()
        .as_ref()
        .try_into()
        .map_err(|_| Failure::ours("digest", "SHA-256 gave no 32 bytes"))?;
    Ok((Digest::from_bytes(bytes), length))
}

fn bad_image(path: &Path, error: &qcow2::Qcow2Error) -> Failure {
    Failure::input(
        "bad-image",
        format!("{} can't be used: {error}", path.display()),
    )
    .field("--file")
    .hint("make one whole image: qemu-img convert -O qcow2 OLD NEW.qcow2")
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mut query = ListQuery::whole();
    let mut page = context.client.templates(&query).await?;
    while let Some(cursor) = page.next.take() {
        query.cursor = Some(cursor);
        let more = context.client.templates(&query).await?;
        page.items.extend(more.items);
        page.next = more.next;
    }
    context.printer.print(&page, || {
        let now = Timestamp::now();
        let headers = ["NAME", "IMAGE", "MIN DISK", "USER", "USED BY", "AGE"];
        table(&headers, page.items.iter().map(|t| row(t, now)).collect())
    })?;
    if !context.printer.is_json() {
        for coming in context.client.downloads().await?.items {
            context.printer.note(&download::remark(&coming));
        }
    }
    Ok(())
}

fn row(template: &Template, now: Timestamp) -> Vec<String> {
    vec![
        template.name.to_string(),
        template.current.short(),
        template.min_disk_bytes.to_string(),
        escape(template.default_user.as_deref().unwrap_or("-")),
        template.used_by.to_string(),
        template
            .revisions
            .first()
            .map_or_else(|| "-".to_owned(), |r| age(r.seen_at, now)),
    ]
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let template = context.client.template(name).await?;
    context.printer.print(&template, || {
        let mut out = String::new();
        let mut line = |label: &str, value: &str| {
            let _infallible = writeln!(out, "{label:<12} {value}");
        };
        line("name", template.name.as_str());
        line("image", &template.current.to_string());
        line("min disk", &template.min_disk_bytes.to_string());
        line(
            "user",
            &escape(template.default_user.as_deref().unwrap_or("-")),
        );
        line("datasource", template.datasource.as_str());
        line("firmware", template.firmware.as_str());
        line("used by", &template.used_by.to_string());
        for revision in &template.revisions {
            line(
                "revision",
                &format!(
                    "{} {} {} {}",
                    revision.image.short(),
                    escape(&revision.arch),
                    revision.size_bytes,
                    clock(revision.seen_at)
                ),
            );
        }
        out
    })
}
