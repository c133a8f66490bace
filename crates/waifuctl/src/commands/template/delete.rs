//! `waifuctl template delete`

use crate::cli::TemplateDeleteArgs;
use crate::confirm::confirm;
use crate::context::Context;
use crate::failure::Failure;

/// Deletes a template or cancels its download. Canceling a download needs no confirmation.
pub async fn run(context: &Context, args: TemplateDeleteArgs) -> Result<(), Failure> {
    let is_downloading = context.client.download(&args.name).await?.is_some();
    match context.client.template(&args.name).await {
        Ok(template) if !args.yes => confirm("template", template.name.as_str())?,
        Err(error) if !is_downloading => return Err(error.into()),
        _ => {}
    }
    context.client.delete_template(&args.name).await?;
    let result = serde_json::json!({"name": args.name, "state": "deleted"});
    context
        .printer
        .print(&result, || format!("{}: deleted", args.name))
}
