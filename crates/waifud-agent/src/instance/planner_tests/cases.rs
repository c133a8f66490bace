//! Single plans and decisions of the planner.

use super::*;
use crate::control_link::record::RemovedNic;

#[test]
fn a_creation_takes_its_steps_in_order() {
    let desired = DesiredState::Keep(Box::new(sample_instance("web")));
    let (steps, _) = go(
        &desired,
        &Memory::default(),
        &Observed::default(),
        &BTreeSet::new(),
    );
    assert_eq!(
        steps,
        [
            Step::EnsureImage,
            Step::EnsureVolumes,
            Step::EnsureSeed,
            Step::Define,
            Step::EnsurePort,
            Step::EnsureBundle,
            Step::Start,
            Step::WatchReady,
            Step::Idle,
        ]
    );
    assert_eq!(steps[..7], START, "as `leads_to` knows it");
}

#[test]
fn a_deletion_takes_its_steps_in_order() {
    let want = sample_instance("web");
    let seen = running(&want);
    let desired = DesiredState::Destroy(deletion(1, false, &want));
    let (steps, _) = go(&desired, &Memory::default(), &seen, &BTreeSet::new());
    assert_eq!(
        steps,
        [
            Step::ForceOff,
            Step::Undefine,
            Step::DestroyVolumes,
            Step::ReleaseBundle,
            Step::ReleasePort,
            Step::ConfirmDestroyed,
        ]
    );
    assert_eq!(steps, DESTROY, "as `leads_to` knows it");
}

/// Of the instance, there is nothing but a running domain.
fn only_running() -> Observed {
    Observed {
        domain: Some(DomainState::Running),
        ..Observed::default()
    }
}

#[test]
fn a_release_takes_its_steps_in_order() {
    let want = sample_instance("web");
    let desired = release(&want, 1, true, false);
    let seen = running(&want);
    let (steps, _) = go(&desired, &Memory::default(), &seen, &BTreeSet::new());
    assert_eq!(
        steps,
        [
            Step::RequestShutdown,
            Step::ForceOff,
            Step::ReleaseBundle,
            Step::ReleasePort,
            Step::CompleteRelease
        ]
    );
}

#[test]
fn a_guest_that_was_started_by_hand_after_its_release_is_shut_down() {
    let want = sample_instance("web");
    for stop in [true, false] {
        let desired = release(&want, 1, stop, true);
        let step = next(&desired, &Memory::default(), &running(&want), fair());
        assert!(
            matches!(step, Step::RequestShutdown | Step::Wait(Wait::Shutdown)),
            "{step:?}"
        );
    }
}

#[test]
fn a_running_guest_is_still_maintained_when_every_step_fails() {
    let seen = only_running();
    let now = Circumstances {
        port_failed: true,
        bundle_failed: true,
        nics_failed: true,
        grow_failed: true,
        ..fair()
    };
    let desired = DesiredState::Keep(Box::new(sample_instance("web")));
    assert_eq!(
        next(&desired, &Memory::default(), &seen, now),
        Step::WatchReady
    );
}

#[test]
fn ports_of_removed_nics_are_removed_after_the_guest_has_released_them_or_is_off() {
    let want = sample_instance("web");
    let desired = DesiredState::Keep(Box::new(want.clone()));
    let removed = |released| Memory {
        removed_nics: vec![RemovedNic {
            number: 1,
            nic: want.spec.nics[0].clone(),
            bridge: None,
            released,
        }],
        ..Memory::default()
    };
    let mut seen = Observed {
        bundle: true,
        grown: true,
        ..running(&want)
    };
    let step = |memory: &Memory, seen: &Observed| next(&desired, memory, seen, fair());
    assert_eq!(step(&removed(false), &seen), Step::EnsureNics);
    seen.nics = true;
    assert_eq!(
        step(&removed(false), &seen),
        Step::WatchReady,
        "the guest still has it"
    );
    assert_eq!(step(&removed(true), &seen), Step::EnsurePort);
    seen.domain = Some(DomainState::Off(OffReason::Destroyed));
    seen.defined = false;
    (seen.image, seen.volumes, seen.seed) = (true, true, true);
    assert_eq!(
        step(&removed(false), &seen),
        Step::Define,
        "the definition may have it"
    );
    seen.defined = true;
    assert_eq!(step(&removed(false), &seen), Step::EnsurePort);
}

#[test]
fn the_disks_of_a_running_guest_are_grown_and_those_of_a_paused_one_are_not() {
    let want = sample_instance("web");
    let desired = DesiredState::Keep(Box::new(want.clone()));
    let with = |domain| Observed {
        domain: Some(domain),
        bundle: true,
        nics: true,
        grown: false,
        ..running(&want)
    };
    let step = |seen: &Observed| next(&desired, &Memory::default(), seen, fair());
    assert_eq!(step(&with(DomainState::Running)), Step::GrowDisks);
    let paused = with(DomainState::Paused { io_error: false });
    assert_eq!(step(&paused), Step::Wait(Wait::Pause));
}

#[test]
fn a_guest_paused_by_a_full_disk_is_resumed_when_space_has_returned_and_not_before() {
    let want = sample_instance("web");
    let desired = DesiredState::Keep(Box::new(want.clone()));
    let paused = Observed {
        domain: Some(DomainState::Paused { io_error: true }),
        bundle: true,
        ..running(&want)
    };
    let step = |space_returned| {
        let now = Circumstances {
            space_returned,
            ..fair()
        };
        next(&desired, &Memory::default(), &paused, now)
    };
    assert_eq!(step(false), Step::Wait(Wait::DiskSpace));
    assert_eq!(step(true), Step::Start);
}

#[test]
fn a_guest_that_may_have_missed_the_request_is_asked_again_before_it_is_forced_off() {
    let seen = only_running();
    let memory = Memory {
        stop_requested: true,
        ..Memory::default()
    };
    let mut want = sample_instance("web");
    want.spec.run = false;
    let desired = DesiredState::Keep(Box::new(want));
    for (ask_again, grace_over, step) in [
        (true, false, Step::RequestShutdown),
        (false, false, Step::Wait(Wait::Shutdown)),
        (true, true, Step::ForceOff),
    ] {
        let now = Circumstances {
            grace_over,
            ask_again,
            ..fair()
        };
        assert_eq!(next(&desired, &memory, &seen, now), step);
    }
}

#[test]
fn an_instance_of_a_restored_database_that_is_not_here_waits_for_an_operator() {
    let mut want = sample_instance("web");
    want.restored = true;
    let desired = DesiredState::Keep(Box::new(want));
    let unconfirmed = Circumstances {
        unconfirmed: true,
        ..fair()
    };
    let nothing = Observed::default();
    assert_eq!(
        next(&desired, &Memory::default(), &nothing, unconfirmed),
        Step::Wait(Wait::Restored)
    );
    assert_eq!(
        next(&desired, &Memory::default(), &nothing, fair()),
        Step::EnsureImage
    );
    // An instance that the node knows is not affected.
    let known = Memory {
        defined: true,
        ..Memory::default()
    };
    assert_eq!(
        next(&desired, &known, &nothing, unconfirmed),
        Step::EnsureImage
    );
}

#[test]
fn leads_to_is_true_for_the_same_step_and_for_later_steps_of_a_plan() {
    let want = sample_instance("web");
    let destroy = running(&want);
    let plans = [
        (DesiredState::Destroy(deletion(1, false, &want)), destroy),
        (DesiredState::Keep(Box::new(want)), Observed::default()),
    ];
    for (desired, seen) in plans {
        let (mut steps, _) = go(&desired, &Memory::default(), &seen, &BTreeSet::new());
        steps.retain(|step| !matches!(step, Step::WatchReady | Step::Idle));
        assert!(steps.len() >= 6, "{steps:?}");
        for (a, step) in steps.iter().enumerate() {
            for (b, later) in steps.iter().enumerate() {
                assert_eq!(leads_to(*step, *later), a <= b, "{step:?} to {later:?}");
            }
        }
    }
    assert!(leads_to(Step::GrowDisks, Step::GrowDisks));
    for end in [Step::Idle, Step::WatchReady, Step::Wait(Wait::DiskSpace)] {
        assert!(!leads_to(end, end), "nothing is tried: {end:?}");
    }
}

#[test]
fn every_step_except_idle_has_its_name_on_the_wire() {
    let names = [
        (Step::EnsureImage, "image"),
        (Step::EnsureVolumes, "volume"),
        (Step::EnsureSeed, "seed"),
        (Step::EnsurePort, "network"),
        (Step::EnsureBundle, "bundle"),
        (Step::Define, "define"),
        (Step::Start, "start"),
        (Step::GrowDisks, "grow"),
        (Step::RequestShutdown, "shutdown"),
        (Step::Wait(Wait::Shutdown), "shutdown"),
        (Step::ForceOff, "force-off"),
        (Step::Undefine, "undefine"),
        (Step::DestroyVolumes, "destroy-volumes"),
        (Step::ReleaseBundle, "release-bundle"),
        (Step::ReleasePort, "release-network"),
        (Step::ConfirmDestroyed, "confirm"),
        (Step::CompleteRelease, "complete-release"),
        (Step::WatchReady, "ready"),
        (Step::Wait(Wait::Backoff), "wait"),
    ];
    for (step, name) in names {
        assert_eq!(step.name(), Some(name), "{step:?}");
    }
    assert_eq!(Step::Idle.name(), None);
}

#[test]
fn every_wait_has_its_own_text_and_those_for_a_node_name_it() {
    let node = "alder".parse().unwrap();
    let waits = [
        Wait::Confirmation,
        Wait::StaleDeletion,
        Wait::ForeignDomain,
        Wait::NewerCopy,
        Wait::LostDisk,
        Wait::Restored,
        Wait::StartAllowed,
        Wait::Host,
        Wait::Backoff,
        Wait::Shutdown,
        Wait::DiskSpace,
        Wait::Pause,
    ];
    let texts: BTreeSet<_> = waits.iter().map(|wait| wait.text(&node)).collect();
    assert_eq!(texts.len(), waits.len());
    for wait in [Wait::Confirmation, Wait::Restored] {
        let text = wait.text(&node);
        assert!(
            text.starts_with("an administrator") && text.contains("node alder"),
            "{text}"
        );
    }
}
