//! `waifuctl template list`

use jiff::Timestamp;
use waifud_types::template::Template;

use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::{age, escape};
use crate::{download, pagination};

/// Prints all templates, and running downloads as notes.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let page = pagination::list(async |query| context.client.templates(query).await).await?;
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
