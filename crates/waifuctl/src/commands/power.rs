//! `waifuctl start`, `stop`, `reboot` and `resize`.

use tokio::time::Instant;
use waifud_api::{Instance, UpdateInstance};
use waifud_types::status::ReadyBy;
use waifud_types::{InstanceState, Reboot};

use super::wait_for;
use crate::cli::{ResizeArgs, SelectArgs, StartArgs, StopArgs};
use crate::cli_spec::WaitFor;
use crate::context::Context;
use crate::failure::Failure;
use crate::select;
use crate::settle::until_settled;
use crate::wait::or_detach;

/// Wants them to run.
pub async fn start(context: &Context, args: StartArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(true),
        ..UpdateInstance::default()
    };
    order(context, args, &change, &|_| "told to start".to_owned()).await
}

/// Wants them to be off.
pub async fn stop(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        run: Some(false),
        force: args.force,
        ..UpdateInstance::default()
    };
    let told = if args.force {
        "told to power off at once"
    } else {
        "told to shut down"
    };
    order(context, args.which, &change, &|_| told.to_owned()).await
}

/// Wants each to go off and come back, once.
pub async fn reboot(context: &Context, args: StopArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        reboot: Some(how(args.force)),
        ..UpdateInstance::default()
    };
    order(context, args.which, &change, &|_| {
        "told to reboot".to_owned()
    })
    .await
}

/// Changes sizes, with `--restart` by a reboot in the same order.
pub async fn resize(context: &Context, args: ResizeArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        reboot: args.restart.then_some(Reboot::Clean),
        ..UpdateInstance::default()
    };
    let which = StartArgs {
        select: SelectArgs::of(vec![args.name]),
        wait: args.wait,
        timeout: args.timeout,
    };
    let restarted = args.restart;
    order(context, which, &change, &|change| {
        resized(change, restarted)
    })
    .await
}

/// What a change of sizes did, and what it did not do yet.
fn resized(change: &Change, restarted: bool) -> String {
    let (before, after) = (&change.before, &change.after);
    if before.generation == after.generation {
        return "nothing to change: it has these sizes already".to_owned();
    }
    let sized =
        before.spec.cpus != after.spec.cpus || before.spec.memory_bytes != after.spec.memory_bytes;
    let is_on = !matches!(
        before.status.state,
        InstanceState::Stopped | InstanceState::Pending
    );
    if sized && is_on && !restarted {
        format!(
            "resized; CPUs and memory change at the next start (waifuctl reboot {})",
            after.name
        )
    } else {
        "resized".to_owned()
    }
}

fn how(force: bool) -> Reboot {
    if force { Reboot::Force } else { Reboot::Clean }
}

/// An instance before and after its change.
struct Change {
    before: Instance,
    after: Instance,
}

/// Changes each. All names are looked up before the first is touched, and all are ordered before the first is waited
/// for. What was done is printed also when the rest fails.
async fn order(
    context: &Context,
    args: StartArgs,
    change: &UpdateInstance,
    told: &dyn Fn(&Change) -> String,
) -> Result<(), Failure> {
    let mut found = select::instances(context, &args.select, false).await?;
    if args.select.names.is_empty() {
        // Those that are being destroyed take no orders, and were not named.
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
    if args.wait && outcome.is_ok() {
        let deadline = Instant::now() + args.timeout;
        outcome = or_detach(await_all(context, &mut done, deadline), &all).await;
    }
    let line = |one: &Change| {
        let name = &one.after.name;
        if args.wait {
            format!("{name}: {}", state(&one.after))
        } else {
            format!("{name}: {}", told(one))
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

/// Its state, and whether it is ready where that says more.
pub(super) fn state(instance: &Instance) -> String {
    let status = &instance.status;
    match (status.state, status.ready) {
        (InstanceState::Running, true) => "running and ready".to_owned(),
        (state, _) => state.to_string(),
    }
}

async fn await_all(
    context: &Context,
    changes: &mut [Change],
    deadline: Instant,
) -> Result<(), Failure> {
    for change in changes {
        change.after = until_settled(context, change.after.clone(), deadline).await?;
        if let Some(ready) =
            until_ready_again(context, &change.before, &change.after, deadline).await?
        {
            change.after = ready;
        }
    }
    Ok(())
}

/// After a start: until cloud-init is done in this boot, where that will be known. cloud-init phones home once per instance
/// only: an instance that was ready by that call makes no second one.
pub(super) async fn until_ready_again(
    context: &Context,
    before: &Instance,
    now: &Instance,
    deadline: Instant,
) -> Result<Option<Instance>, Failure> {
    let ready_by = before.status.ready_by;
    let will_be_known = ready_by.is_some_and(|by| by != ReadyBy::PhoneHome);
    let runs = now.spec.run && now.spec.rescue.is_none();
    if !(will_be_known && runs) || now.status.ready {
        return Ok(None);
    }
    wait_for::until(context, &now.id.to_string(), WaitFor::Ready, deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(cpus: u32, generation: u64, state: &str) -> Instance {
        serde_json::from_value(serde_json::json!({
            "id": "0198c0de-0000-7000-8000-00000000abcd", "name": "web", "labels": {}, "generation": generation,
            "created_at": "2026-11-22T00:00:00Z",
            "spec": {"template": "a", "image": format!("sha256:{}", "0".repeat(64)), "cpus": cpus,
                "memory_bytes": 1 << 30, "run": true, "restart": "never", "priority": 0, "protected": false, "disks": [],
                "nics": [], "publish": [], "placement": {"node": null, "spread": null}, "user_data": null},
            "status": {"observed_generation": null, "state": state, "reason": null, "ready": false, "ready_by": null,
                "node": "alder", "hypervisor": null, "stopped_by": null, "last_state": null, "last_seen": null,
                "addresses": [], "step": null, "restart_needed": [], "cloud_init": {"state": "pending",
                "instance_id": null, "datasource": null, "errors": []}, "conditions": []}
        }))
        .unwrap()
    }

    #[test]
    fn a_resize_announces_a_restart_only_where_one_is_needed() {
        let said = |cpus, generation, state, restarted| {
            let before = instance(1, 1, state);
            let after = instance(cpus, generation, state);
            resized(&Change { before, after }, restarted)
        };
        assert!(said(2, 2, "running", false).contains("waifuctl reboot web"));
        assert_eq!(said(2, 2, "running", true), "resized");
        assert_eq!(said(2, 2, "stopped", false), "resized");
        assert_eq!(said(1, 2, "running", false), "resized", "a disk only");
        assert!(said(1, 1, "running", false).starts_with("nothing to change"));
    }
}
