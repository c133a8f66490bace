//! `waifuctl template show`

use waifud_types::template::Template;

use crate::context::Context;
use crate::failure::Failure;
use crate::text::{clock, escape, field_list};

/// Prints one template.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let template = context.client.template(name).await?;
    context.printer.print(&template, || {
        field_list(|line| {
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
        })
    })
}

/// The source of the image, as a refresh uses it.
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

#[cfg(test)]
mod tests {
    use super::super::tests::template;
    use super::*;

    #[test]
    fn the_source_is_shown_as_a_refresh_uses_it() {
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
    }
}
