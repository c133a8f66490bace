//! `waifuctl why`

use std::fmt::Write;

use jiff::Timestamp;
use waifud_api::{PlacementVerdict, Why};

use super::events::line;
use super::{why_evidence, why_firewall};
use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::text::{escape, since};

/// Explains the state of an instance.
pub async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let why = context.client.why(name);
    context.printer.show(why, to_text).await
}

/// The verdict of placement on one node.
pub(super) fn verdict_line(verdict: &PlacementVerdict) -> String {
    let score = verdict
        .score
        .map_or_else(|| "-".to_owned(), |s| format!("{s:.2}"));
    format!(
        "  {:<12} {score:<5} {}",
        verdict.node.as_str(),
        escape(&verdict.english())
    )
}

fn to_text(why: &Why, now: Timestamp) -> String {
    let mut out = format!("{}: {}\n", why.instance.name, escape(&why.summary));
    // For a placed instance, these are the verdicts at placement, not the current ones.
    if why.instance.status.node.is_some() && !why.placement.is_empty() {
        out.push_str("  placement, when waifud chose the node:\n");
    }
    for verdict in &why.placement {
        out.push_str(&verdict_line(verdict));
        out.push('\n');
    }
    for event in &why.timeline {
        let _infallible = writeln!(out, "  {}", line(event));
    }
    if let Some(evidence) = &why.evidence {
        let nics = &why.instance.spec.nics;
        out.push_str(&why_evidence::lines(
            evidence,
            nics,
            why.instance.status.started_at,
            now,
        ));
        out.push_str(&why_firewall::lines(evidence, &why.instance.spec.firewall));
        out.push_str(why_evidence::unassigned_address(evidence, nics).unwrap_or_default());
        // During a rescue, the console may still contain output of the previous boot.
        if why.instance.spec.rescue.is_none() {
            let name = why.instance.name.as_str();
            out.push_str(&why_evidence::emergency(evidence, name).unwrap_or_default());
        }
    }
    for condition in &why.instance.status.conditions {
        // A rescue is intended and not a failure.
        let mark = match (condition.ok, condition.kind.as_str()) {
            (_, "rescue") => "",
            (true, _) => "ok, ",
            (false, _) => "not ok, ",
        };
        let remedy = hint::of_instance_condition(condition, &why.instance.name);
        let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
        let _infallible = writeln!(
            out,
            "  {} ({mark}since {}): {}{remedy}",
            escape(&condition.kind),
            since(condition.since, now),
            escape(&condition.message)
        );
    }
    // Older servers send only the text.
    if let Some(hint) = hint::line(&why.hints).or_else(|| why.hint.clone()) {
        let _infallible = writeln!(out, "  hint: {}", escape(&hint));
    }
    out
}
