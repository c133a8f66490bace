//! `waifuctl node show`

use jiff::Timestamp;
use waifud_api::Node;
use waifud_types::status::Condition;

use super::zero_or;
use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::text::{age, escape, failing_conditions, field_list};

/// Prints one node.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let node = context.client.node(name);
    context.printer.show(node, to_text).await
}

fn to_text(node: &Node, now: Timestamp) -> String {
    field_list(|line| {
        line("name", node.name.as_str());
        line("id", &node.id.to_string());
        line("state", &super::list::state(node));
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
        // The node's own condition says the same, once it has reported it.
        let is_held = |condition: &Condition| condition.kind == "destruction-held" && !condition.ok;
        if !node.confirmed && !node.conditions.iter().any(is_held) {
            line(
                "restored",
                &format!(
                    "the database was restored from a backup; the node destroys nothing until you confirm it: waifuctl node confirm {}",
                    node.name
                ),
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
        let met = node.conditions.iter().filter(|condition| condition.ok);
        for condition in met {
            line(
                "ok",
                &format!(
                    "{}: {}",
                    escape(&condition.kind),
                    escape(&condition.message)
                ),
            );
        }
        failing_conditions(line, &node.conditions, |condition| {
            let remedy = hint::of_node_condition(condition, &node.name);
            (escape(&condition.kind), remedy)
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(confirmed: bool, conditions: &serde_json::Value) -> String {
        let node: Node = serde_json::from_value(serde_json::json!({
            "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "alder", "state": "ready", "labels": {},
            "arch": null, "cpu_model": null, "hypervisor": null, "agent_version": null,
            "capacity": {"cpus": 4, "memory_bytes": 1 << 30}, "promised": {"cpus": 0, "memory_bytes": 0},
            "used": {"cpus": 0, "memory_bytes": 0}, "subnets": [], "bridges": [], "pools": [], "last_contact": null,
            "clock_skew_s": null, "conditions": conditions, "unmanaged": [], "confirmed": confirmed,
        }))
        .unwrap();
        to_text(&node, Timestamp::UNIX_EPOCH)
    }

    fn condition(kind: &str, ok: bool, reason: &str) -> serde_json::Value {
        serde_json::json!({"type": kind, "ok": ok, "reason": reason, "message": "in words", "since": "2026-01-02T03:04:05Z"})
    }

    #[test]
    fn the_confirmation_after_a_restore_is_requested_once() {
        let command = "waifuctl node confirm alder";
        let held = condition("destruction-held", false, "incarnation-changed");
        for conditions in [serde_json::json!([]), serde_json::json!([held])] {
            let text = shown(false, &conditions);
            assert_eq!(text.matches(command).count(), 1, "{text}");
        }
        assert!(!shown(true, &serde_json::json!([])).contains(command));
    }

    #[test]
    fn conditions_that_are_met_are_shown_too() {
        let conditions = [
            condition("certificate", true, "valid"),
            condition("state-dir", false, "low"),
        ];
        let text = shown(true, &serde_json::json!(conditions));
        assert!(
            text.contains("ok           certificate: in words"),
            "{text}"
        );
        assert!(text.contains("condition    state-dir: in words"), "{text}");
    }
}
