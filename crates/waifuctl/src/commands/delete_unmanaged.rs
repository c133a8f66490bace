//! `waifuctl delete --unmanaged`

use crate::confirm::confirm;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::unmanaged;

/// Requests the deletion of unmanaged instances.
pub async fn run(
    context: &Context,
    names: &[String],
    node: Option<&str>,
    yes: bool,
) -> Result<(), Failure> {
    let mut found = Vec::new();
    for name in names {
        let (node, id) = unmanaged::find(context, name, node).await?;
        if !yes {
            confirm("unmanaged instance", name)?;
        }
        found.push((name, node, id));
    }
    let mut results = Vec::new();
    for (name, node, id) in found {
        context.client.delete_unmanaged(node.id, id).await?;
        results.push(serde_json::json!({ "name": name, "node": node.name, "state": "deleting" }));
    }
    context.printer.print(&results, || {
        let line = |name: &String| format!("{}: deleting", escape(name));
        names.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}
