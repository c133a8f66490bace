//! Why an instance is off, and whether it may be started again: pure functions over the record and the observation.
//!
//! A guest that powers itself off stays off. A crash, or a stop from outside (`virsh destroy`, a killed process), leads to
//! a restart unless the policy is `never`. After a host restart the guests are started again whatever the policy, because
//! no user stopped them. A user's new request to start overrides an instance that stays off.

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::{DomainState, OffReason};
use waifud_types::spec::RestartPolicy;
use waifud_types::status::StoppedBy;

use crate::control_link::record::{Memory, RunMemory};

/// The memory after an observation of the domain; `seen` is `None` without a domain. A guest that goes off while the host
/// is shutting down counts as stopped by the host.
pub fn remember(
    memory: &Memory,
    want: &AgentInstance,
    seen: Option<DomainState>,
    host_stopping: bool,
) -> Memory {
    let mut next = memory.clone();
    match seen {
        Some(DomainState::Running | DomainState::Paused { .. } | DomainState::ShuttingDown) => {
            next.run = RunMemory::Started;
            next.stopped_by = None;
        }
        Some(DomainState::Crashed) => {
            if memory.run == RunMemory::Started {
                next.run = RunMemory::Stopped;
                next.stopped_by = Some(StoppedBy::Crash);
            }
        }
        Some(DomainState::Off(_)) | None => {
            if memory.run == RunMemory::Started {
                let reason = match seen {
                    Some(DomainState::Off(reason)) => Some(reason),
                    _ => None,
                };
                next.run = RunMemory::Stopped;
                next.stopped_by = Some(match stopped_by(memory, want, reason) {
                    StoppedBy::User if !want.spec.run => StoppedBy::User,
                    _ if host_stopping => StoppedBy::Host,
                    other => other,
                });
                next.stop_requested = false;
            }
            if reboot_requested(memory, want) {
                // The guest is off. The start that follows completes the reboot.
                next.reboots_done = want.spec.power.reboots;
                if next.run == RunMemory::Stopped {
                    next.run = RunMemory::Free;
                    next.restarts = 0;
                }
            }
        }
    }
    next
}

fn stopped_by(memory: &Memory, want: &AgentInstance, reason: Option<OffReason>) -> StoppedBy {
    if !want.spec.run || memory.stop_requested {
        return StoppedBy::User;
    }
    match reason {
        Some(OffReason::GuestShutdown) => StoppedBy::Guest,
        Some(OffReason::Crashed | OffReason::StartFailed) => StoppedBy::Crash,
        // The hypervisor loses the reason when the host restarts.
        Some(OffReason::Unknown) => StoppedBy::Host,
        Some(OffReason::Destroyed) | None => StoppedBy::Outside,
    }
}

/// Whether a requested reboot is not done yet.
pub fn reboot_requested(memory: &Memory, want: &AgentInstance) -> bool {
    want.spec.power.reboots > memory.reboots_done
}

/// The fields of the spec that differ from what the running guest was started with.
pub fn restart_needed(memory: &Memory, want: &AgentInstance) -> Vec<String> {
    let Some(has) = &memory.start.started_with else {
        return Vec::new();
    };
    let spec = &want.spec;
    [
        ("cpus", has.cpus != spec.cpus),
        ("memory_bytes", has.memory_bytes != spec.memory_bytes),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(field, _)| field.to_owned())
    .collect()
}

/// Whether an instance that should run and is off may be started.
pub fn may_start(memory: &Memory, policy: RestartPolicy) -> bool {
    match (memory.run, memory.stopped_by) {
        (RunMemory::Free | RunMemory::Starting | RunMemory::Started, _)
        | (RunMemory::Stopped, None | Some(StoppedBy::User | StoppedBy::Host)) => true,
        (RunMemory::Stopped, Some(StoppedBy::Guest)) => policy == RestartPolicy::Always,
        (RunMemory::Stopped, Some(StoppedBy::Crash | StoppedBy::Outside)) => {
            policy != RestartPolicy::Never
        }
    }
}

/// Whether its next start is a restart, which is subject to back-off.
pub fn is_restart(memory: &Memory) -> bool {
    memory.run == RunMemory::Stopped
        && matches!(
            memory.stopped_by,
            Some(StoppedBy::Guest | StoppedBy::Crash | StoppedBy::Outside)
        )
}

/// Whether the change from `old` to `new` is a user's request to start, which also starts an instance that stays off: `run`
/// was false, a reboot is requested, or only the generation changed.
pub fn is_start_request(old: &AgentInstance, new: &AgentInstance) -> bool {
    new.spec.run
        && new.generation > old.generation
        && (!old.spec.run
            || new.spec.power.reboots > old.spec.power.reboots
            || (old.spec == new.spec && old.bundle == new.bundle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_link::record::{StartMemory, StartedWith};
    use crate::fake::sample_instance;

    fn ran() -> Memory {
        Memory {
            run: RunMemory::Started,
            ..Memory::default()
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the functions take it")]
    fn off(reason: OffReason) -> Option<DomainState> {
        Some(DomainState::Off(reason))
    }

    #[test]
    fn each_end_of_a_run_is_attributed() {
        let want = sample_instance("web");
        for (seen, by) in [
            (off(OffReason::GuestShutdown), StoppedBy::Guest),
            (off(OffReason::Crashed), StoppedBy::Crash),
            (off(OffReason::Destroyed), StoppedBy::Outside),
            (off(OffReason::Unknown), StoppedBy::Host),
            (Some(DomainState::Crashed), StoppedBy::Crash),
            (None, StoppedBy::Outside),
        ] {
            let memory = remember(&ran(), &want, seen, false);
            assert_eq!(memory.stopped_by, Some(by), "{seen:?}");
            assert_eq!(memory.run, RunMemory::Stopped);
            let again = remember(&memory, &want, seen, false);
            assert_eq!(again, memory, "a second observation changes nothing");
        }
    }

    /// Who stopped a guest that has run and then shut down.
    fn stopped_by(want: &AgentInstance, host_stopping: bool) -> Option<StoppedBy> {
        let seen = off(OffReason::GuestShutdown);
        remember(&ran(), want, seen, host_stopping).stopped_by
    }

    /// It was stopped by this one, after which it starts again under every policy.
    #[track_caller]
    fn assert_starts_again(memory: &Memory, stopped_by: StoppedBy) {
        assert_eq!(memory.stopped_by, Some(stopped_by));
        assert!(may_start(memory, RestartPolicy::Never));
    }

    #[test]
    fn a_requested_stop_is_the_users_even_when_the_desired_state_has_changed_back() {
        let mut want = sample_instance("web");
        let requested = Memory {
            stop_requested: true,
            ..ran()
        };
        let memory = remember(&requested, &want, off(OffReason::GuestShutdown), false);
        assert_starts_again(&memory, StoppedBy::User);
        want.spec.run = false;
        assert_eq!(stopped_by(&want, false), Some(StoppedBy::User));
    }

    #[test]
    fn an_instance_that_never_ran_has_no_stop_reason() {
        let want = sample_instance("web");
        let memory = remember(&Memory::default(), &want, off(OffReason::Unknown), false);
        assert_eq!(memory, Memory::default());
        // A start that was begun without a visible effect is repeated.
        let starting = Memory {
            run: RunMemory::Starting,
            ..Memory::default()
        };
        let memory = remember(&starting, &want, off(OffReason::GuestShutdown), false);
        assert!(may_start(&memory, RestartPolicy::Never));
    }

    #[test]
    fn the_policy_decides_about_restarts() {
        use RestartPolicy as P;
        use StoppedBy as B;
        for (by, policy, expected) in [
            (B::Guest, P::Always, true),
            (B::Guest, P::OnCrash, false),
            (B::Guest, P::Never, false),
            (B::Crash, P::Always, true),
            (B::Crash, P::OnCrash, true),
            (B::Crash, P::Never, false),
            (B::Outside, P::Always, true),
            (B::Outside, P::OnCrash, true),
            (B::Outside, P::Never, false),
            (B::Host, P::Never, true),
            (B::User, P::Never, true),
        ] {
            let memory = Memory {
                run: RunMemory::Stopped,
                stopped_by: Some(by),
                ..Memory::default()
            };
            assert_eq!(may_start(&memory, policy), expected, "{by:?} {policy:?}");
        }
    }

    #[test]
    fn only_a_request_to_start_overrides_a_stopped_instance() {
        let old = sample_instance("web");
        let mut new = old.clone();
        assert!(!is_start_request(&old, &new), "the same again");
        new.generation = old.generation.next();
        assert!(is_start_request(&old, &new), "requested again");
        new.bundle.size_bytes += 1;
        assert!(!is_start_request(&old, &new), "edited user-data");
        let mut stopped = old.clone();
        stopped.spec.run = false;
        assert!(is_start_request(&stopped, &new));
        assert!(!is_start_request(&old, &stopped));
    }

    #[test]
    fn guests_stopped_by_the_host_start_again_with_it() {
        let mut want = sample_instance("web");
        for reason in [OffReason::GuestShutdown, OffReason::Destroyed] {
            let memory = remember(&ran(), &want, off(reason), true);
            assert_starts_again(&memory, StoppedBy::Host);
        }
        want.spec.run = false;
        assert_eq!(stopped_by(&want, true), Some(StoppedBy::User));
    }

    #[test]
    fn a_reboot_is_done_once_and_starts_an_instance_that_stays_off() {
        let mut want = sample_instance("web");
        want.spec.power.reboots = 2;
        let running = remember(&ran(), &want, Some(DomainState::Running), false);
        assert!(reboot_requested(&running, &want), "not before it is off");
        let memory = remember(&running, &want, off(OffReason::GuestShutdown), false);
        assert!(!reboot_requested(&memory, &want));
        assert!(may_start(&memory, RestartPolicy::Never) && !is_restart(&memory));
        let later = Memory {
            run: RunMemory::Started,
            ..memory
        };
        let ended = remember(&later, &want, off(OffReason::GuestShutdown), false);
        assert_eq!(ended.stopped_by, Some(StoppedBy::Guest), "its own end");
        let mut old = want.clone();
        old.spec.power.reboots = 1;
        want.generation = old.generation.next();
        assert!(is_start_request(&old, &want));
    }

    #[test]
    fn fields_that_differ_from_the_last_start_need_a_restart() {
        let mut want = sample_instance("web");
        assert!(restart_needed(&ran(), &want).is_empty(), "not known");
        let memory = Memory {
            start: StartMemory {
                started_with: Some(StartedWith::of(&want)),
                ..StartMemory::default()
            },
            ..ran()
        };
        assert!(restart_needed(&memory, &want).is_empty());
        want.spec.cpus += 1;
        want.spec.memory_bytes = waifud_types::ByteSize::gib(9);
        assert_eq!(restart_needed(&memory, &want), ["cpus", "memory_bytes"]);
    }
}
