//! `waifuctl capacity`

use std::fmt::Write;

use waifud_api::client::CapacityQuery;
use waifud_api::{Capacity, InstanceSize, PlacementVerdict, Survival, UnplacedInstance};

use crate::cli::CapacityArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::escape;

/// Prints how many more instances of a size fit.
pub async fn run(context: &Context, args: CapacityArgs) -> Result<(), Failure> {
    let query = CapacityQuery {
        cpus: args.cpus,
        memory: args.memory,
        disk: args.disk,
        survive: args.survive,
    };
    let capacity = context.client.capacity(query).await?;
    context.printer.print(&capacity, || to_text(&capacity))
}

fn to_text(capacity: &Capacity) -> String {
    let mut out = String::new();
    if !capacity.nodes.is_empty() {
        let rows = capacity.nodes.iter().map(|fit| {
            vec![
                fit.node.to_string(),
                fit.more.to_string(),
                escape(&fit.english()),
            ]
        });
        out = table(&["NODE", "MORE", "REASON"], rows.collect());
        out.push('\n');
    }
    let InstanceSize {
        cpus,
        memory_bytes,
        disk_bytes,
    } = capacity.size;
    let cpus = counted(cpus.into(), "CPU");
    let size = format!("{cpus}, {memory_bytes} of memory and a disk of {disk_bytes}");
    let _infallible = match capacity.more {
        0 => write!(out, "No more instance with {size} fits."),
        1 => write!(out, "1 more instance with {size} fits."),
        more => write!(out, "{more} more instances with {size} fit."),
    };
    if let Some(survival) = &capacity.survival {
        out.push('\n');
        out.push_str(&survival_text(survival));
    }
    out
}

fn survival_text(survival: &Survival) -> String {
    let off: Vec<_> = survival.off.iter().map(ToString::to_string).collect();
    let with = match off.as_slice() {
        [] => return "No node is assumed to be off.".to_owned(),
        [one] => format!("With {one} off"),
        [most @ .., last] => format!("With {} and {last} off", most.join(", ")),
    };
    let displaced = counted(survival.displaced, "instance");
    let missing = survival.unplaced_count;
    if survival.displaced == 0 {
        return format!("{with}, everything that runs keeps running: no instance runs there.");
    }
    let verb = |number: u64| if number == 1 { "s" } else { "" };
    if survival.fits {
        let runs = verb(survival.displaced);
        return format!(
            "{with}, everything fits: {displaced} that run{runs} there would fit on other nodes."
        );
    }
    let fit = if missing == 1 { "does" } else { "do" };
    let mut out = format!(
        "{with}, {missing} of {displaced} that run{} there {fit} not fit on other nodes:",
        verb(survival.displaced)
    );
    for unplaced in &survival.unplaced {
        out.push_str("\n  ");
        out.push_str(&unplaced_text(unplaced));
    }
    let shown = u64::try_from(survival.unplaced.len()).unwrap_or(u64::MAX);
    if shown < missing {
        let _infallible = write!(out, "\n  and {} more", missing - shown);
    }
    out
}

fn unplaced_text(unplaced: &UnplacedInstance) -> String {
    let on =
        |verdict: &PlacementVerdict| format!("{}: {}", verdict.node, escape(&verdict.english()));
    let mut reasons: Vec<_> = unplaced.placement.iter().map(on).collect();
    if reasons.is_empty() {
        reasons.push("there is no other node".to_owned());
    }
    format!(
        "{} ({} on {}): {}",
        unplaced.name,
        unplaced.memory_bytes,
        unplaced.node,
        reasons.join("; ")
    )
}

fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(survival: &serde_json::Value) -> Capacity {
        serde_json::from_value(serde_json::json!({
            "size": {"cpus": 2, "memory_bytes": 4_u64 << 30, "disk_bytes": 10_u64 << 30},
            "more": 11,
            "nodes": [
                {"node": "alder", "more": 11, "reason": "46G free of 64G", "code": "a-later-code", "fields": {}},
                {"node": "cedar", "more": 0, "reason": "cordoned", "code": "cordoned", "fields": {}}
            ],
            "survival": survival,
        }))
        .unwrap()
    }

    #[test]
    fn the_table_is_followed_by_a_sentence() {
        assert_eq!(
            to_text(&capacity(&serde_json::Value::Null)),
            "NODE   MORE  REASON\n\
             alder  11    46G free of 64G\n\
             cedar  0     cordoned\n\
             11 more instances with 2 CPUs, 4G of memory and a disk of 10G fit."
        );
        let none = Capacity {
            size: InstanceSize {
                cpus: 1,
                ..capacity(&serde_json::Value::Null).size
            },
            more: 0,
            nodes: Vec::new(),
            survival: None,
        };
        let said = "No more instance with 1 CPU, 4G of memory and a disk of 10G fits.";
        assert_eq!(to_text(&none), said);
    }

    #[test]
    fn instances_that_would_not_fit_are_named_with_the_reasons() {
        let verdict = |node: &str, reason: &str| serde_json::json!({"node": node, "score": null, "reason": reason});
        let survival = serde_json::json!({
            "off": ["alder", "birch"], "fits": false, "displaced": 9, "unplaced_count": 2,
            "unplaced": [{"name": "big", "node": "alder", "memory_bytes": 48_u64 << 30, "placement": [
                verdict("cedar", "12G free of 16G"), verdict("dogwood", "cordoned"),
            ]}],
        });
        let said = to_text(&capacity(&survival));
        let (_, said) = said.split_once("fit.\n").unwrap();
        assert_eq!(
            said,
            "With alder and birch off, 2 of 9 instances that run there do not fit on other nodes:\n  \
             big (48G on alder): cedar: 12G free of 16G; dogwood: cordoned\n  \
             and 1 more"
        );
    }

    #[test]
    fn each_outcome_with_nodes_off_has_its_sentence() {
        let text = |off: &[&str], displaced: u64| {
            let survival = serde_json::json!({
                "off": off, "fits": true, "displaced": displaced, "unplaced_count": 0, "unplaced": [],
            });
            survival_text(&serde_json::from_value(survival).unwrap())
        };
        assert_eq!(text(&[], 0), "No node is assumed to be off.");
        assert_eq!(
            text(&["a"], 0),
            "With a off, everything that runs keeps running: no instance runs there."
        );
        assert_eq!(
            text(&["a"], 1),
            "With a off, everything fits: 1 instance that runs there would fit on other nodes."
        );
        assert_eq!(
            text(&["a", "b", "c"], 3),
            "With a, b and c off, everything fits: 3 instances that run there would fit on other nodes."
        );
    }
}
