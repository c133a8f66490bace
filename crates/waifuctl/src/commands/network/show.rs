//! `waifuctl network show`

use jiff::Timestamp;
use waifud_api::Network;

use crate::context::Context;
use crate::failure::Failure;
use crate::text::{age, escape, field_list};

/// Prints one network.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let network = context.client.network(name);
    context.printer.show(network, to_text).await
}

fn to_text(network: &Network, now: Timestamp) -> String {
    field_list(|line| {
        line("name", network.name.as_str());
        line(
            "bridge",
            &match &network.bridge {
                Some(bridge) => escape(bridge),
                None => "- (routed by each node)".to_owned(),
            },
        );
        line("used by", &format!("{} instances", network.used_by));
        for node in &network.nodes {
            let state = match (&node.reason, node.usable) {
                (Some(reason), _) => escape(reason),
                (None, true) => "ready".to_owned(),
                (None, false) => "not usable".to_owned(),
            };
            line("node", &format!("{}: {state}", node.node));
        }
        if let Some(at) = network.created_at {
            line("age", &age(at, now));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::lan;
    use super::*;

    #[test]
    fn the_state_of_the_network_on_each_node_is_shown() {
        let network = lan(&[("alder", None), ("birch", Some("has no bridge br0"))]);
        let shown = to_text(&network, Timestamp::UNIX_EPOCH);
        assert!(shown.contains("birch: has no bridge br0"), "{shown}");
        assert!(shown.contains("alder: ready"), "{shown}");
    }
}
