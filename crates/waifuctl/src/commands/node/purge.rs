//! `waifuctl node purge`

use waifud_api::RemoveNode;
use waifud_api::client::ClientError;

use crate::cli::NodePurgeArgs;
use crate::confirm::ask;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;

/// Releases the subnet of a node that was removed.
pub async fn run(context: &Context, args: NodePurgeArgs) -> Result<(), Failure> {
    let name = escape(&args.name);
    match context.client.node(&args.name).await {
        Ok(node) => {
            let failure = format!(
                "{} is a node, and only a removed one can be purged",
                node.name
            );
            return Err(Failure::input("node-not-removed", failure)
                .field("name")
                .hint("if another node has the name now, use the id of the removed one"));
        }
        Err(ClientError::Problem(problem)) if problem.status == 404 => {}
        Err(error) => return Err(error.into()),
    }
    if !args.yes {
        ask(
            &format!("releasing the subnet of {name}"),
            "The subnet is given to another node; guests that still run on the removed machine then have addresses of others.",
            &args.name,
        )?;
    }
    let how = RemoveNode {
        purge: true,
        ..RemoveNode::default()
    };
    context.client.remove_node(&args.name, how).await?;
    let result = serde_json::json!({"name": args.name, "state": "removed", "purged": true});
    context
        .printer
        .print(&result, || format!("{name}: purged, its subnet is free"))
}
