//! When to look at cloud-init in the guest, and keeping what was learned: *ready* is claimed only when proven, and for
//! the current boot only. What follows from what was seen is [`crate::guest::verdict`]'s.

use std::time::{Duration, Instant};

use waifud_types::Timestamp;
use waifud_types::status::{CloudInitStatus, ReadyBy};

use crate::backoff::Backoff;
use crate::control_link::record::Memory;
use crate::guest::boot_report::BootReport;
use crate::guest::metadata::Evidence;
use crate::guest::verdict::{Expects, Seen, Verdict, derive};

/// Looks after the end was reported, before that is taken for all that can be learned: the guest's own result says more.
const LOOKS_AFTER: u32 = 20;

/// What was heard from outside the guest's agent, as far as it makes a new look worthwhile: another boot, its end, its
/// call. How often a guest repeats itself is not among it.
type Heard = (Option<Timestamp>, bool, bool);

/// When to look at cloud-init again, and what was seen last. One per driver.
#[derive(Debug)]
pub(crate) struct Readiness {
    pause: Backoff,
    next: Option<Instant>,
    /// The guest may have booted anew: what is known may be of the boot before.
    stale: bool,
    /// Looks since the last news.
    looks: u32,
    heard: Heard,
    /// What its agent answered last.
    found: Option<(CloudInitStatus, Timestamp)>,
    /// How long a guest that can't report may stay silent.
    patience: Duration,
}

impl Readiness {
    /// Pauses between looks grow from `min` to `max`; after `patience`, a guest that can't report is told as unknown.
    pub fn new(min: Duration, max: Duration, patience: Duration) -> Self {
        Self {
            pause: Backoff::new(min, max),
            next: None,
            stale: true,
            looks: 0,
            heard: Heard::default(),
            found: None,
            patience,
        }
    }

    /// Looks at the next opportunity, whatever is known.
    pub fn look_again(&mut self) {
        self.stale = true;
        self.next = None;
        self.looks = 0;
        self.pause.reset();
    }

    /// An end or another boot that was told of is a reason to look, and to go on looking for as long as after any other.
    pub fn hear(&mut self, evidence: &Evidence) {
        let heard = (
            evidence.booted_again,
            evidence.report.finished.is_some(),
            evidence.phoned_home.is_some(),
        );
        if heard != self.heard {
            self.heard = heard;
            self.look_again();
        }
    }

    /// Whether there is nothing more to learn.
    pub fn is_settled(&self, memory: &Memory) -> bool {
        let by_agent = memory.ready_by == Some(ReadyBy::GuestAgent);
        !self.stale && memory.cloud_init.state.is_final() && (by_agent || self.looks >= LOOKS_AFTER)
    }

    /// How long until the next look; `None` when it is due.
    pub fn not_before(&self, now: Instant) -> Option<Duration> {
        self.next
            .map(|next| next.saturating_duration_since(now))
            .filter(|wait| !wait.is_zero())
    }

    /// A look is over; `None` where no agent answered. Returns the pause before the next, if one is needed.
    pub fn looked(&mut self, found: Option<CloudInitStatus>, now: Timestamp) -> Duration {
        self.stale = false;
        self.looks += 1;
        if found.as_ref().is_some_and(|it| !it.state.is_final()) {
            // It answers: the end may be near.
            self.pause.reset();
        }
        self.found = found.map(|status| (status, now));
        let pause = self.pause.pause();
        self.next = Some(Instant::now() + pause);
        pause
    }

    /// Writes down what follows from the last look and from what the metadata service saw.
    pub fn learn(
        &self,
        memory: &mut Memory,
        evidence: &Evidence,
        expects: Expects,
        now: Timestamp,
    ) {
        // After its own restart the agent is told of boots again that it knows.
        if evidence.booted_again > since(memory).max(memory.reported_boot) {
            boots_anew(memory, evidence.booted_again);
        }
        let begun = since(memory);
        let counts = |at: &Timestamp| begun.is_none_or(|begun| *at >= begun);
        if let Some((at, instance_id)) = &evidence.phoned_home
            && counts(at)
            // Once for each boot: it is written to disk, and a guest may call as often as it likes.
            && memory.phoned_home_at.is_none()
        {
            memory.phoned_home_at = Some(*at);
            memory.called_with = memory.documents;
            if memory.cloud_init.instance_id.is_none() {
                memory.cloud_init.instance_id.clone_from(instance_id);
            }
        }
        let nothing = BootReport::default();
        let of_this_boot = evidence.report.began.as_ref().is_some_and(counts);
        if of_this_boot {
            memory.reported_boot = evidence.report.began;
        }
        let found = self.found.as_ref().filter(|(_, at)| counts(at));
        let seen = Seen {
            agent: found.map(|(status, at)| (status, *at)),
            report: if of_this_boot {
                &evidence.report
            } else {
                &nothing
            },
            call: memory.phoned_home_at,
            asked: evidence.last.as_ref().is_some_and(|(_, _, at)| counts(at)),
            expects,
            since: begun,
            now,
            patience: self.patience,
        };
        let verdict = derive(&seen);
        if verdict.works && memory.ready_by.is_some() {
            // It was done and works again: it booted, and nothing told so.
            let ended = seen.report.finished.map(|(at, _)| at).max(seen.call);
            let after = ended.and_then(|at| at.checked_add(Duration::from_nanos(1)).ok());
            boots_anew(memory, after);
        }
        take(memory, verdict);
    }
}

/// When the current boot began.
pub(crate) fn since(memory: &Memory) -> Option<Timestamp> {
    memory.started_at.max(memory.booted_at)
}

/// What was proven is of an earlier boot.
pub(crate) fn boots_anew(memory: &mut Memory, at: Option<Timestamp>) {
    memory.booted_at = memory.booted_at.max(at);
    memory.phoned_home_at = None;
    memory.ready_by = None;
    memory.cloud_init = CloudInitStatus::default();
}

/// Silence proves nothing, and a lesser witness does not outdo a better one that spoke in the same boot.
fn take(memory: &mut Memory, verdict: Verdict) {
    let rank = |by: Option<ReadyBy>| match by {
        None => 0,
        Some(ReadyBy::PhoneHome) => 1,
        Some(ReadyBy::Reporter) => 2,
        Some(ReadyBy::GuestAgent) => 3,
    };
    if rank(verdict.ready_by) < rank(memory.ready_by) {
        return;
    }
    let before = std::mem::replace(&mut memory.cloud_init, verdict.cloud_init);
    memory.ready_by = verdict.ready_by;
    // The reporter names neither; what was learned of them in this boot is still so.
    let now = &mut memory.cloud_init;
    now.instance_id = now.instance_id.take().or(before.instance_id);
    now.datasource = now.datasource.take().or(before.datasource);
}
