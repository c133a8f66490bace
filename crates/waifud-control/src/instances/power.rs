//! Power operations as changes of the spec: start, stop, forced power-off, reboot.

use crate::instances::problems as instance_problems;
use waifud_api::{Problem, UpdateInstance};
use waifud_types::spec::InstanceSpec;
use waifud_types::{Name, Reboot};

/// Applies a request to the spec, and describes the change for the event. `floor` is that of
/// [`PowerSpec::order_reboot`](waifud_types::PowerSpec::order_reboot).
pub(super) fn apply(
    name: &Name,
    spec: &mut InstanceSpec,
    floor: u64,
    change: &UpdateInstance,
    changes: &mut Vec<String>,
) -> Result<(), Problem> {
    if let Some(run) = change.run.filter(|run| *run != spec.run) {
        spec.run = run;
        changes.push(
            if run {
                "start requested"
            } else {
                "stop requested"
            }
            .to_owned(),
        );
    }
    if change.force && spec.run {
        return Err(instance_problems::force_without_stop());
    }
    if spec.run {
        spec.power.force_off = false;
    } else if change.force && !spec.power.force_off {
        spec.power.force_off = true;
        changes.push("forced power-off requested".to_owned());
    }
    if let Some(how) = change.reboot {
        if !spec.run {
            return Err(instance_problems::reboot_while_off(name));
        }
        spec.power.order_reboot(floor, how);
        let how = match how {
            Reboot::Clean => "reboot requested",
            Reboot::Force => "forced reboot requested",
        };
        changes.push(how.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Name {
        "web".parse().unwrap()
    }
    use waifud_types::PowerSpec;

    fn spec(run: bool) -> InstanceSpec {
        let json = serde_json::json!({
            "template": "debian-12", "image": format!("sha256:{}", "0".repeat(64)), "cpus": 1,
            "memory_bytes": 1 << 30, "run": run, "restart": "on-crash", "priority": 0,
            "protected": false, "disks": [], "nics": [], "publish": [],
            "placement": {"node": null, "spread": null}, "user_data": null,
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn an_old_spec_without_power_fields_has_the_defaults() {
        assert_eq!(spec(true).power, PowerSpec::default());
    }

    #[test]
    fn a_forced_stop_may_follow_a_clean_one_and_a_start_cancels_it() {
        let mut spec = spec(true);
        let stop = |force| UpdateInstance {
            run: Some(false),
            force,
            ..UpdateInstance::default()
        };
        let mut changes = Vec::new();
        apply(&web(), &mut spec, 0, &stop(false), &mut changes).unwrap();
        assert!(!spec.run && !spec.power.force_off);
        apply(&web(), &mut spec, 0, &stop(true), &mut changes).unwrap();
        assert!(!spec.run && spec.power.force_off);
        let before = spec.clone();
        apply(&web(), &mut spec, 0, &stop(true), &mut changes).unwrap();
        assert_eq!(spec, before, "repeating the request changes nothing");
        let start = UpdateInstance {
            run: Some(true),
            ..UpdateInstance::default()
        };
        apply(&web(), &mut spec, 0, &start, &mut changes).unwrap();
        assert!(spec.run && !spec.power.force_off);
        assert_eq!(changes.len(), 3);
    }

    #[test]
    fn each_reboot_counts_and_needs_an_instance_that_should_run() {
        let reboot = |spec: &mut InstanceSpec, floor, how| {
            let change = UpdateInstance {
                reboot: Some(how),
                ..UpdateInstance::default()
            };
            apply(&web(), spec, floor, &change, &mut Vec::new())
        };
        let mut running = spec(true);
        // From the third on, the database was restored: the node may have executed others meanwhile.
        for (floor, number) in [(0, 1), (0, 2), (1000, 1000), (1000, 1001)] {
            reboot(&mut running, floor, Reboot::Clean).unwrap();
            assert_eq!(running.power.reboots, number);
        }
        assert!(!running.power.force_reboot);
        reboot(&mut running, 1000, Reboot::Force).unwrap();
        assert!(running.power.force_reboot);
        let refused = reboot(&mut spec(false), 0, Reboot::Clean).unwrap_err();
        assert_eq!(refused.code, "not-running");
        let force = UpdateInstance {
            force: true,
            ..UpdateInstance::default()
        };
        assert!(apply(&web(), &mut running, 0, &force, &mut Vec::new()).is_err());
    }
}
