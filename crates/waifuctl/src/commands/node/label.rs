//! `waifuctl node label`

use waifud_api::UpdateNode;

use crate::cli::NodeLabelArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::labels;
use crate::text::escape;

pub async fn run(context: &Context, args: NodeLabelArgs) -> Result<(), Failure> {
    let change = UpdateNode {
        labels: labels::changes(&args.labels.changes)?,
        ..UpdateNode::default()
    };
    let node = context.client.update_node(&args.name, &change).await?;
    context.printer.print(&node, || {
        let labels = node.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| escape(&format!("{key}={value}")))
            .collect();
        if labels.is_empty() {
            format!("{}: no labels", node.name)
        } else {
            format!("{}: {}", node.name, labels.join(" "))
        }
    })
}
