//! `waifuctl node remove`

use std::fmt::Write;

use waifud_api::RemoveNode;
use waifud_api::client::ListQuery;
use waifud_types::InstanceState;

use crate::cli::NodeRemoveArgs;
use crate::confirm::ask;
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
        if !args.purge {
            // A removed node can still be purged.
            context.client.node(&args.name).await?;
        }
        let name = escape(&args.name);
        ask(
            &format!("removing node {name}"),
            &warning(&name, args.purge, &lost),
            &args.name,
        )?;
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

/// What the removal does.
fn warning(name: &str, purge: bool, lost: &[String]) -> String {
    let subnet = if purge {
        "releases its subnet"
    } else {
        "keeps its subnet reserved"
    };
    let mut text = format!("This removes node {name}: it revokes the node's key and {subnet}.");
    if !lost.is_empty() {
        let lost = lost.join(", ");
        let _infallible = write!(text, " The disks of these instances are given up: {lost}.");
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_says_what_the_removal_will_do() {
        let kept =
            "This removes node birch: it revokes the node's key and keeps its subnet reserved.";
        assert_eq!(warning("birch", false, &[]), kept);
        let lost = ["web".to_owned(), "db".to_owned()];
        assert_eq!(
            warning("birch", true, &lost),
            "This removes node birch: it revokes the node's key and releases its subnet. The disks of these instances are \
             given up: web, db."
        );
    }
}
