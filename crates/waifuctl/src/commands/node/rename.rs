//! `waifuctl node rename`

use waifud_api::UpdateNode;

use crate::cli::NodeRenameArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;

pub async fn run(context: &Context, args: NodeRenameArgs) -> Result<(), Failure> {
    let change = UpdateNode {
        name: Some(args.new_name),
        ..UpdateNode::default()
    };
    let node = context.client.update_node(&args.name, &change).await?;
    context.printer.print(&node, || {
        format!("{}: renamed to {}", escape(&args.name), node.name)
    })
}
