//! `waifuctl adopt`, `waifuctl delete --unmanaged` and `waifuctl node confirm`: what is on a node and in nobody's list.

use waifud_api::{Instance, Node, Unmanaged};

use crate::cli::{AdoptArgs, ConfirmArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::names::{ask, confirm};
use crate::pagination::all_nodes;
use crate::text::escape;

/// Takes unmanaged instances into the list.
pub async fn adopt(context: &Context, args: AdoptArgs) -> Result<(), Failure> {
    if args.name.is_some() && args.instances.len() > 1 {
        return Err(
            Failure::input("invalid-arguments", "--name is for one instance at a time")
                .field("--name")
                .hint("adopt them one by one"),
        );
    }
    let mut adopted: Vec<Instance> = Vec::new();
    for wanted in &args.instances {
        let (node, id) = find(context, wanted, args.node.as_deref()).await?;
        let instance = context
            .client
            .adopt(node.id, id, args.name.as_deref())
            .await?;
        adopted.push(instance);
    }
    context.printer.print(&adopted, || {
        let line = |i: &Instance| format!("{}: adopted, with its disks and address", i.name);
        adopted.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// Orders unmanaged instances to be destroyed, each after a look at what it is.
pub async fn delete(
    context: &Context,
    names: &[String],
    node: Option<&str>,
    yes: bool,
) -> Result<(), Failure> {
    let mut found = Vec::new();
    for name in names {
        let (node, id) = find(context, name, node).await?;
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

/// Confirms for nodes that the restored database is the right one.
pub async fn confirm_nodes(context: &Context, args: ConfirmArgs) -> Result<(), Failure> {
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
                &format!("letting the restored waifud destroy on {name}"),
                "What waifud orders to be destroyed there will be, and what is missing there is made anew, empty.",
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
            return "every node is confirmed".to_owned();
        }
        let line = |node: &Node| format!("{}: confirmed", node.name);
        done.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// The node that has an unmanaged instance of this name or id, and its id.
async fn find(
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
            format!("nothing unmanaged is called {}", escape(wanted)),
        )
        .hint("waifuctl node show NODE lists what is unmanaged on it")),
        Some(_) if !found.is_empty() => Err(Failure::input(
            "ambiguous-name",
            format!(
                "more than one unmanaged instance is called {}",
                escape(wanted)
            ),
        )
        .hint("add --node NODE, or use the id")),
        Some(one) => Ok(one),
    }
}
