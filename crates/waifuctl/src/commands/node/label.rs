//! `waifuctl node label`

use waifud_api::UpdateNode;

use crate::cli::NodeLabelArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::labels;

pub async fn run(context: &Context, args: NodeLabelArgs) -> Result<(), Failure> {
    let change = UpdateNode {
        labels: labels::changes(&args.labels.changes)?,
        ..UpdateNode::default()
    };
    let node = context.client.update_node(&args.name, &change).await?;
    let summary = labels::summary(node.name.as_str(), &node.labels);
    context.printer.print(&node, || summary)
}
