//! Applies one change to several instances, and waits until the nodes have applied it.

use waifud_api::{Instance, UpdateInstance};
use waifud_types::InstanceState;

use crate::cli::{SelectArgs, WaitOptions};
use crate::context::Context;
use crate::failure::Failure;
use crate::select;
use crate::wait::{Deadline, cannot_go_on, is_lost, or_detach, until_applied, until_ready_again};

/// An instance before and after a change.
pub struct Change {
    pub before: Instance,
    pub after: Instance,
}

/// Changes all selected instances. All names are looked up before the first change, and all changes are requested
/// before the first wait. Completed changes are printed even if others fail.
pub async fn update_many(
    context: &Context,
    selected: &SelectArgs,
    wait: WaitOptions,
    change: &UpdateInstance,
    describe_request: &dyn Fn(&Change) -> String,
) -> Result<(), Failure> {
    let mut found = select::instances(context, selected, false).await?;
    if selected.names.is_empty() {
        // Instances that are being deleted cannot be changed, and they were not named.
        found.retain(|instance| instance.status.state != InstanceState::Deleting);
    }
    let all = select::names(&found);
    let several = found.len() != 1;
    let mut done = Vec::new();
    let mut outcome = Ok(());
    for before in found {
        let id = before.id.to_string();
        match context.client.update_instance(&id, change, None).await {
            Ok(after) => done.push(Change { before, after }),
            Err(error) => {
                outcome = Err(error.into());
                break;
            }
        }
    }
    if wait.wait && outcome.is_ok() {
        let deadline = Deadline::begin(wait.timeout);
        outcome = Box::pin(or_detach(await_all(context, &mut done, deadline), &all)).await;
    } else if outcome.is_ok() {
        outcome = done
            .iter()
            .find_map(|one| cannot_start(&one.after))
            .map_or(Ok(()), Err);
    }
    let line = |one: &Change| {
        let name = &one.after.name;
        if wait.wait || is_lost(&one.after) {
            format!("{name}: {}", state(&one.after))
        } else {
            format!("{name}: {}", describe_request(one))
        }
    };
    let instances: Vec<_> = done.iter().map(|one| &one.after).collect();
    match instances.as_slice() {
        [] if context.printer.is_json() && outcome.is_ok() => {
            context.printer.print(&instances, String::new)?;
        }
        [] => {}
        [one] if !several => context
            .printer
            .print(one, || done.iter().map(line).collect())?,
        many => context.printer.print(&many, || {
            done.iter().map(line).collect::<Vec<_>>().join("\n")
        })?,
    }
    outcome
}

/// Why an instance that should run is not started by any node: its node was removed with its disks.
fn cannot_start(instance: &Instance) -> Option<Failure> {
    let is_requested = instance.spec.run && is_lost(instance);
    is_requested.then(|| cannot_go_on(instance)).flatten()
}

/// The state, including readiness.
pub fn state(instance: &Instance) -> String {
    let status = &instance.status;
    match (status.state, status.ready) {
        (InstanceState::Running, true) => "running and ready".to_owned(),
        (state, _) => state.to_string(),
    }
}

async fn await_all(
    context: &Context,
    changes: &mut [Change],
    deadline: Deadline,
) -> Result<(), Failure> {
    for change in changes {
        change.after = until_applied(context, change.after.clone(), deadline).await?;
        if let Some(ready) =
            until_ready_again(context, &change.before, &change.after, deadline).await?
        {
            change.after = ready;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use waifud_types::WaitReason;
    use waifud_types::status::InstanceStatus;

    use super::*;

    #[test]
    fn a_start_of_an_instance_whose_node_was_removed_fails_with_the_reason() {
        let mut status = InstanceStatus::pending(None);
        status.state = InstanceState::Failed;
        let instance = |run: bool, status: &InstanceStatus| -> Instance {
            serde_json::from_value(serde_json::json!({
                "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "web", "labels": {}, "generation": 2,
                "created_at": "2026-11-22T00:00:00Z",
                "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
                    "memory_bytes": 1 << 30, "run": run, "restart": "never", "priority": 0, "protected": false,
                    "disks": [], "nics": [], "publish": [], "placement": {"node": null, "spread": null},
                    "user_data": null},
                "status": status,
            }))
            .unwrap()
        };
        assert!(cannot_start(&instance(true, &status)).is_none());
        let node = "birch".parse().unwrap();
        status.set_wait(&WaitReason::NodeRemoved { node });
        let failure = cannot_start(&instance(true, &status)).unwrap();
        let problem = failure.problem();
        assert!(problem.title.contains("birch"), "{problem:?}");
        assert_eq!(problem.hint.as_deref(), Some("waifuctl why web"));
        assert!(cannot_start(&instance(false, &status)).is_none());
    }
}
