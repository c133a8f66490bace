//! `waifuctl node …`

use std::fmt::Write;

use jiff::Timestamp;
use waifud_api::{Instance, Node, UpdateNode};
use waifud_types::status::Condition;

use crate::cli_node::{NodeCommand, NodeLabelArgs, NodeRemoveArgs, NodeRenameArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::names::confirm;
use crate::printer::table;
use crate::text::{age, escape};
use crate::{labels, pagination};

/// Runs one of the node verbs.
pub async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List => list(context).await,
        NodeCommand::Show(args) => show(context, &args.name).await,
        NodeCommand::Confirm(args) => super::unmanaged::confirm_nodes(context, args).await,
        NodeCommand::Label(args) => label(context, args).await,
        NodeCommand::Rename(args) => rename(context, args).await,
        NodeCommand::Remove(args) => remove(context, args).await,
        NodeCommand::Token(command) => super::join_token::run(context, command).await,
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let nodes = pagination::list(async |query| context.client.nodes(query).await).await?;
    // The guests' count is not part of a node: it is counted here, only for people.
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

/// What is not well on nodes.
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

async fn rename(context: &Context, args: NodeRenameArgs) -> Result<(), Failure> {
    let change = UpdateNode {
        name: Some(args.new_name),
        ..UpdateNode::default()
    };
    let node = context.client.update_node(&args.name, &change).await?;
    context.printer.print(&node, || {
        format!("{} is now called {}", escape(&args.name), node.name)
    })
}

async fn label(context: &Context, args: NodeLabelArgs) -> Result<(), Failure> {
    let change = UpdateNode {
        labels: labels::changes(&args.changes)?,
        ..UpdateNode::default()
    };
    let node = context.client.update_node(&args.name, &change).await?;
    context.printer.print(&node, || {
        let labels = node.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| escape(&format!("{key}={value}")))
            .collect();
        if labels.is_empty() {
            format!("{}: no labels", node.name)
        } else {
            format!("{}: {}", node.name, labels.join(" "))
        }
    })
}

async fn remove(context: &Context, args: NodeRemoveArgs) -> Result<(), Failure> {
    if !args.yes {
        context.printer.note(if args.purge {
            "its key is forgotten, and others may have its subnet"
        } else {
            "its key is forgotten; its subnet is given to nobody"
        });
        confirm("node", &args.name)?;
    }
    context.client.remove_node(&args.name, args.purge).await?;
    let result = serde_json::json!({"name": args.name, "state": "removed", "purged": args.purge});
    context
        .printer
        .print(&result, || format!("{}: removed", escape(&args.name)))
}

fn row(node: &Node, guests: &[Instance], now: Timestamp) -> Vec<String> {
    let on_it = guests
        .iter()
        .filter(|g| g.status.node.as_ref() == Some(&node.name))
        .count();
    vec![
        node.name.to_string(),
        node.state.to_string(),
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

/// `0` reads better than `0B` in a fraction.
fn zero_or(size: waifud_types::ByteSize) -> String {
    if size.bytes() == 0 {
        "0".to_owned()
    } else {
        size.to_string()
    }
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let node = context.client.node(name).await?;
    context
        .printer
        .print(&node, || for_people(&node, Timestamp::now()))
}

fn for_people(node: &Node, now: Timestamp) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _infallible = writeln!(out, "{label:<12} {value}");
    };
    line("name", node.name.as_str());
    line("id", &node.id.to_string());
    line("state", &node.state.to_string());
    line(
        "seen",
        &node
            .last_contact
            .map_or_else(|| "never".to_owned(), |at| format!("{} ago", age(at, now))),
    );
    if let Some(hypervisor) = &node.hypervisor {
        line(
            "hypervisor",
            &format!(
                "{} ({})",
                hypervisor.kind.as_str(),
                escape(&hypervisor.reason)
            ),
        );
    }
    line(
        "cpu",
        &format!("{} promised of {}", node.promised.cpus, node.capacity.cpus),
    );
    line(
        "cpu model",
        &escape(node.cpu_model.as_deref().unwrap_or("-")),
    );
    line("arch", node.arch.as_deref().unwrap_or("-"));
    line(
        "memory",
        &format!(
            "{} promised of {}",
            zero_or(node.promised.memory_bytes),
            node.capacity.memory_bytes
        ),
    );
    for pool in &node.pools {
        let promised = zero_or(pool.promised_bytes);
        line(
            "pool",
            &format!(
                "{} ({}): {} used of {}, {promised} promised, {}",
                pool.name,
                pool.kind,
                zero_or(pool.used_bytes),
                pool.size_bytes,
                escape(&pool.health)
            ),
        );
    }
    for subnet in &node.subnets {
        line("subnet", &subnet.to_string());
    }
    line("bridges", &escape(&node.bridges.join(" ")));
    for (name, why) in &node.unfit_bridges {
        line("", &escape(&format!("{name} {why}")));
    }
    line("version", node.agent_version.as_deref().unwrap_or("-"));
    if let Some(skew) = node.clock_skew_s.filter(|s| s.abs() >= 1.0) {
        line("clock", &format!("{skew:+.0}s beside waifud's"));
    }
    if !node.confirmed {
        line(
            "restored",
            "the database was restored from a backup; nothing is destroyed here before: waifuctl node confirm",
        );
    }
    for unmanaged in &node.unmanaged {
        let name = unmanaged.name.as_deref().map(escape).unwrap_or_default();
        line(
            "unmanaged",
            &format!(
                "{} {} {name}{}{}",
                escape(&unmanaged.kind),
                unmanaged.instance,
                if unmanaged.running { ", running" } else { "" },
                if unmanaged.adoptable {
                    ", can be adopted"
                } else {
                    ""
                }
            ),
        );
    }
    for condition in node.conditions.iter().filter(|c| !c.ok) {
        line(
            "condition",
            &format!(
                "{}: {}",
                escape(&condition.kind),
                escape(&condition.message)
            ),
        );
    }
    out
}
