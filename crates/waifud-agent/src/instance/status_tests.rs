//! Statuses of instances that are released, and while the hypervisor does not answer.

use waifud_api::agent::{InstanceReport, Release};
use waifud_hypervisor::{DomainState, OffReason};
use waifud_types::{Epoch, InstanceState, Timestamp};

use crate::control_link::record::{
    DesiredState, InstanceRecord, ReleaseRecord, RunMemory, StartedWith,
};
use crate::fake::sample_instance;
use crate::instance::planner::{Observed, Step};
use crate::instance::status::{Situation, report};

/// A record of an instance that has run with one CPU more than it should have at its next start.
fn record(run: RunMemory, release: Option<bool>) -> InstanceRecord {
    let instance = sample_instance("web");
    let mut record = InstanceRecord::new(instance.id);
    record.managed = release.is_none();
    record.release = release.map(|stop| ReleaseRecord {
        release: Release {
            instance: instance.id,
            epoch: Epoch::FIRST,
            stop,
        },
        completed: false,
        in_slice: Some(true),
    });
    record.memory.run = run;
    record.memory.start.started_with = Some(StartedWith {
        cpus: instance.spec.cpus + 1,
        memory_bytes: instance.spec.memory_bytes,
    });
    record.instance = Some(instance);
    record
}

fn status(record: &InstanceRecord, domain: Option<DomainState>) -> InstanceReport {
    let desired = record.desired_state(false);
    assert_ne!(desired, DesiredState::LeaveAlone);
    let seen = domain.map(|domain| Observed {
        domain: Some(domain),
        ..Observed::default()
    });
    report(Situation {
        node: &"alder".parse().unwrap(),
        record,
        desired: &desired,
        seen: seen.as_ref(),
        hypervisor: None,
        step: Step::Idle,
        since: Timestamp::UNIX_EPOCH,
        percent: None,
        module: None,
        failure: None,
        next_start: None,
        full_pool: None,
        nics: None,
        conditions: Vec::new(),
    })
    .unwrap()
}

#[test]
fn while_the_hypervisor_does_not_answer_a_released_instance_keeps_its_last_known_state() {
    for (run, stop, state) in [
        (RunMemory::Started, false, InstanceState::Running),
        (RunMemory::Started, true, InstanceState::Stopping),
        (RunMemory::Stopped, true, InstanceState::Stopped),
        (RunMemory::Stopped, false, InstanceState::Stopped),
        (RunMemory::Free, true, InstanceState::Stopped),
    ] {
        let record = record(run, Some(stop));
        assert_eq!(status(&record, None).state, state, "{run:?}, stop: {stop}");
    }
}

#[test]
fn the_larger_size_of_a_guest_that_may_run_is_reported_also_when_it_is_released() {
    let off = DomainState::Off(OffReason::GuestShutdown);
    for release in [None, Some(false), Some(true)] {
        let started = record(RunMemory::Started, release);
        for seen in [Some(DomainState::Running), None] {
            let needed = status(&started, seen).restart_needed;
            assert_eq!(needed, ["cpus"], "release: {release:?}, seen: {seen:?}");
        }
        let stopped = record(RunMemory::Stopped, release);
        for seen in [Some(off), None] {
            assert!(status(&stopped, seen).restart_needed.is_empty());
        }
    }
}
