//! `waifuctl node list`

use jiff::Timestamp;
use waifud_api::{Instance, Node};
use waifud_types::node::NodeState;
use waifud_types::status::Condition;

use super::zero_or;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::printer::table;
use crate::text::{age, escape};

/// Prints all nodes.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let nodes = pagination::list(async |query| context.client.nodes(query).await).await?;
    // The number of guests is not part of a node; it is counted only for text output.
    let guests = if context.printer.is_json() {
        Vec::new()
    } else {
        let guests = pagination::list(async |query| context.client.instances(query).await);
        guests.await?.items
    };
    context.printer.print(&nodes, || {
        let now = Timestamp::now();
        let headers = [
            "NAME",
            "STATE",
            "HYPERVISOR",
            "CPU",
            "MEM",
            "POOL",
            "GUESTS",
            "VERSION",
            "SEEN",
        ];
        let rows = nodes.items.iter().map(|node| row(node, &guests, now));
        let mut out = table(&headers, rows.collect());
        for note in notes(&nodes.items) {
            out.push_str("\nnote: ");
            out.push_str(&note);
        }
        out
    })
}

/// Conditions of the nodes that are not ok.
fn notes(nodes: &[Node]) -> Vec<String> {
    let of_one = |node: &Node| {
        let bad = node.conditions.iter().filter(|condition| !condition.ok);
        let text = |condition: &Condition| {
            let (kind, message) = (escape(&condition.kind), escape(&condition.message));
            format!("{}: {kind}: {message}", node.name)
        };
        bad.map(text).collect::<Vec<_>>()
    };
    nodes.iter().flat_map(of_one).collect()
}

/// The state; an unreachable node can be cordoned, too.
pub(super) fn state(node: &Node) -> String {
    match (node.state, node.cordoned) {
        (NodeState::Unreachable, true) => "unreachable, cordoned".to_owned(),
        (state, _) => state.to_string(),
    }
}

fn row(node: &Node, guests: &[Instance], now: Timestamp) -> Vec<String> {
    let on_it = guests
        .iter()
        .filter(|g| g.status.node.as_ref() == Some(&node.name))
        .count();
    vec![
        node.name.to_string(),
        state(node),
        node.hypervisor
            .as_ref()
            .map_or("-", |h| h.kind.as_str())
            .to_owned(),
        format!("{}/{}", node.promised.cpus, node.capacity.cpus),
        format!(
            "{}/{}",
            zero_or(node.promised.memory_bytes),
            node.capacity.memory_bytes
        ),
        node.pools.first().map_or_else(
            || "-".to_owned(),
            |p| format!("{}/{}", zero_or(p.used_bytes), p.size_bytes),
        ),
        on_it.to_string(),
        node.agent_version.clone().unwrap_or_else(|| "-".to_owned()),
        node.last_contact
            .map_or_else(|| "-".to_owned(), |at| age(at, now)),
    ]
}
