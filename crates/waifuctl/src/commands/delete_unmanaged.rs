//! `waifuctl delete --unmanaged`

use crate::confirm::confirm;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::unmanaged;

/// Orders unmanaged instances to be destroyed, each after a look at what it is.
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
    let mut told = Vec::new();
    for (name, node, id) in found {
        context.client.delete_unmanaged(node.id, id).await?;
        told.push(serde_json::json!({ "name": name, "node": node.name, "state": "deleting" }));
    }
    context.printer.print(&told, || {
        let line = |name: &String| format!("{}: its node is told to destroy it", escape(name));
        names.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}
