//! `waifuctl network add`

use waifud_api::{CreateNetwork, Network};

use super::{bridge, usable};
use crate::cli::NetworkAddArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;

/// Adds a network; a bridge that no node has is accepted with a note.
pub async fn run(context: &Context, args: NetworkAddArgs) -> Result<(), Failure> {
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

/// A note if no node has the bridge.
fn nowhere(network: &Network) -> Option<String> {
    let named = network.bridge.as_ref()?;
    if network.nodes.iter().any(|node| node.usable) {
        return None;
    }
    Some(format!(
        "note: no node has a bridge {} yet; instances on {} stay pending. docs/guides/lan.md describes how to create it",
        escape(named),
        network.name
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::lan;
    use super::*;

    #[test]
    fn a_bridge_that_no_node_has_is_noted() {
        assert_eq!(nowhere(&lan(&[("alder", None)])), None);
        let nowhere_yet = lan(&[("alder", Some("has no bridge br0"))]);
        assert!(
            nowhere(&nowhere_yet)
                .unwrap()
                .contains("docs/guides/lan.md")
        );
        assert!(summary(&nowhere_yet).ends_with("on no node yet"));
    }
}
