//! `waifuctl template catalog`

use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;

/// Prints the catalog.
pub async fn run(context: &Context) -> Result<(), Failure> {
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
