//! `waifuctl network …`

mod add;
mod list;
mod show;

use crate::cli::NetworkCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use waifud_api::Network;

/// Runs one of the network commands.
pub async fn run(context: &Context, command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Add(args) => add::run(context, args).await,
        NetworkCommand::List => list::run(context).await,
        NetworkCommand::Show(args) => show::run(context, &args.name).await,
        NetworkCommand::Delete(args) => delete(context, &args.name).await,
    }
}

async fn delete(context: &Context, name: &str) -> Result<(), Failure> {
    context.client.delete_network(name).await?;
    let result = serde_json::json!({"name": name, "state": "deleted"});
    context.printer.print(&result, || {
        format!("{}: deleted; bridges are unchanged", escape(name))
    })
}

fn bridge(network: &Network) -> String {
    network
        .bridge
        .as_ref()
        .map_or_else(|| "-".to_owned(), |bridge| escape(bridge))
}

/// Names of the nodes where guests can use the network.
fn usable(network: &Network) -> String {
    let names: Vec<_> = network
        .nodes
        .iter()
        .filter(|node| node.usable)
        .map(|node| node.node.as_str())
        .collect();
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(",")
    }
}

#[cfg(test)]
mod tests {
    use waifud_api::{Network, NetworkNode};

    /// A network of bridge br0; a node with a reason cannot use it.
    pub fn lan(nodes: &[(&str, Option<&str>)]) -> Network {
        Network {
            name: "lan".parse().unwrap(),
            bridge: Some("br0".to_owned()),
            used_by: 2,
            created_at: None,
            nodes: nodes
                .iter()
                .map(|(node, reason)| NetworkNode {
                    node: node.parse().unwrap(),
                    usable: reason.is_none(),
                    reason: reason.map(str::to_owned),
                    cause: None,
                })
                .collect(),
        }
    }
}
