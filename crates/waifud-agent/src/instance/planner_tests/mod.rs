//! The planner, tested from every observable state.

mod cases;

use std::collections::BTreeSet;

use proptest::prelude::*;
use waifud_api::agent::{AgentInstance, Release, Tombstone};
use waifud_hypervisor::{DomainState, OffReason};
use waifud_types::Epoch;
use waifud_types::spec::RestartPolicy;
use waifud_types::status::StoppedBy;

use crate::control_link::record::{
    Deletion, DesiredState, Handover, Memory, ReleaseRecord, RunMemory,
};
use crate::fake::sample_instance;
use crate::instance::driver::apply;
use crate::instance::planner::{
    Circumstances, DESTROY, Observed, START, Step, Wait, leads_to, next,
};
use crate::instance::restart_policy;

/// More steps than any plan has.
const MANY: usize = 40;

fn domain() -> impl Strategy<Value = Option<DomainState>> {
    let off = prop_oneof![
        Just(OffReason::Unknown),
        Just(OffReason::GuestShutdown),
        Just(OffReason::Destroyed),
        Just(OffReason::Crashed),
        Just(OffReason::StartFailed),
    ];
    prop_oneof![
        Just(None),
        Just(Some(DomainState::Running)),
        any::<bool>().prop_map(|io_error| Some(DomainState::Paused { io_error })),
        Just(Some(DomainState::ShuttingDown)),
        off.prop_map(|reason| Some(DomainState::Off(reason))),
        Just(Some(DomainState::Crashed)),
    ]
}

prop_compose! {
    fn observed()(
        domain in domain(),
        epoch in proptest::option::of(1_u64..4),
        flags in any::<[bool; 14]>(),
    ) -> Observed {
        let [foreign, defined, image, volumes, lost, leftovers, port, bundle, assigned, readiness_final, seed, by_disk, grown, nics] =
            flags;
        Observed {
            epoch: epoch.filter(|_| domain.is_some()).map(Epoch),
            foreign: foreign && domain.is_some() && epoch.is_none(),
            defined: defined && domain.is_some(),
            image,
            volumes,
            seed,
            by_disk,
            lost: lost.then(|| "root".parse().unwrap()),
            leftovers,
            port,
            bundle,
            assigned: assigned || bundle,
            readiness_final,
            grown,
            nics,
            domain,
        }
    }
}

fn memory() -> impl Strategy<Value = Memory> {
    let run = prop_oneof![
        Just(RunMemory::Free),
        Just(RunMemory::Starting),
        Just(RunMemory::Started),
        Just(RunMemory::Stopped),
    ];
    let by = prop_oneof![
        Just(None),
        Just(Some(StoppedBy::User)),
        Just(Some(StoppedBy::Guest)),
        Just(Some(StoppedBy::Crash)),
        Just(Some(StoppedBy::Host)),
        Just(Some(StoppedBy::Outside)),
    ];
    (run, by, any::<bool>(), 0_u64..3).prop_map(|(run, stopped_by, stop_requested, done)| Memory {
        run,
        stopped_by,
        stop_requested,
        reboots_done: done,
        ..Memory::default()
    })
}

fn wanted() -> impl Strategy<Value = AgentInstance> {
    let policy = prop_oneof![
        Just(RestartPolicy::Always),
        Just(RestartPolicy::OnCrash),
        Just(RestartPolicy::Never),
    ];
    let power = (any::<bool>(), 0_u64..3, any::<bool>()).prop_map(|(off, reboots, reboot)| {
        waifud_types::PowerSpec {
            force_off: off,
            reboots,
            force_reboot: reboot,
        }
    });
    (any::<bool>(), policy, 1_u64..4, power).prop_map(|(run, restart, epoch, power)| {
        let mut want = sample_instance("web");
        want.spec.power = power;
        want.spec.run = run;
        want.spec.restart = restart;
        want.epoch = Epoch(epoch);
        want
    })
}

fn circumstances() -> impl Strategy<Value = Circumstances> {
    any::<[bool; 11]>().prop_map(|[a, b, c, d, e, f, g, h, i, j, k]| Circumstances {
        start_allowed: a,
        restart_due: b,
        grace_over: c,
        space_returned: d,
        port_failed: e,
        nics_failed: k,
        bundle_failed: f,
        ask_again: g,
        unconfirmed: j,
        host_stopping: h,
        grow_failed: i,
    })
}

/// A running instance with everything that a deletion removes.
fn running(want: &AgentInstance) -> Observed {
    Observed {
        domain: Some(DomainState::Running),
        epoch: Some(want.epoch),
        leftovers: true,
        assigned: true,
        port: true,
        ..Observed::default()
    }
}

fn deletion(epoch: u64, held: bool, of: &AgentInstance) -> Deletion {
    Deletion {
        tombstone: Tombstone {
            instance: of.id,
            name: of.name.clone(),
            epoch: Epoch(epoch),
        },
        held,
        epoch: Some(of.epoch),
        done: false,
    }
}

fn release(of: &AgentInstance, epoch: u64, stop: bool, completed: bool) -> DesiredState {
    let release = Release {
        instance: of.id,
        epoch: Epoch(epoch),
        stop,
    };
    DesiredState::Release(Box::new(Handover {
        record: ReleaseRecord {
            release,
            completed,
            in_slice: Some(true),
        },
        instance: Some(of.clone()),
    }))
}

/// Circumstances that allow every step.
fn fair() -> Circumstances {
    Circumstances {
        start_allowed: true,
        restart_due: true,
        grace_over: false,
        ask_again: false,
        space_returned: true,
        port_failed: false,
        nics_failed: false,
        bundle_failed: false,
        unconfirmed: false,
        host_stopping: false,
        grow_failed: false,
    }
}

/// Runs the plan like a driver, on a simulated node; `fails` lists the attempts that fail.
/// Returns the steps taken and the state at the end.
fn go(
    desired: &DesiredState,
    memory: &Memory,
    seen: &Observed,
    fails: &BTreeSet<usize>,
) -> (Vec<Step>, Observed) {
    let (mut memory, mut seen) = (memory.clone(), seen.clone());
    let mut steps = Vec::new();
    let mut now = fair();
    for round in 0..MANY {
        if let DesiredState::Keep(want) = desired {
            memory = restart_policy::remember(&memory, want, seen.domain, false);
        }
        let step = next(desired, &memory, &seen, now);
        match step {
            Step::Idle
                if now.port_failed || now.nics_failed || now.bundle_failed || now.grow_failed =>
            {
                // The driver begins another pass after a pause.
                now.grow_failed = false;
                now.port_failed = false;
                now.nics_failed = false;
                now.bundle_failed = false;
            }
            // Time passes; a wait that time cannot end ends the run.
            Step::Wait(Wait::Shutdown) if !now.grace_over => now.grace_over = true,
            Step::Idle | Step::ConfirmDestroyed | Step::CompleteRelease | Step::Wait(_) => {
                steps.push(step);
                break;
            }
            _ if fails.contains(&round) => {
                if seen.is_on() {
                    now.port_failed |= step == Step::EnsurePort;
                    now.nics_failed |= step == Step::EnsureNics;
                    now.bundle_failed |= step == Step::EnsureBundle;
                    now.grow_failed |= step == Step::GrowDisks;
                }
            }
            _ => {
                steps.push(step);
                now.port_failed = false;
                now.bundle_failed = false;
                if step == Step::RequestShutdown {
                    memory.stop_requested = true;
                }
                apply(&mut seen, step);
            }
        }
    }
    (steps, seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_kept_instance_is_never_destroyed(
        want in wanted(), memory in memory(), seen in observed(), now in circumstances(),
    ) {
        let power = want.spec.power;
        let rebooting = restart_policy::reboot_requested(&memory, &want);
        let run = want.spec.run;
        let step = next(&DesiredState::Keep(Box::new(want)), &memory, &seen, now);
        prop_assert!(
            !matches!(
                step,
                Step::Undefine
                    | Step::DestroyVolumes
                    | Step::ReleaseBundle
                    | Step::ReleasePort
                    | Step::ConfirmDestroyed
                    | Step::CompleteRelease
            ),
            "{step:?}"
        );
        if step == Step::ForceOff {
            let off = !run && (now.grace_over || power.force_off);
            let reboot = rebooting && (now.grace_over || power.force_reboot);
            prop_assert!(seen.domain == Some(DomainState::Crashed) || off || reboot);
        }
        if step == Step::RequestShutdown {
            prop_assert!(!run || rebooting);
        }
    }

    #[test]
    fn nothing_starts_before_everything_is_in_place(
        want in wanted(), memory in memory(), seen in observed(), now in circumstances(),
    ) {
        let want_run = want.spec.run;
        let policy = want.spec.restart;
        let epoch = want.epoch;
        let step = next(&DesiredState::Keep(Box::new(want)), &memory, &seen, now);
        if step == Step::Start {
            prop_assert!(want_run && !seen.foreign && seen.epoch.is_none_or(|e| e <= epoch));
            if !seen.is_on() {
                prop_assert!(seen.image && seen.volumes && seen.seed && seen.port && seen.defined);
            prop_assert!(seen.bundle || seen.by_disk && now.bundle_failed);
                prop_assert!(seen.lost.is_none() && now.start_allowed && !now.host_stopping);
                prop_assert!(restart_policy::may_start(&memory, policy));
            }
        }
    }

    #[test]
    fn nics_change_only_in_a_running_guest_whose_ports_have_their_rules(
        want in wanted(), memory in memory(), seen in observed(), now in circumstances(),
    ) {
        let step = next(&DesiredState::Keep(Box::new(want)), &memory, &seen, now);
        if step == Step::EnsureNics {
            prop_assert!(seen.domain == Some(DomainState::Running) && seen.port && !seen.nics);
        }
    }

    #[test]
    fn an_instance_outside_the_slice_is_left_unchanged(
        memory in memory(), seen in observed(), now in circumstances(),
    ) {
        prop_assert_eq!(next(&DesiredState::LeaveAlone, &memory, &seen, now), Step::Idle);
    }

    #[test]
    fn a_deletion_that_is_not_allowed_does_nothing(
        want in wanted(), memory in memory(), seen in observed(), now in circumstances(), epoch in 1_u64..4, held in any::<bool>(),
    ) {
        let deletion = deletion(epoch, held, &want);
        let copy = seen.epoch.max(deletion.epoch);
        let forbidden = held || seen.foreign || copy.is_some_and(|copy| copy.0 > epoch);
        let step = next(&DesiredState::Destroy(deletion), &memory, &seen, now);
        prop_assert_eq!(forbidden, matches!(step, Step::Wait(_)), "{:?}", step);
    }

    #[test]
    fn a_deletion_leaves_nothing_regardless_of_failures(
        want in wanted(), memory in memory(), seen in observed(),
        fails in proptest::collection::btree_set(0_usize..12, 0..6),
    ) {
        let deletion = deletion(9, false, &want);
        let foreign = seen.foreign;
        let (steps, left) = go(&DesiredState::Destroy(deletion), &memory, &seen, &fails);
        if foreign {
            prop_assert_eq!(steps.last(), Some(&Step::Wait(Wait::ForeignDomain)));
        } else {
            prop_assert_eq!(steps.last(), Some(&Step::ConfirmDestroyed));
            prop_assert!(left.domain.is_none() && !left.leftovers && !left.assigned && !left.port);
        }
        let mut once = steps.clone();
        once.sort_by_key(|step| format!("{step:?}"));
        once.dedup();
        prop_assert_eq!(once.len(), steps.len(), "no step is done twice: {:?}", steps);
    }

    #[test]
    fn a_released_instance_is_never_started_defined_or_destroyed(
        want in wanted(), memory in memory(), seen in observed(), now in circumstances(),
        epoch in 1_u64..4, stop in any::<bool>(), completed in any::<bool>(),
    ) {
        let step = next(&release(&want, epoch, stop, completed), &memory, &seen, now);
        prop_assert!(
            matches!(
                step,
                Step::RequestShutdown
                    | Step::ForceOff
                    | Step::ReleaseBundle
                    | Step::ReleasePort
                    | Step::CompleteRelease
                    | Step::Wait(_)
                    | Step::Idle
            ),
            "{step:?}"
        );
        if matches!(step, Step::RequestShutdown | Step::ForceOff) {
            let crashed = seen.domain == Some(DomainState::Crashed);
            prop_assert!(crashed || seen.is_on() && (stop || completed));
            prop_assert!(!seen.foreign && seen.epoch.is_none_or(|copy| copy.0 <= epoch));
        }
        if step == Step::CompleteRelease {
            prop_assert!(!seen.is_on() && !seen.port && !seen.assigned);
        }
    }

    #[test]
    fn a_release_is_completed_whatever_fails_on_the_way_unless_the_guest_may_continue(
        want in wanted(), memory in memory(), seen in observed(), stop in any::<bool>(),
        fails in proptest::collection::btree_set(0_usize..12, 0..6),
    ) {
        let (foreign, on) = (seen.foreign, seen.is_on());
        let (steps, left) = go(&release(&want, 9, stop, false), &memory, &seen, &fails);
        if foreign {
            prop_assert_eq!(steps.last(), Some(&Step::Wait(Wait::ForeignDomain)));
        } else if on && !stop {
            prop_assert_eq!(steps, [Step::Idle]);
        } else {
            prop_assert_eq!(steps.last(), Some(&Step::CompleteRelease));
            prop_assert!(!left.is_on() && !left.assigned && !left.port, "{:?}", left);
            prop_assert_eq!(left.leftovers, seen.leftovers, "the disks stay");
            prop_assert_eq!(left.domain.is_some(), seen.domain.is_some(), "the definition stays");
        }
    }

    #[test]
    fn a_kept_instance_reaches_a_final_step_whatever_fails_on_the_way(
        want in wanted(), memory in memory(), mut seen in observed(),
        fails in proptest::collection::btree_set(0_usize..16, 0..8),
    ) {
        seen.lost = None;
        let after_look = restart_policy::remember(&memory, &want, seen.domain, false);
        let blocked = seen.foreign || seen.epoch.is_some_and(|epoch| epoch > want.epoch);
        let paused = seen.domain == Some(DomainState::Paused { io_error: false });
        let on_its_way_off = seen.domain == Some(DomainState::ShuttingDown);
        let crashed = seen.domain == Some(DomainState::Crashed);
        let rebooting = seen.is_on() && restart_policy::reboot_requested(&memory, &want);
        let at_start = if crashed {
            let off = Some(DomainState::Off(OffReason::Destroyed));
            restart_policy::remember(&after_look, &want, off, false)
        } else {
            after_look
        };
        let may_run = restart_policy::may_start(&at_start, want.spec.restart);
        let run = want.spec.run;
        let was_on = seen.is_on();
        let (steps, left) = go(&DesiredState::Keep(Box::new(want)), &memory, &seen, &fails);
        prop_assert!(steps.len() < MANY, "{:?}", steps);
        if blocked {
            prop_assert!(matches!(steps.as_slice(), [Step::Wait(_)]), "{:?}", steps);
        } else if !run {
            prop_assert!(!left.is_on(), "{:?}", steps);
        } else if !rebooting && (paused || on_its_way_off) {
            prop_assert!(matches!(steps.last(), Some(Step::Wait(_))), "{:?}", steps);
        } else if was_on || may_run {
            prop_assert_eq!(left.domain, Some(DomainState::Running), "{:?}", steps);
            prop_assert!(left.port && left.bundle, "{:?}", steps);
        } else {
            prop_assert!(!left.is_on(), "{:?}", steps);
        }
        let forced_off = steps.iter().filter(|step| **step == Step::ForceOff).count();
        prop_assert!(blocked || !crashed || forced_off == 1, "{:?}", steps);
        let starts = steps.iter().filter(|step| **step == Step::Start).count();
        prop_assert!(starts <= 1, "{:?}", steps);
    }
}
