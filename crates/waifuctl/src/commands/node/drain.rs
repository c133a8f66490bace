//! `waifuctl node drain`

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use waifud_api::client::ClientError;
use waifud_api::{Drain, DrainNode, DrainedInstance, Problem};
use waifud_types::InstanceId;

use crate::cli::NodeDrainArgs;
use crate::confirm::ask;
use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::printer::table;
use crate::progress;
use crate::text::escape;
use crate::wait::or_detach;

/// The pause between two reads. Progress is not an event.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Drains a node, ends that, or shows what it would do.
pub async fn run(context: &Context, args: NodeDrainArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let printer = context.printer;
    let client = &context.client;
    if args.instead.explain {
        let plan = client.drain(&args.name, args.new_address).await?;
        return printer.print(&plan, || explained(&plan));
    }
    if args.instead.cancel {
        let kept = client.cancel_drain(&args.name).await?;
        return printer.print(&kept, || canceled(&kept));
    }
    let mut request = DrainNode {
        new_address: args.new_address,
    };
    let drain = match client.drain_node(&args.name, &request).await {
        Err(ClientError::Problem(problem))
            if problem.code == "new-address-needed" && std::io::stdin().is_terminal() =>
        {
            let warning = format!("{}.", problem.title);
            ask(&format!("draining {}", args.name), &warning, &args.name)?;
            request.new_address = true;
            client.drain_node(&args.name, &request).await
        }
        other => other,
    };
    let drain = drain?;
    if !args.wait || is_over(&drain) {
        return printer.print(&drain, || begun_text(&drain));
    }
    let name = drain.node.to_string();
    let until = begun + args.timeout;
    let drained = Box::pin(or_detach(until_empty(context, drain, until), &name)).await?;
    printer.print(&drained, || empty(&drained))
}

/// Reads the drain until the node is empty, and notes each instance that has left and each new obstacle.
async fn until_empty(context: &Context, drain: Drain, until: Instant) -> Result<Drain, Failure> {
    let printer = context.printer;
    let spinner = progress::spinner(!printer.shows_progress());
    let name = drain.node.to_string();
    let mut changes = Changes::default();
    let mut now = drain;
    loop {
        for line in changes.lines(&now) {
            spinner.suspend(|| printer.note(&line));
        }
        if is_over(&now) {
            return Ok(now);
        }
        if !now.draining {
            return Err(Failure::input(
                "drain-canceled",
                format!("the drain of {name} was canceled"),
            )
            .hint(format!("waifuctl events node/{name} shows who canceled it")));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::deadline(format!(
                "{name} is not empty yet: {}; waifud continues in the background",
                counted(now.instances.len(), "is left", "are left")
            ))
            .hint(format!(
                "waifuctl node drain {name} --explain, or waifuctl node drain {name} --cancel"
            )));
        }
        spinner.set_message(format!("draining {name}: {}", under_way(&now)));
        sleep(left.min(POLL_INTERVAL)).await;
        now = context.client.drain(&name, false).await?;
    }
}

/// What was noted so far.
#[derive(Default)]
struct Changes {
    /// The instances on the node at the last read, with the node that each moves to and why it cannot.
    seen: BTreeMap<InstanceId, (String, Option<String>, Option<String>)>,
}

impl Changes {
    /// A line for each instance that has left since the last read, and for each new obstacle.
    fn lines(&mut self, drain: &Drain) -> Vec<String> {
        let now: BTreeMap<_, _> = drain
            .instances
            .iter()
            .map(|instance| {
                let to = instance.to.as_ref().map(ToString::to_string);
                let obstacle = instance.obstacle.as_ref();
                let obstacle = obstacle.map(|problem| {
                    let hint = hint::line(&problem.hints).map(|hint| format!("; {hint}"));
                    escape(&(why(instance.name.as_str(), problem) + &hint.unwrap_or_default()))
                });
                (instance.id, (instance.name.to_string(), to, obstacle))
            })
            .collect();
        let mut lines = Vec::new();
        for (id, (name, to, _)) in &self.seen {
            if !now.contains_key(id) {
                lines.push(match to {
                    Some(to) => format!("{name}: moved to {to}"),
                    None => format!("{name}: gone"),
                });
            }
        }
        for (id, (name, _, obstacle)) in &now {
            let before = self
                .seen
                .get(id)
                .and_then(|(_, _, obstacle)| obstacle.as_ref());
            if let Some(obstacle) = obstacle
                && before != Some(obstacle)
            {
                lines.push(format!("{name} waits: {obstacle}"));
            }
        }
        self.seen = now;
        lines
    }
}

/// Whether nothing is left on the node.
fn is_over(drain: &Drain) -> bool {
    !drain.draining && drain.instances.is_empty()
}

fn explained(plan: &Drain) -> String {
    let node = &plan.node;
    let mut text = listed(plan);
    let _infallible = match (plan.draining, plan.instances.len()) {
        (_, 0) => write!(text, "{node} has no instances."),
        (true, _) => write!(text, "{node} is being drained: {}.", under_way(plan)),
        (false, _) => write!(text, "{}. Nothing was changed.", fits(plan)),
    };
    text
}

fn begun_text(drain: &Drain) -> String {
    if is_over(drain) {
        return empty(drain);
    }
    let node = &drain.node;
    let mut text = listed(drain);
    let _infallible = write!(
        text,
        "{node} is being drained: {}.\nFollow it with: waifuctl node drain {node} --wait",
        under_way(drain)
    );
    text
}

fn empty(drain: &Drain) -> String {
    let node = &drain.node;
    format!(
        "{node} is empty and stays cordoned; waifuctl node uncordon {node} lets it accept instances again"
    )
}

fn canceled(drain: &Drain) -> String {
    let node = &drain.node;
    let mut text = format!("{node} is not drained any more; it stays cordoned");
    let moving = drain.instances.iter().filter(|it| it.moving.is_some());
    let moving: Vec<_> = moving.map(|it| it.name.as_str()).collect();
    if !moving.is_empty() {
        let _infallible = write!(
            text,
            "\nstill being moved: {} (each can be kept with: waifuctl move NAME --cancel)",
            moving.join(", ")
        );
    }
    text
}

/// The instances as a table, with a line break at its end; nothing if there are none.
fn listed(drain: &Drain) -> String {
    if drain.instances.is_empty() {
        return String::new();
    }
    let rows = drain.instances.iter().map(|instance| {
        vec![
            instance.name.to_string(),
            instance.memory_bytes.to_string(),
            instance
                .to
                .as_ref()
                .map_or_else(|| "-".to_owned(), ToString::to_string),
            escape(&doing(instance)),
        ]
    });
    let mut text = table(&["INSTANCE", "MEMORY", "TO", "STATE"], rows.collect());
    text.push('\n');
    text
}

fn doing(instance: &DrainedInstance) -> String {
    match (&instance.moving, &instance.obstacle) {
        _ if instance.deleting => "is being deleted".to_owned(),
        (Some(moving), _) => {
            let state = moving.state;
            let reason = moving.reason.as_ref();
            reason.map_or_else(|| state.to_string(), |reason| format!("{state}: {reason}"))
        }
        (None, Some(problem)) => why(instance.name.as_str(), problem),
        (None, None) => "fits".to_owned(),
    }
}

/// The obstacle, without the name of the instance, which is beside it.
fn why(name: &str, obstacle: &Problem) -> String {
    let title = obstacle.title.as_str();
    let why = title.strip_prefix("cannot move ");
    let why = why.and_then(|rest| rest.strip_prefix(name)?.strip_prefix(": "));
    why.unwrap_or(title).to_owned()
}

/// How many instances can move, as a sentence without its full stop.
fn fits(plan: &Drain) -> String {
    let total = plan.instances.len();
    let stuck = plan.instances.iter().filter(|it| it.obstacle.is_some());
    match (total, stuck.count()) {
        (1, 0) => "The instance can move".to_owned(),
        (_, 0) => format!("All {total} instances can move"),
        (1, _) => "The instance cannot move now".to_owned(),
        (_, stuck) if stuck == total => format!("None of the {total} instances can move now"),
        (_, stuck) => format!("{stuck} of {total} instances cannot move now"),
    }
}

/// What is left, in a few words.
fn under_way(drain: &Drain) -> String {
    let moving = drain.instances.iter().filter(|it| it.moving.is_some());
    let stuck = drain.instances.iter().filter(|it| it.obstacle.is_some());
    let mut text = counted(drain.instances.len(), "is left", "are left");
    let (moving, stuck) = (moving.count(), stuck.count());
    if moving > 0 {
        let _infallible = write!(text, ", {moving} being moved");
    }
    if stuck > 0 {
        let _infallible = write!(text, ", {stuck} cannot move now");
    }
    text
}

fn counted(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 instance {one}"),
        _ => format!("{number} instances {many}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn instance(number: u8, name: &str, to: Option<&str>, obstacle: Option<&str>) -> Value {
        let obstacle = obstacle.map(|title| {
            json!({"type": "/problems/cannot-move", "title": title, "status": 409, "code": "cannot-move",
                "field": null, "hint": null, "hints": [], "request_id": null})
        });
        json!({
            "id": format!("0198d2a8-1111-7000-8000-0000000000{number:02}"), "name": name,
            "memory_bytes": 2_u64 << 30, "deleting": false, "moving": null, "to": to, "obstacle": obstacle,
        })
    }

    fn drain(draining: bool, instances: &[Value]) -> Drain {
        serde_json::from_value(json!({
            "node": "alder", "draining": draining, "began_at": null, "new_address": true,
            "instances": instances, "arriving": [],
        }))
        .unwrap()
    }

    fn moving(mut instance: Value) -> Value {
        instance["moving"] = json!({
            "from": "alder", "to": "birch", "state": "copying", "began_at": "2026-01-01T00:00:00Z",
            "done_bytes": null, "total_bytes": null, "reason": null,
        });
        instance
    }

    #[test]
    fn a_plan_lists_every_instance_and_says_how_many_fit() {
        let web = instance(1, "web", Some("birch"), None);
        let big = instance(
            2,
            "big",
            None,
            Some("big cannot move: birch: 1G free of 4G"),
        );
        let both = explained(&drain(false, &[web.clone(), big.clone()]));
        assert_eq!(
            both,
            "INSTANCE  MEMORY  TO     STATE\n\
             web       2G      birch  fits\n\
             big       2G      -      big cannot move: birch: 1G free of 4G\n\
             1 of 2 instances cannot move now. Nothing was changed."
        );
        let end = |instances: &[Value]| {
            let text = explained(&drain(false, instances));
            text.lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(end(&[]), "alder has no instances.");
        assert_eq!(
            end(std::slice::from_ref(&web)),
            "The instance can move. Nothing was changed."
        );
        assert_eq!(
            end(&[web.clone(), web.clone()]),
            "All 2 instances can move. Nothing was changed."
        );
        assert_eq!(
            end(&[big.clone(), big.clone()]),
            "None of the 2 instances can move now. Nothing was changed."
        );
        let under_way = explained(&drain(true, &[moving(web), big]));
        let last =
            "alder is being drained: 2 instances are left, 1 being moved, 1 cannot move now.";
        assert_eq!(under_way.lines().last(), Some(last));
        assert!(under_way.contains("birch  copying"), "{under_way}");
    }

    #[test]
    fn a_wait_notes_each_instance_that_left_and_each_obstacle_once() {
        let web = instance(1, "web", Some("birch"), None);
        let big = instance(2, "big", None, Some("birch is full"));
        let mut changes = Changes::default();
        let first = drain(true, &[moving(web), big.clone()]);
        assert_eq!(changes.lines(&first), ["big waits: birch is full"]);
        assert!(changes.lines(&first).is_empty());
        let later = drain(true, std::slice::from_ref(&big));
        assert_eq!(changes.lines(&later), ["web: moved to birch"]);
        let other = instance(2, "big", None, Some("birch is cordoned"));
        let other = drain(true, &[other]);
        assert_eq!(changes.lines(&other), ["big waits: birch is cordoned"]);
        assert_eq!(changes.lines(&drain(true, &[])), ["big: gone"]);
    }

    #[test]
    fn an_obstacle_is_shown_without_the_name_beside_it_and_a_wait_adds_the_remedy() {
        let mut db = instance(3, "db", None, Some("cannot move db: it is pinned to alder"));
        db["obstacle"]["hints"] = json!([{"action": "advice", "object": null, "arguments": {}, "when": null,
            "text": "move it"}]);
        let drain = drain(true, &[db]);
        assert!(explained(&drain).contains("  -   it is pinned to alder\n"));
        assert_eq!(
            Changes::default().lines(&drain),
            ["db waits: it is pinned to alder; move it"]
        );
    }

    #[test]
    fn the_end_and_the_cancellation_say_what_stays() {
        let web = instance(1, "web", Some("birch"), None);
        assert!(begun_text(&drain(false, &[])).starts_with("alder is empty and stays cordoned"));
        let begun = begun_text(&drain(true, &[moving(web.clone())]));
        assert!(
            begun.ends_with("waifuctl node drain alder --wait"),
            "{begun}"
        );
        let kept = canceled(&drain(false, &[moving(web)]));
        assert!(kept.contains("still being moved: web"), "{kept}");
        let quiet = canceled(&drain(false, &[]));
        assert_eq!(quiet, "alder is not drained any more; it stays cordoned");
    }
}
