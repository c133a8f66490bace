//! `waifuctl resize`

use waifud_api::UpdateInstance;
use waifud_types::{InstanceState, Reboot};

use crate::cli::{ResizeArgs, SelectArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::update_many::{Change, update_many};

/// Changes sizes; with `--restart`, the same request orders a reboot.
pub async fn run(context: &Context, args: ResizeArgs) -> Result<(), Failure> {
    let change = UpdateInstance {
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        reboot: args.restart.then_some(Reboot::Clean),
        ..UpdateInstance::default()
    };
    let select = SelectArgs::of(vec![args.name]);
    let restarted = args.restart;
    update_many(context, &select, args.wait, &change, &|change| {
        resized(change, restarted)
    })
    .await
}

/// Describes what has changed and what takes effect later.
fn resized(change: &Change, restarted: bool) -> String {
    let (before, after) = (&change.before, &change.after);
    if before.generation == after.generation {
        return "unchanged: the instance already has these sizes".to_owned();
    }
    let sized =
        before.spec.cpus != after.spec.cpus || before.spec.memory_bytes != after.spec.memory_bytes;
    let is_on = !matches!(
        before.status.state,
        InstanceState::Stopped | InstanceState::Pending
    );
    if sized && is_on && !restarted {
        format!(
            "resized; CPUs and memory take effect at the next start (waifuctl reboot {})",
            after.name
        )
    } else {
        "resized".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_api::Instance;

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
    fn a_resize_mentions_a_restart_only_if_one_is_needed() {
        let summary = |cpus, generation, state, restarted| {
            let before = instance(1, 1, state);
            let after = instance(cpus, generation, state);
            resized(&Change { before, after }, restarted)
        };
        assert!(summary(2, 2, "running", false).contains("waifuctl reboot web"));
        assert_eq!(summary(2, 2, "running", true), "resized");
        assert_eq!(summary(2, 2, "stopped", false), "resized");
        assert_eq!(summary(1, 2, "running", false), "resized", "a disk only");
        assert!(summary(1, 1, "running", false).starts_with("unchanged"));
    }
}
