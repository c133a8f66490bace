//! `waifuctl network show`

use std::fmt::Write;

use jiff::Timestamp;
use waifud_api::Network;

use crate::context::Context;
use crate::failure::Failure;
use crate::text::{age, escape};

/// Prints one network.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let network = context.client.network(name).await?;
    context
        .printer
        .print(&network, || to_text(&network, Timestamp::now()))
}

fn to_text(network: &Network, now: Timestamp) -> String {
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
