//! `waifuctl node confirm`

use waifud_api::Node;

use crate::cli::ConfirmArgs;
use crate::confirm::ask;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination::all_nodes;

/// Confirms nodes after a restored backup.
pub async fn run(context: &Context, args: ConfirmArgs) -> Result<(), Failure> {
    let mut nodes = Vec::new();
    for name in &args.names {
        nodes.push(context.client.node(name).await?);
    }
    if args.all {
        nodes = all_nodes(context).await?;
        nodes.retain(|node| !node.confirmed);
    }
    if !args.yes {
        for node in nodes.iter().filter(|node| !node.confirmed) {
            let name = node.name.as_str();
            ask(
                &format!("confirming the restored database for {name}"),
                "The node will then execute waifud's deletions, and create missing instances again, with new disks from their images.",
                name,
            )?;
        }
    }
    let mut done: Vec<Node> = Vec::new();
    for node in nodes {
        done.push(context.client.confirm_node(node.id).await?);
    }
    context.printer.print(&done, || {
        if done.is_empty() {
            return "all nodes are confirmed".to_owned();
        }
        let line = |node: &Node| format!("{}: confirmed", node.name);
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}
