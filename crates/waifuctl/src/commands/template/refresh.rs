//! `waifuctl template refresh`

use waifud_types::Digest;
use waifud_types::template::Template;

use super::summary;
use crate::cli::TemplateRefreshArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::{download, pagination};

/// The result of a refresh.
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

/// Refreshes templates. A failure does not stop the others.
pub async fn run(context: &Context, args: TemplateRefreshArgs) -> Result<(), Failure> {
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
        match download::until_downloaded(context, download).await {
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

/// Whether the template has a source to refresh from.
fn has_source(template: &Template) -> bool {
    template.source.is_some()
}

/// The first failure is the result of the command; later ones are printed.
fn note_failure(context: &Context, first: &mut Option<Failure>, failure: Failure) {
    if first.is_none() {
        *first = Some(failure);
    } else {
        failure.print(context.printer.is_json());
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::template;
    use super::*;

    #[test]
    fn an_uploaded_template_cannot_be_refreshed() {
        let mut uploaded = template(1);
        assert!(has_source(&uploaded));
        uploaded.source = None;
        assert!(!has_source(&uploaded));
    }
}
