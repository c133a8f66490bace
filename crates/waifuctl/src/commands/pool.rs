//! `waifuctl pool list`

use crate::cli::PoolCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::pools::{pools_of, shown};

/// Runs one of the pool commands.
pub async fn run(context: &Context, command: PoolCommand) -> Result<(), Failure> {
    let PoolCommand::List { node } = command;
    let pools = match node {
        Some(name) => pools_of(vec![context.client.node(&name).await?]),
        None => pools_of(pagination::all_nodes(context).await?),
    };
    let items = serde_json::json!({"items": pools, "next": null});
    context.printer.print(&items, || shown(&pools))
}
