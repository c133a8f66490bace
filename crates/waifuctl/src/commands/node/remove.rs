//! `waifuctl node remove`

use crate::cli::NodeRemoveArgs;
use crate::confirm::confirm;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;

pub async fn run(context: &Context, args: NodeRemoveArgs) -> Result<(), Failure> {
    if !args.yes {
        context.printer.note(if args.purge {
            "the key of the node is revoked and its subnet is released"
        } else {
            "the key of the node is revoked; its subnet stays reserved"
        });
        confirm("node", &args.name)?;
    }
    context.client.remove_node(&args.name, args.purge).await?;
    let result = serde_json::json!({"name": args.name, "state": "removed", "purged": args.purge});
    context
        .printer
        .print(&result, || format!("{}: removed", escape(&args.name)))
}
