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
use crate::cli_template::TemplateRefreshArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::names::confirm;
use crate::printer::table;
use crate::text::{age, clock, escape};
use crate::{download, pagination, progress};

/// Runs one of the template verbs.
pub async fn run(context: &Context, command: TemplateCommand) -> Result<(), Failure> {
    match command {
        TemplateCommand::Add(args) => add(context, args).await,
        TemplateCommand::Refresh(args) => refresh(context, args).await,
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
        Failure::input("invalid-name", e.to_string())
            .field("name")
            .hint("such as debian-12")
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
                // Nothing is left behind: an image that somebody uses by now is kept by waifud.
                let _kept_or_gone = context.client.delete_image(digest).await;
            }
            return Err(error.into());
        }
    };
    context
        .printer
        .print(&template, || summary(&template, before))
}

/// The image of a template before something is done to it; `None` when the template does not exist.
async fn current(context: &Context, name: &str) -> Result<Option<Digest>, Failure> {
    match context.client.template(name).await {
        Ok(template) => Ok(Some(template.current)),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What became of a template, beside what it was.
fn summary(template: &Template, before: Option<Digest>) -> String {
    let (name, image) = (&template.name, template.current.short());
    let disks = format!(
        "disks made from it have at least {}",
        template.min_disk_bytes
    );
    match before {
        None => format!("{name}: created with image {image}; {disks}"),
        Some(before) if before == template.current => format!("{name}: unchanged, image {image}"),
        Some(before) => format!(
            "{name}: new revision, image {image} instead of {}; {disks}",
            before.short()
        ),
    }
}

/// What a refresh did to one template.
#[derive(serde::Serialize)]
struct Refreshed {
    name: String,
    /// `unchanged`, `new-revision` or `downloading`.
    state: &'static str,
    previous_image: Digest,
    image: Option<Digest>,
    #[serde(skip)]
    text: String,
}

/// Has waifud ask the sources again. One that fails keeps nobody from the others.
async fn refresh(context: &Context, args: TemplateRefreshArgs) -> Result<(), Failure> {
    let mut templates = Vec::new();
    if args.all {
        let all = pagination::list(async |query| context.client.templates(query).await).await?;
        templates.extend(all.items.into_iter().filter(has_source));
    } else {
        for name in &args.names {
            templates.push(context.client.template(name).await?);
        }
    }
    let mut failed = None;
    let mut begun = Vec::new();
    for template in templates {
        match context
            .client
            .refresh_template(template.name.as_str())
            .await
        {
            Ok(download) => begun.push((template, download)),
            Err(error) => note_failure(context, &mut failed, error.into()),
        }
    }
    let mut refreshed = Vec::new();
    for (before, download) in begun {
        let name = before.name.to_string();
        if args.no_wait {
            refreshed.push(Refreshed {
                text: format!("{name}: downloading {}", escape(&download.source_url)),
                name,
                state: "downloading",
                previous_image: before.current,
                image: None,
            });
            continue;
        }
        match download::until_there(context, download).await {
            Ok(template) => refreshed.push(Refreshed {
                text: summary(&template, Some(before.current)),
                name,
                state: if template.current == before.current {
                    "unchanged"
                } else {
                    "new-revision"
                },
                previous_image: before.current,
                image: Some(template.current),
            }),
            Err(failure) => note_failure(context, &mut failed, failure),
        }
    }
    let lines: Vec<&str> = refreshed.iter().map(|one| one.text.as_str()).collect();
    let text = lines.join("\n");
    if !refreshed.is_empty() || failed.is_none() {
        context
            .printer
            .print(&serde_json::json!({ "items": refreshed }), || text)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Whether a template came from somewhere that can be asked again.
fn has_source(template: &Template) -> bool {
    template.source.is_some()
}

/// The first failure decides how the command ends; later ones are told as they come.
fn note_failure(context: &Context, first: &mut Option<Failure>, failure: Failure) {
    if first.is_none() {
        *first = Some(failure);
    } else {
        failure.print(context.printer.is_json());
    }
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
    let before = current(context, &args.name).await?;
    let begun = context.client.create_download(&request).await?;
    if args.no_wait {
        return context.printer.print(&begun, || {
            format!("{}: downloading {}", begun.name, escape(&begun.source_url))
        });
    }
    let template = download::until_there(context, begun).await?;
    context
        .printer
        .print(&template, || summary(&template, before))
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
            qcow2::parse(&head).map_err(|e| bad_image(path, &head, &e))?;
        }
        context.update(bytes);
        length += bytes.len() as u64;
        bar.set_position(length);
    }
    bar.finish_and_clear();
    if length == 0 {
        return Err(bad_image(path, &[], &qcow2::Qcow2Error::NotQcow2));
    }
    let bytes: [u8; 32] = context
        .finish()
        .as_ref()
        .try_into()
        .map_err(|_| Failure::ours("digest", "SHA-256 gave no 32 bytes"))?;
    Ok((Digest::from_bytes(bytes), length))
}

fn bad_image(path: &Path, head: &[u8], error: &qcow2::Qcow2Error) -> Failure {
    if let Some(packed) = qcow2::packing(head) {
        return Failure::input(
            "invalid-image",
            format!("{} is compressed with {}", path.display(), packed.name),
        )
        .field("--file")
        .hint(format!(
            "unpack it first: {} {}, then give the unpacked file",
            packed.tool,
            path.display()
        ));
    }
    Failure::input(
        "invalid-image",
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

/// Where the image comes from, as a refresh asks for it.
fn source_lines(template: &Template) -> Vec<(&'static str, String)> {
    let Some(source) = &template.source else {
        return vec![("source", "uploaded file".to_owned())];
    };
    let mut lines = Vec::new();
    if let Some(entry) = &source.catalog {
        lines.push(("source", format!("catalog entry {entry}")));
        lines.push(("url", source.url.clone()));
    } else {
        lines.push(("source", source.url.clone()));
    }
    match (&source.checksum, &source.checksums_url) {
        (Some(checksum), _) => lines.push(("checksum", checksum.to_string())),
        (None, Some(list)) => lines.push(("checksums", list.clone())),
        (None, None) if source.insecure_no_checksum => {
            lines.push(("checksum", "none (https only)".to_owned()));
        }
        (None, None) => {}
    }
    if let Some(name) = &source.checksums_file {
        lines.push(("listed as", name.clone()));
    }
    lines
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
        for (label, value) in source_lines(&template) {
            line(label, &escape(&value));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn template(current: u8) -> Template {
        let digest = Digest::from_bytes([current; 32]);
        serde_json::from_value(serde_json::json!({
            "name": "v", "datasource": "openstack", "firmware": "bios", "default_user": null,
            "min_disk_bytes": 128 << 20, "current": digest, "used_by": 0, "revisions": [],
            "source": {
                "url": "https://example.org/v.qcow2", "catalog": null, "checksum": null,
                "checksums_url": "https://example.org/SHA256SUMS", "checksums_file": null,
                "insecure_no_checksum": false,
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_outcome_says_whether_the_image_is_another_one() {
        let digest = |byte| Digest::from_bytes([byte; 32]);
        assert_eq!(
            summary(&template(0xcd), None),
            "v: created with image cdcdcd; disks made from it have at least 128M"
        );
        assert_eq!(
            summary(&template(0xcd), Some(digest(0xcd))),
            "v: unchanged, image cdcdcd"
        );
        assert_eq!(
            summary(&template(0xcd), Some(digest(0xab))),
            "v: new revision, image cdcdcd instead of ababab; disks made from it have at least 128M"
        );
    }

    #[test]
    fn the_source_is_shown_as_a_refresh_asks_for_it() {
        let lines = source_lines(&template(1));
        assert_eq!(
            lines,
            [
                ("source", "https://example.org/v.qcow2".to_owned()),
                ("checksums", "https://example.org/SHA256SUMS".to_owned()),
            ]
        );
        let mut uploaded = template(1);
        uploaded.source = None;
        assert_eq!(
            source_lines(&uploaded),
            [("source", "uploaded file".to_owned())]
        );
        assert!(has_source(&template(1)) && !has_source(&uploaded));
    }

    #[test]
    fn a_compressed_image_is_unpacked_and_not_converted() {
        let path = Path::new("x.qcow2.xz");
        let failure = bad_image(path, b"\xfd7zXZ\0\0", &qcow2::Qcow2Error::NotQcow2);
        let text = failure.for_people();
        assert!(text.contains("compressed with xz"), "{text}");
        assert!(text.contains("unxz x.qcow2.xz"), "{text}");
        assert!(!text.contains("qemu-img"), "{text}");
        let text = bad_image(path, b"raw", &qcow2::Qcow2Error::NotQcow2).for_people();
        assert!(text.contains("qemu-img convert"), "{text}");
    }
}
