//! An instance's reported status: a pure function of what is desired, recorded, observed and in progress.

use waifud_api::agent::{AgentInstance, InstanceReport};
use waifud_hypervisor::DomainState;
use waifud_types::status::{
    CloudInitState, Condition, HypervisorKind, NicState, NicStatus, StepStatus, StoppedBy,
};
use waifud_types::{Epoch, Generation, InstanceState, Name, Timestamp};

use crate::control_link::record::{DesiredState, Handover, InstanceRecord, Memory, RunMemory};
use crate::instance::nics::{self, EnsuredNics};
use crate::instance::pending;
use crate::instance::planner::{self, Observed, Step, Wait};
use crate::instance::restart_policy;

/// A step that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepFailure {
    /// Which step.
    pub step: Step,
    /// Why, in a sentence.
    pub message: String,
    /// Whether a retry is unlikely to succeed soon.
    pub lasting: bool,
}

/// The inputs of a status.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The node's name.
    pub node: &'a Name,
    pub record: &'a InstanceRecord,
    pub desired: &'a DesiredState,
    /// `None` if the hypervisor did not answer.
    pub seen: Option<&'a Observed>,
    /// What runs the guest.
    pub hypervisor: Option<HypervisorKind>,
    /// The running step, or the step that ended the plan.
    pub step: Step,
    /// When the step began.
    pub since: Timestamp,
    /// The progress of the step.
    pub percent: Option<u8>,
    /// The cloud-init module that is running.
    pub module: Option<String>,
    /// The last failure, while it blocks the plan.
    pub failure: Option<&'a StepFailure>,
    /// When the next start is attempted, during a back-off.
    pub next_start: Option<Timestamp>,
    /// The full pool that keeps the guest paused.
    pub full_pool: Option<Name>,
    /// The nics of the running guest, as last ensured.
    pub nics: Option<&'a EnsuredNics>,
    pub conditions: Vec<Condition>,
}

/// The report about an instance; `None` for an instance outside the node's slice.
pub fn report(s: Situation<'_>) -> Option<InstanceReport> {
    let memory = &s.record.memory;
    let (epoch, generation): (Epoch, Generation) = match s.desired {
        DesiredState::Receive(_) | DesiredState::LeaveAlone => return None,
        DesiredState::Keep(want) => (want.epoch, want.generation),
        DesiredState::Destroy(deletion) => (
            deletion.tombstone.epoch,
            s.record
                .instance
                .as_ref()
                .map_or(Generation::FIRST, |instance| instance.generation),
        ),
        DesiredState::Release(handover) => (
            handover.record.release.epoch,
            handover
                .instance
                .as_ref()
                .map_or(Generation::FIRST, |instance| instance.generation),
        ),
    };
    let state = match s.desired {
        DesiredState::Keep(want) => kept_state(want, memory, &s),
        DesiredState::Release(handover) => released_state(handover, memory, &s),
        _ => InstanceState::Deleting,
    };
    let on = s.seen.is_some_and(Observed::is_on);
    let nics = match s.desired {
        DesiredState::Keep(want) => nics::report(want, memory, s.seen.map(Observed::is_on), s.nics),
        _ => None,
    };
    let since = memory.start.started_at.unwrap_or(Timestamp::UNIX_EPOCH);
    let nic_condition = nics
        .as_deref()
        .and_then(|nics| nics::condition(nics, since));
    Some(InstanceReport {
        id: s.record.id,
        epoch,
        observed_generation: generation,
        state,
        reason: reason(&s),
        stopped_by: memory
            .stopped_by
            .filter(|_| !on && state != InstanceState::Running),
        hypervisor: s.hypervisor,
        started_at: memory
            .start
            .started_at
            .filter(|_| on || state == InstanceState::Running),
        ready: memory.boot.ready_by.is_some() && (on || s.seen.is_none()),
        ready_by: memory.boot.ready_by,
        addresses: Vec::new(),
        restart_needed: restart_needed(memory, &s, nics.as_deref()),
        nics,
        step: step_status(&s),
        cloud_init: memory.boot.cloud_init.clone(),
        conditions: s.conditions.into_iter().chain(nic_condition).collect(),
        // Added by the outbox.
        evidence: None,
    })
}

fn kept_state(want: &AgentInstance, memory: &Memory, s: &Situation<'_>) -> InstanceState {
    let Some(seen) = s.seen else {
        // The hypervisor does not answer. Guests run without it, so the last known state is the best guess.
        return match memory.run {
            RunMemory::Started => InstanceState::Running,
            RunMemory::Stopped => InstanceState::Stopped,
            _ => InstanceState::Preparing,
        };
    };
    let stays = want.spec.run && !restart_policy::reboot_requested(memory, want);
    match seen.domain {
        Some(DomainState::Running) if stays => InstanceState::Running,
        Some(DomainState::Paused { .. }) if stays => InstanceState::Paused,
        Some(DomainState::Running | DomainState::ShuttingDown | DomainState::Paused { .. }) => {
            InstanceState::Stopping
        }
        Some(DomainState::Off(_) | DomainState::Crashed) | None => off_state(want, memory, s),
    }
}

fn released_state(handover: &Handover, memory: &Memory, s: &Situation<'_>) -> InstanceState {
    let stays = !handover.record.release.stop;
    let Some(seen) = s.seen else {
        // As for a kept instance, the last known state is the best guess.
        return match memory.run {
            RunMemory::Started if stays => InstanceState::Running,
            RunMemory::Started => InstanceState::Stopping,
            _ => InstanceState::Stopped,
        };
    };
    match seen.domain {
        Some(DomainState::Running) if stays => InstanceState::Running,
        Some(DomainState::Paused { .. }) if stays => InstanceState::Paused,
        Some(DomainState::Off(_) | DomainState::Crashed) | None => InstanceState::Stopped,
        Some(_) => InstanceState::Stopping,
    }
}

/// The fields that the guest gets at its next start. waifud reserves the larger size while there are any, so they are also
/// reported during a release, and while the hypervisor does not answer.
fn restart_needed(memory: &Memory, s: &Situation<'_>, nics: Option<&[NicStatus]>) -> Vec<String> {
    let want = match s.desired {
        DesiredState::Keep(want) => Some(&**want),
        DesiredState::Release(handover) => handover.instance.as_ref(),
        DesiredState::Destroy(_) | DesiredState::Receive(_) | DesiredState::LeaveAlone => None,
    };
    let may_run = s
        .seen
        .map_or(memory.run == RunMemory::Started, Observed::is_on);
    let mut fields = want
        .filter(|_| may_run)
        .map_or_else(Vec::new, |want| pending::restart_needed(memory, want));
    let mut nics = nics.iter().copied().flatten();
    if nics.any(|nic| nic.state == NicState::NextStart) {
        fields.push("nics".to_owned());
    }
    fields
}

fn off_state(want: &AgentInstance, memory: &Memory, s: &Situation<'_>) -> InstanceState {
    let lasting = s.failure.is_some_and(|failure| failure.lasting);
    let stays_off = !want.spec.run || !restart_policy::may_start(memory, want.spec.restart);
    // Retrying a failed step repeats the steps before it. The state stays that of the failed step.
    let step = s
        .failure
        .filter(|failure| planner::leads_to(s.step, failure.step))
        .map_or(s.step, |failure| failure.step);
    match step {
        _ if lasting => InstanceState::Failed,
        Step::Wait(Wait::LostDisk | Wait::ForeignDomain | Wait::NewerCopy | Wait::Restored) => {
            InstanceState::Failed
        }
        // An instance that ran before and stays off is stopped, even while its resources are being ensured.
        _ if stays_off && memory.run == RunMemory::Stopped => InstanceState::Stopped,
        Step::Idle | Step::Wait(Wait::Backoff | Wait::StartAllowed | Wait::Host) => {
            InstanceState::Stopped
        }
        Step::Start => InstanceState::Starting,
        _ => InstanceState::Preparing,
    }
}

fn reason(s: &Situation<'_>) -> Option<String> {
    if let Some(failure) = s.failure {
        return Some(failure.message.clone());
    }
    match s.step {
        Step::Wait(Wait::LostDisk) => {
            let disk = s.seen.and_then(|seen| seen.lost.as_ref());
            Some(format!(
                "disk {} was created earlier and is missing; is the pool's filesystem mounted?",
                disk.map_or("root", |name| name.as_str())
            ))
        }
        Step::Wait(Wait::Backoff) => Some(backoff(&s.record.memory, s.next_start)),
        Step::Wait(Wait::DiskSpace) => s.full_pool.as_ref().map_or_else(
            || Some(format!("waiting for {}", Wait::DiskSpace.text(s.node))),
            |pool| {
                Some(format!(
                    "pool {pool} is full: the guest could not write to its disk and continues when there is space"
                ))
            },
        ),
        Step::Wait(Wait::Shutdown) | Step::RequestShutdown if is_rebooting(s) => {
            Some("rebooting: the guest was asked to shut down".to_owned())
        }
        Step::Wait(wait) => Some(format!("waiting for {}", wait.text(s.node))),
        _ if matches!(s.desired, DesiredState::Release(_)) => {
            Some("waifud told this node to release the instance; this node does not start it again".to_owned())
        }
        _ => None,
    }
}

fn is_rebooting(s: &Situation<'_>) -> bool {
    matches!(s.desired, DesiredState::Keep(want) if want.spec.run && restart_policy::reboot_requested(&s.record.memory, want))
}

fn backoff(memory: &Memory, next: Option<Timestamp>) -> String {
    let what = match memory.stopped_by {
        Some(StoppedBy::Crash) => "it crashed",
        Some(StoppedBy::Guest) => "the guest powered itself off",
        _ => "it was stopped outside waifud",
    };
    let times = match memory.restarts {
        0 | 1 => String::new(),
        many => format!(", {many} times in a row"),
    };
    let when = next
        .and_then(|at| at.round(jiff::Unit::Second).ok())
        .map_or_else(|| "soon".to_owned(), |at| format!("at {at}"));
    format!("{what}{times}; the next start is attempted {when}")
}

fn step_status(s: &Situation<'_>) -> Option<StepStatus> {
    let step = s.failure.map_or(s.step, |failure| failure.step);
    let memory = &s.record.memory;
    if step == Step::WatchReady
        && (memory.boot.ready_by.is_some()
            || memory.boot.cloud_init.state == CloudInitState::Unknown)
    {
        // The result is known or cannot be known. Further probes only add details.
        return None;
    }
    Some(StepStatus {
        name: step.name()?.to_owned(),
        percent: s.percent,
        since: s.since,
        waiting_for: match (s.failure, step) {
            (Some(failure), _) => Some(failure.message.clone()),
            (None, Step::Wait(wait)) => Some(wait.text(s.node)),
            (None, Step::WatchReady) => Some(match &s.module {
                Some(module) => format!("cloud-init to finish ({module})"),
                None => "cloud-init to finish".to_owned(),
            }),
            _ => None,
        },
    })
}
