//! An instance's status, as it is reported: a pure function of what is wished, remembered, seen and being done.

use waifud_api::agent::{AgentInstance, InstanceReport};
use waifud_hypervisor::DomainState;
use waifud_types::status::{CloudInitState, Condition, HypervisorKind, StepStatus, StoppedBy};
use waifud_types::{Epoch, Generation, InstanceState, Name, Timestamp};

use crate::control_link::record::{DesiredState, InstanceRecord, Memory};
use crate::instance::pending;
use crate::instance::planner::{self, Observed, Step, Wait};
use crate::instance::restart_policy;

/// Trouble with a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// The step that failed.
    pub step: Step,
    /// Why, in a sentence.
    pub message: String,
    /// Whether trying again will not mend it by itself soon.
    pub lasting: bool,
}

/// Everything that a status is made of.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The record.
    pub record: &'a InstanceRecord,
    /// The wish.
    pub wish: &'a DesiredState,
    /// What was seen; null when the hypervisor could not be asked.
    pub seen: Option<&'a Observed>,
    /// What runs it.
    pub hypervisor: Option<HypervisorKind>,
    /// The step at work, or what the plan ends with.
    pub step: Step,
    /// When that began.
    pub since: Timestamp,
    /// How far it is.
    pub percent: Option<u8>,
    /// cloud-init's module at work.
    pub module: Option<String>,
    /// What failed last, if that is why nothing goes on.
    pub trouble: Option<&'a Trouble>,
    /// When the next start is tried, while a restart is put off.
    pub next_start: Option<Timestamp>,
    /// The pool that has no room, while that halts the guest.
    pub full: Option<Name>,
    /// Further conditions.
    pub conditions: Vec<Condition>,
}

/// What is said of an instance; `None` for what is in nobody's list.
pub fn report(s: Situation<'_>) -> Option<InstanceReport> {
    let memory = &s.record.memory;
    let (epoch, generation): (Epoch, Generation) = match s.wish {
        DesiredState::LeaveAlone => return None,
        DesiredState::Keep(want) => (want.epoch, want.generation),
        DesiredState::Destroy(order) => (
            order.tombstone.epoch,
            s.record
                .instance
                .as_ref()
                .map_or(Generation::FIRST, |instance| instance.generation),
        ),
    };
    let state = match s.wish {
        DesiredState::Keep(want) => kept_state(want, memory, &s),
        _ => InstanceState::Deleting,
    };
    let on = s.seen.is_some_and(Observed::is_on);
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
            .started_at
            .filter(|_| on || state == InstanceState::Running),
        ready: memory.ready_by.is_some() && (on || s.seen.is_none()),
        ready_by: memory.ready_by,
        addresses: Vec::new(),
        step: step_status(&s),
        restart_needed: match s.wish {
            DesiredState::Keep(want) if on => pending::restart_needed(memory, want),
            _ => Vec::new(),
        },
        cloud_init: memory.cloud_init.clone(),
        conditions: s.conditions,
        // The outbox adds it.
        evidence: None,
    })
}

fn kept_state(want: &AgentInstance, memory: &Memory, s: &Situation<'_>) -> InstanceState {
    let Some(seen) = s.seen else {
        // The hypervisor can't be asked. What was true is not known to have changed, and guests don't need it.
        return match memory.run {
            crate::control_link::record::RunMemory::Started => InstanceState::Running,
            crate::control_link::record::RunMemory::Stopped => InstanceState::Stopped,
            _ => InstanceState::Preparing,
        };
    };
    let stays = want.spec.run && !restart_policy::reboot_ordered(memory, want);
    match seen.domain {
        Some(DomainState::Running) if stays => InstanceState::Running,
        Some(DomainState::Paused { .. }) if stays => InstanceState::Paused,
        Some(DomainState::Running | DomainState::ShuttingDown | DomainState::Paused { .. }) => {
            InstanceState::Stopping
        }
        Some(DomainState::Off(_) | DomainState::Crashed) | None => off_state(want, memory, s),
    }
}

fn off_state(want: &AgentInstance, memory: &Memory, s: &Situation<'_>) -> InstanceState {
    let lasting = s.trouble.is_some_and(|trouble| trouble.lasting);
    let stays_off = !want.spec.run || !restart_policy::may_start(memory, want.spec.restart);
    // While something that failed is tried again, so are the steps before it: that is no other state.
    let step = s
        .trouble
        .filter(|trouble| planner::leads_to(s.step, trouble.step))
        .map_or(s.step, |trouble| trouble.step);
    match step {
        _ if lasting => InstanceState::Failed,
        Step::Wait(Wait::LostDisk | Wait::ForeignDomain | Wait::NewerCopy | Wait::Restored) => {
            InstanceState::Failed
        }
        // What ran before and stays off is off, whatever is tidied up around it.
        _ if stays_off && memory.run == crate::control_link::record::RunMemory::Stopped => {
            InstanceState::Stopped
        }
        Step::Idle | Step::Wait(Wait::Backoff | Wait::StartAllowed | Wait::Host) => {
            InstanceState::Stopped
        }
        Step::Start => InstanceState::Starting,
        _ => InstanceState::Preparing,
    }
}

fn reason(s: &Situation<'_>) -> Option<String> {
    if let Some(trouble) = s.trouble {
        return Some(trouble.message.clone());
    }
    match s.step {
        Step::Wait(Wait::LostDisk) => {
            let disk = s.seen.and_then(|seen| seen.lost.as_ref());
            Some(format!(
                "disk {} was made earlier and is missing; is the pool's filesystem mounted?",
                disk.map_or("root", |name| name.as_str())
            ))
        }
        Step::Wait(Wait::Backoff) => Some(backoff(&s.record.memory, s.next_start)),
        Step::Wait(Wait::DiskSpace) => s.full.as_ref().map_or_else(
            || Some(format!("waits for {}", Wait::DiskSpace.as_str())),
            |pool| {
                Some(format!(
                    "pool {pool} is full: the guest could not write to its disk; it goes on when there is room"
                ))
            },
        ),
        Step::Wait(Wait::Shutdown) | Step::RequestShutdown if is_rebooting(s) => {
            Some("it reboots: the guest was asked to shut down".to_owned())
        }
        Step::Wait(wait) => Some(format!("waits for {}", wait.as_str())),
        _ => None,
    }
}

fn is_rebooting(s: &Situation<'_>) -> bool {
    matches!(s.wish, DesiredState::Keep(want) if want.spec.run && restart_policy::reboot_ordered(&s.record.memory, want))
}

fn backoff(memory: &Memory, next: Option<Timestamp>) -> String {
    let what = match memory.stopped_by {
        Some(StoppedBy::Crash) => "it crashed",
        Some(StoppedBy::Guest) => "the guest powered itself off",
        _ => "something other than waifud stopped it",
    };
    let times = match memory.restarts {
        0 | 1 => String::new(),
        many => format!(", {many} times in a row"),
    };
    let when = next
        .and_then(|at| at.round(jiff::Unit::Second).ok())
        .map_or_else(|| "soon".to_owned(), |at| format!("at {at}"));
    format!("{what}{times}; the next start is tried {when}")
}

fn step_status(s: &Situation<'_>) -> Option<StepStatus> {
    let step = s.trouble.map_or(s.step, |trouble| trouble.step);
    let memory = &s.record.memory;
    if step == Step::WatchReady
        && (memory.ready_by.is_some() || memory.cloud_init.state == CloudInitState::Unknown)
    {
        // Looking goes on for what else there is to learn, and nobody waits for that.
        return None;
    }
    Some(StepStatus {
        name: step.name()?.to_owned(),
        percent: s.percent,
        since: s.since,
        waiting_for: match (s.trouble, step) {
            (Some(trouble), _) => Some(trouble.message.clone()),
            (None, Step::Wait(wait)) => Some(wait.as_str().to_owned()),
            (None, Step::WatchReady) => Some(match &s.module {
                Some(module) => format!("cloud-init to finish ({module})"),
                None => "cloud-init to finish".to_owned(),
            }),
            _ => None,
        },
    })
}
