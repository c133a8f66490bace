//! Orders about power as changes of a spec: run, stop, pull the plug, reboot.

use crate::instances::problems as instance_problems;
use waifud_api::{Problem, UpdateInstance};
use waifud_types::Reboot;
use waifud_types::spec::InstanceSpec;

/// Changes the spec as asked and says what that means.
pub(super) fn apply(
    spec: &mut InstanceSpec,
    change: &UpdateInstance,
    said: &mut Vec<String>,
) -> Result<(), Problem> {
    if let Some(run) = change.run.filter(|run| *run != spec.run) {
        spec.run = run;
        said.push(if run { "should run" } else { "should stop" }.to_owned());
    }
    if change.force && spec.run {
        return Err(instance_problems::nothing_to_force());
    }
    if spec.run {
        spec.power.force_off = false;
    } else if change.force && !spec.power.force_off {
        spec.power.force_off = true;
        said.push("its plug is to be pulled".to_owned());
    }
    if let Some(how) = change.reboot {
        if !spec.run {
            return Err(instance_problems::reboot_of_what_is_off());
        }
        spec.power.reboots += 1;
        spec.power.force_reboot = how == Reboot::Force;
        let how = match how {
            Reboot::Clean => "should reboot",
            Reboot::Force => "should reboot, by pulling its plug",
        };
        said.push(how.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn a_spec_from_before_there_were_orders_has_none() {
        assert_eq!(spec(true).power, PowerSpec::default());
    }

    #[test]
    fn a_forced_stop_may_follow_a_clean_one_and_a_start_ends_it() {
        let mut spec = spec(true);
        let stop = |force| UpdateInstance {
            run: Some(false),
            force,
            ..UpdateInstance::default()
        };
        let mut said = Vec::new();
        apply(&mut spec, &stop(false), &mut said).unwrap();
        assert!(!spec.run && !spec.power.force_off);
        apply(&mut spec, &stop(true), &mut said).unwrap();
        assert!(!spec.run && spec.power.force_off);
        let before = spec.clone();
        apply(&mut spec, &stop(true), &mut said).unwrap();
        assert_eq!(spec, before, "asking twice changes nothing");
        let start = UpdateInstance {
            run: Some(true),
            ..UpdateInstance::default()
        };
        apply(&mut spec, &start, &mut said).unwrap();
        assert!(spec.run && !spec.power.force_off);
        assert_eq!(said.len(), 3);
    }

    #[test]
    fn each_reboot_is_an_order_of_its_own_and_only_what_should_run_takes_it() {
        let mut running = spec(true);
        let reboot = |how| UpdateInstance {
            reboot: Some(how),
            ..UpdateInstance::default()
        };
        let mut said = Vec::new();
        apply(&mut running, &reboot(Reboot::Clean), &mut said).unwrap();
        apply(&mut running, &reboot(Reboot::Force), &mut said).unwrap();
        assert_eq!(running.power.reboots, 2);
        assert!(running.power.force_reboot);
        let refused = apply(&mut spec(false), &reboot(Reboot::Clean), &mut said).unwrap_err();
        assert_eq!(refused.code, "not-running");
        let force = UpdateInstance {
            force: true,
            ..UpdateInstance::default()
        };
        assert!(apply(&mut running, &force, &mut said).is_err());
    }
}
