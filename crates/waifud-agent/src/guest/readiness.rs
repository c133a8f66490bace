//! When to probe cloud-init in the guest, and recording the result: *ready* is claimed only when proven, and for the current
//! boot only. [`crate::guest::verdict`] derives the state from the observations.

use std::time::Duration;

use tokio::time::Instant;
use waifud_types::Timestamp;
use waifud_types::status::{CloudInitStatus, ReadyBy};

use crate::backoff::Backoff;
use crate::control_link::record::{BootMemory, Memory};
use crate::guest::boot_report::BootReport;
use crate::guest::console_end::ConsoleReport;
use crate::guest::evidence::Evidence;
use crate::guest::verdict::{Expects, Seen, Verdict, derive};

/// Probes after the end was reported. The guest's own result has more details, but may never become available.
const PROBES_AFTER_END: u32 = 20;

/// Evidence that makes a new probe worthwhile: another boot, the end of cloud-init, `phone_home`. Repetitions do not.
type Milestones = (Option<Timestamp>, bool, bool);

/// When to probe cloud-init again, and the last answer. One per driver.
#[derive(Debug)]
pub(crate) struct Readiness {
    pause: Backoff,
    next: Option<Instant>,
    /// The guest may have rebooted: what is known may belong to the previous boot.
    stale: bool,
    /// Probes since the last new evidence.
    probes: u32,
    milestones: Milestones,
    /// The last answer of the guest agent.
    found: Option<(CloudInitStatus, Timestamp)>,
    /// How long a guest without a reporter may stay silent before its state is unknown.
    patience: Duration,
}

impl Readiness {
    /// Pauses between probes grow from `min` to `max`. After `patience`, a guest without a reporter counts as unknown.
    pub fn new(min: Duration, max: Duration, patience: Duration) -> Self {
        Self {
            pause: Backoff::new(min, max),
            next: None,
            stale: true,
            probes: 0,
            milestones: Milestones::default(),
            found: None,
            patience,
        }
    }

    /// Probes at the next opportunity, whatever is known.
    pub fn probe_again(&mut self) {
        self.stale = true;
        self.next = None;
        self.probes = 0;
        self.pause.reset();
    }

    /// A reported end or another boot is a reason to probe again, and restarts the series of probes.
    pub fn update_evidence(&mut self, evidence: &Evidence) {
        let milestones = (
            evidence.booted_again,
            evidence.report.finished.is_some(),
            evidence.phoned_home.is_some(),
        );
        if milestones != self.milestones {
            self.milestones = milestones;
            self.probe_again();
        }
    }

    /// Whether nothing more can be learned.
    pub fn is_final(&self, memory: &Memory) -> bool {
        let by_agent = memory.boot.ready_by == Some(ReadyBy::GuestAgent);
        !self.stale
            && memory.boot.cloud_init.state.is_final()
            && (by_agent || self.probes >= PROBES_AFTER_END)
    }

    /// How long until the next probe; `None` if it is due.
    pub fn not_before(&self, now: Instant) -> Option<Duration> {
        self.next
            .map(|next| next.saturating_duration_since(now))
            .filter(|wait| !wait.is_zero())
    }

    /// Records a probe; `None` if no agent answered. Returns the pause before the next one.
    pub fn probed(&mut self, found: Option<CloudInitStatus>, now: Timestamp) -> Duration {
        self.stale = false;
        self.probes += 1;
        if found.as_ref().is_some_and(|it| !it.state.is_final()) {
            // The agent answers, so the end may be near.
            self.pause.reset();
        }
        self.found = found.map(|status| (status, now));
        let pause = self.pause.pause();
        self.next = Some(Instant::now() + pause);
        pause
    }

    /// Records what follows from the last probe and from the metadata service's observations.
    pub fn learn(
        &self,
        memory: &mut Memory,
        evidence: &Evidence,
        console: &ConsoleReport,
        expects: Expects,
        now: Timestamp,
    ) {
        // After a restart of the agent, metadatad repeats boots that are already recorded.
        if evidence.booted_again > since(memory).max(memory.reported_boot) {
            reset_for_boot(memory, evidence.booted_again);
        }
        let begun = since(memory);
        let is_current = |at: &Timestamp| begun.is_none_or(|begun| *at >= begun);
        if let Some((at, instance_id)) = &evidence.phoned_home
            && is_current(at)
            // Once per boot: it is written to disk, and a guest may phone home as often as it likes.
            && memory.boot.phoned_home_at.is_none()
        {
            memory.boot.phoned_home_at = Some(*at);
            memory.called_with = memory.documents;
            if memory.boot.cloud_init.instance_id.is_none() {
                memory.boot.cloud_init.instance_id.clone_from(instance_id);
            }
        }
        let nothing = BootReport::default();
        let no_console = ConsoleReport::default();
        let of_this_boot = evidence.report.began.as_ref().is_some_and(is_current);
        if of_this_boot {
            memory.reported_boot = evidence.report.began;
        }
        let found = self.found.as_ref().filter(|(_, at)| is_current(at));
        let seen = Seen {
            agent: found.map(|(status, at)| (status, *at)),
            report: if of_this_boot {
                &evidence.report
            } else {
                &nothing
            },
            console: if begun.is_some() && console.boot == begun {
                console
            } else {
                &no_console
            },
            call: memory.boot.phoned_home_at,
            asked: evidence
                .last
                .as_ref()
                .is_some_and(|(_, _, at)| is_current(at)),
            expects,
            since: begun,
            now,
            patience: self.patience,
        };
        let verdict = derive(&seen);
        if verdict.is_running && memory.boot.ready_by.is_some() {
            // cloud-init had finished and runs again: the guest rebooted without any other sign.
            let reported = seen.report.finished.map(|(at, _)| at);
            let ended = reported.max(seen.call).max(seen.console.finished);
            let after = ended.and_then(|at| at.checked_add(Duration::from_nanos(1)).ok());
            reset_for_boot(memory, after);
        }
        apply_verdict(memory, verdict);
    }
}

/// When the current boot began.
pub(crate) fn since(memory: &Memory) -> Option<Timestamp> {
    memory.start.started_at.max(memory.start.booted_at)
}

/// Discards readiness, which was proven for an earlier boot.
pub(crate) fn reset_for_boot(memory: &mut Memory, at: Option<Timestamp>) {
    memory.start.booted_at = memory.start.booted_at.max(at);
    memory.boot = BootMemory::default();
}

/// Applies a verdict, unless a more trusted source has already proven readiness in the same boot.
fn apply_verdict(memory: &mut Memory, verdict: Verdict) {
    let rank = |by: Option<ReadyBy>| match by {
        None => 0,
        Some(ReadyBy::PhoneHome | ReadyBy::Other) => 1,
        Some(ReadyBy::Console) => 2,
        Some(ReadyBy::Reporter) => 3,
        Some(ReadyBy::GuestAgent) => 4,
    };
    if rank(verdict.ready_by) < rank(memory.boot.ready_by) {
        return;
    }
    let before = std::mem::replace(&mut memory.boot.cloud_init, verdict.cloud_init);
    memory.boot.ready_by = verdict.ready_by;
    // The reporter sends neither of these. Values learned earlier in this boot stay valid.
    let now = &mut memory.boot.cloud_init;
    now.instance_id = now.instance_id.take().or(before.instance_id);
    now.datasource = now.datasource.take().or(before.datasource);
}
