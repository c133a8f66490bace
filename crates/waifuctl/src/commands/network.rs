//! `waifuctl network …`

use std::fmt::Write;

use jiff::Timestamp;
use waifud_api::{CreateNetwork, Network};

use crate::cli_network::NetworkCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::printer::table;
use crate::text::{age, escape};

/// Runs one of the network verbs.
pub async fn run(context: &Context, command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Add(args) => {
            let request = CreateNetwork {
                name: args.name,
                bridge: args.bridge,
            };
            let network = context.client.create_network(&request).await?;
            context.printer.print(&network, || summary(&network))?;
            if let Some(note) = nowhere(&network) {
                context.printer.note(&note);
            }
            Ok(())
        }
        NetworkCommand::List => {
            let page = pagination::list(async |query| context.client.networks(query).await).await?;
            context.printer.print(&page, || {
                let now = Timestamp::now();
                let rows = page.items.iter().map(|network| row(network, now));
                table(
                    &["NAME", "BRIDGE", "NODES", "USED BY", "AGE"],
                    rows.collect(),
                )
            })
        }
        NetworkCommand::Show(args) => {
            let network = context.client.network(&args.name).await?;
            context
                .printer
                .print(&network, || for_people(&network, Timestamp::now()))
        }
        NetworkCommand::Delete(args) => {
            context.client.delete_network(&args.name).await?;
            let result = serde_json::json!({"name": args.name, "state": "deleted"});
            context.printer.print(&result, || {
                format!("{}: deleted; bridges stay as they are", escape(&args.name))
            })
        }
    }
}

fn bridge(network: &Network) -> String {
    network
        .bridge
        .as_ref()
        .map_or_else(|| "-".to_owned(), |bridge| escape(bridge))
}

/// Names of the nodes that can have guests on it.
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

fn row(network: &Network, now: Timestamp) -> Vec<String> {
    vec![
        network.name.to_string(),
        bridge(network),
        usable(network),
        network.used_by.to_string(),
        network
            .created_at
            .map_or_else(|| "-".to_owned(), |at| age(at, now)),
    ]
}

fn summary(network: &Network) -> String {
    format!(
        "{}: bridge {} on {}",
        network.name,
        bridge(network),
        match usable(network).as_str() {
            "-" => "no node yet",
            names => names,
        }
    )
}

/// A word to whoever named a bridge that no node has.
fn nowhere(network: &Network) -> Option<String> {
    let named = network.bridge.as_ref()?;
    if network.nodes.iter().any(|node| node.usable) {
        return None;
    }
    Some(format!(
        "note: no node has told of a bridge {} yet; instances on {} wait for one. docs/guides/lan.md shows how to make it",
        escape(named),
        network.name
    ))
}

fn for_people(network: &Network, now: Timestamp) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _infallible = writeln!(out, "{label:<12} {value}");
    };
    line("name", network.name.as_str());
    line(
        "bridge",
        &match &network.bridge {
            Some(bridge) => escape(bridge),
            None => "- (each node routes it by itself)".to_owned(),
        },
    );
    line("used by", &format!("{} instances", network.used_by));
    for node in &network.nodes {
        let said = match (&node.reason, node.usable) {
            (Some(reason), _) => escape(reason),
            (None, true) => "ready".to_owned(),
            (None, false) => "can't be used".to_owned(),
        };
        line("node", &format!("{}: {said}", node.node));
    }
    if let Some(at) = network.created_at {
        line("age", &age(at, now));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_api::NetworkNode;

    fn lan(nodes: &[(&str, Option<&str>)]) -> Network {
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
                })
                .collect(),
        }
    }

    #[test]
    fn a_list_says_which_nodes_have_the_bridge() {
        let network = lan(&[
            ("alder", None),
            ("birch", Some("has no bridge br0")),
            ("cedar", None),
        ]);
        let row = row(&network, Timestamp::UNIX_EPOCH);
        assert_eq!(row, ["lan", "br0", "alder,cedar", "2", "-"]);
        assert_eq!(nowhere(&network), None);
        let shown = for_people(&network, Timestamp::UNIX_EPOCH);
        assert!(shown.contains("birch: has no bridge br0"), "{shown}");
        assert!(shown.contains("alder: ready"), "{shown}");
    }

    #[test]
    fn whoever_names_a_bridge_that_is_nowhere_is_told() {
        let nowhere_yet = lan(&[("alder", Some("has no bridge br0"))]);
        assert!(
            nowhere(&nowhere_yet)
                .unwrap()
                .contains("docs/guides/lan.md")
        );
        assert!(summary(&nowhere_yet).ends_with("on no node yet"));
    }
}
