//! `waifuctl node remove`

use waifud_api::RemoveNode;
use waifud_api::client::ListQuery;
use waifud_types::InstanceState;

use crate::cli::NodeRemoveArgs;
use crate::confirm::confirm;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::text::escape;

pub async fn run(context: &Context, args: NodeRemoveArgs) -> Result<(), Failure> {
    let lost = if args.force.force {
        instances_on(context, &args.name).await?
    } else {
        Vec::new()
    };
    if !args.yes {
        context.printer.note(if args.purge {
            "the key of the node is revoked and its subnet is released"
        } else {
            "the key of the node is revoked; its subnet stays reserved"
        });
        if !lost.is_empty() {
            context.printer.note(&format!(
                "the disks of these instances are given up: {}",
                lost.join(", ")
            ));
        }
        confirm("node", &args.name)?;
    }
    let how = RemoveNode {
        purge: args.purge,
        force: args.force.force,
        confirm_off: args.force.confirm_off,
    };
    context.client.remove_node(&args.name, how).await?;
    let result = serde_json::json!({
        "name": args.name, "state": "removed", "purged": args.purge, "lost": lost,
    });
    context.printer.print(&result, || {
        let removed = format!("{}: removed", escape(&args.name));
        if lost.is_empty() {
            return removed;
        }
        let names = lost.join(" ");
        format!(
            "{removed}\nlost with it: {names}\nto create one again elsewhere, with new disks: waifuctl recreate NAME"
        )
    })
}

/// The names of the instances on a node that are lost with it.
async fn instances_on(context: &Context, node: &str) -> Result<Vec<String>, Failure> {
    let node = context.client.node(node).await?;
    let instances = pagination::list(async |page| {
        let query = ListQuery {
            node: Some(node.name.to_string()),
            ..page.clone()
        };
        context.client.instances(&query).await
    });
    let instances = instances.await?.items.into_iter();
    // Those that are being deleted are gone with the node, which is what the user wanted.
    let lost = instances.filter(|instance| instance.status.state != InstanceState::Deleting);
    Ok(lost.map(|instance| instance.name.to_string()).collect())
}
