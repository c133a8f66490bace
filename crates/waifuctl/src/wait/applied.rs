//! Waits until the node has applied the last change of an instance.

use std::time::Duration;

use waifud_api::Instance;
use waifud_types::status::StoppedBy;
use waifud_types::{InstanceState, WaitReason};

use super::deadline::{Deadline, slowness};
use super::waiting_for;
use super::watch::InstanceWatch;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// The longest pause between two reads.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Waits until the state of the instance is the one that its spec asks for. Returns the instance in that state.
pub async fn until_applied(
    context: &Context,
    ordered: Instance,
    deadline: Deadline,
) -> Result<Instance, Failure> {
    let mut watch = InstanceWatch::new(context, &ordered);
    let mut now = ordered.clone();
    let spinner = progress::spinner(!context.printer.shows_progress());
    loop {
        spinner.set_message(format!(
            "{}: {}{}",
            now.name,
            escape(&waiting_for(&now.status)),
            slowness(&now.status)
        ));
        if is_applied(&now, &ordered) {
            return Ok(now);
        }
        if let Some(failure) = cannot_be_applied(&now, &ordered) {
            return Err(failure.hint(format!("waifuctl why {}", now.name)));
        }
        let left = deadline.left(&now.status);
        if left.is_zero() {
            let state = now.status.state;
            return Err(Failure::deadline(format!(
                "{} was {state} when the deadline passed; waifud continues in the background",
                now.name
            ))
            .hint(format!("waifuctl why {}", now.name)));
        }
        now = watch.next_existing(now, left.min(POLL_INTERVAL)).await?;
    }
}

fn is_applied(now: &Instance, ordered: &Instance) -> bool {
    let status = &now.status;
    let wanted = if ordered.spec.run {
        InstanceState::Running
    } else {
        InstanceState::Stopped
    };
    // The step "ready" only observes the guest.
    let is_idle = status.step.as_ref().is_none_or(|step| step.name == "ready");
    status.observed_generation >= Some(ordered.generation) && status.state == wanted && is_idle
}

/// Why an instance whose last change was applied cannot become ready without intervention; `None` if it may.
pub fn cannot_go_on(instance: &Instance) -> Option<Failure> {
    cannot_be_applied(instance, instance)
        .map(|failure| failure.hint(format!("waifuctl why {}", instance.name)))
}

/// Whether the node of the instance was removed with its disks, so that no node changes its state.
pub fn is_lost(instance: &Instance) -> bool {
    let reason = instance.status.wait_reason();
    matches!(reason, Some(WaitReason::NodeRemoved { .. }))
}

/// Why the instance cannot reach its state without intervention; `None` if it may.
fn cannot_be_applied(now: &Instance, ordered: &Instance) -> Option<Failure> {
    let status = &now.status;
    let name = &now.name;
    if status.state == InstanceState::Deleting {
        let text = format!("{name} is being deleted");
        return Some(Failure::input("deleted", text));
    }
    if status.observed_generation < Some(ordered.generation) && !is_lost(now) {
        return None;
    }
    match (status.state, status.stopped_by) {
        (InstanceState::Failed, _) => {
            let why = status.reason_in_english();
            let why = why.as_deref().unwrap_or("unknown reason");
            let text = format!("{name} failed: {}", escape(why));
            Some(Failure::input("failed", text))
        }
        (InstanceState::Stopped, Some(StoppedBy::Guest)) if status.step.is_none() => {
            let text = format!("{name} powered itself off");
            Some(Failure::input("stopped", text))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use waifud_types::status::InstanceStatus;

    use super::*;

    #[test]
    fn a_wait_for_an_instance_whose_node_was_removed_fails_at_once() {
        let mut status = InstanceStatus::pending(None);
        status.state = InstanceState::Failed;
        let with = |status: &InstanceStatus| -> Instance {
            serde_json::from_value(serde_json::json!({
                "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "web", "labels": {}, "generation": 2,
                "created_at": "2026-11-22T00:00:00Z",
                "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
                    "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false,
                    "disks": [], "nics": [], "publish": [], "placement": {"node": null, "spread": null},
                    "user_data": null},
                "status": status,
            }))
            .unwrap()
        };
        // Of an earlier generation: the node may still apply the change.
        assert!(cannot_go_on(&with(&status)).is_none());
        let node = "alder".parse().unwrap();
        status.set_wait(&WaitReason::NodeRemoved { node });
        assert!(cannot_go_on(&with(&status)).is_some());
        assert!(is_lost(&with(&status)));
    }
}
