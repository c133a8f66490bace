//! `waifuctl node cordon` and `waifuctl node uncordon`

use waifud_api::{Node, UpdateNode};

use crate::cli::NodesArg;
use crate::context::Context;
use crate::failure::Failure;

/// Cordons nodes, or lets them accept new instances again.
pub async fn run(context: &Context, args: NodesArg, cordoned: bool) -> Result<(), Failure> {
    // All names are looked up before the first change.
    let mut nodes = Vec::new();
    for name in &args.names {
        nodes.push(context.client.node(name).await?);
    }
    let change = UpdateNode {
        cordoned: Some(cordoned),
        ..UpdateNode::default()
    };
    let mut done: Vec<Node> = Vec::new();
    for node in nodes {
        let id = node.id.to_string();
        done.push(context.client.update_node(&id, &change).await?);
    }
    let word = if cordoned { "cordoned" } else { "uncordoned" };
    context.printer.print(&done, || {
        let line = |node: &Node| format!("{}: {word}", node.name);
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}
