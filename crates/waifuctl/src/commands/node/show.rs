//! `waifuctl node show`

use jiff::Timestamp;
use waifud_api::Node;

use super::zero_or;
use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::text::{age, escape, field_list};

/// Prints one node.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let node = context.client.node(name);
    context.printer.show(node, to_text).await
}

fn to_text(node: &Node, now: Timestamp) -> String {
    field_list(|line| {
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
            &format!("{} reserved of {}", node.promised.cpus, node.capacity.cpus),
        );
        line(
            "cpu model",
            &escape(node.cpu_model.as_deref().unwrap_or("-")),
        );
        line("arch", node.arch.as_deref().unwrap_or("-"));
        line(
            "memory",
            &format!(
                "{} reserved of {}",
                zero_or(node.promised.memory_bytes),
                node.capacity.memory_bytes
            ),
        );
        for pool in &node.pools {
            let promised = zero_or(pool.promised_bytes);
            line(
                "pool",
                &format!(
                    "{} ({}): {} used of {}, {promised} reserved, {}",
                    pool.name,
                    escape(pool.kind.as_str()),
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
            line("clock", &format!("{skew:+.0}s relative to waifud's"));
        }
        if !node.confirmed {
            line(
                "restored",
                "the database was restored from a backup; the node destroys nothing until you confirm it: waifuctl node confirm",
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
            let remedy = hint::of_node_condition(condition, &node.name);
            let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
            line(
                "condition",
                &format!(
                    "{}: {}{remedy}",
                    escape(&condition.kind),
                    escape(&condition.message)
                ),
            );
        }
    })
}
