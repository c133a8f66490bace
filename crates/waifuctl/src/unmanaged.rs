//! Finds unmanaged instances: those that exist on a node but not in waifud's database.

use waifud_api::{Node, Unmanaged};

use crate::context::Context;
use crate::failure::Failure;
use crate::pagination::all_nodes;
use crate::text::escape;

/// Finds an unmanaged instance by name or id, and its node.
pub async fn find(
    context: &Context,
    wanted: &str,
    node: Option<&str>,
) -> Result<(Node, waifud_types::InstanceId), Failure> {
    let nodes = match node {
        Some(name) => vec![context.client.node(name).await?],
        None => all_nodes(context).await?,
    };
    let is_it =
        |u: &Unmanaged| u.name.as_deref() == Some(wanted) || u.instance.to_string() == wanted;
    let mut found: Vec<(Node, waifud_types::InstanceId)> = Vec::new();
    for node in nodes {
        for entry in node.unmanaged.iter().filter(|u| is_it(u)) {
            if !found
                .iter()
                .any(|(n, id)| n.id == node.id && *id == entry.instance)
            {
                found.push((node.clone(), entry.instance));
            }
        }
    }
    match found.pop() {
        None => Err(Failure::input(
            "not-found",
            format!("no unmanaged instance is named {}", escape(wanted)),
        )
        .hint("waifuctl node show NODE lists unmanaged instances")),
        Some(_) if !found.is_empty() => Err(Failure::input(
            "ambiguous-name",
            format!("several unmanaged instances are named {}", escape(wanted)),
        )
        .hint("add --node NODE, or use the id")),
        Some(one) => Ok(one),
    }
}
