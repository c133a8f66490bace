//! When to look at cloud-init, and what follows from what was seen: *ready* is claimed only when proven.

use std::time::{Duration, Instant};

use waifud_types::status::{CloudInitState, CloudInitStatus, ReadyBy};

use crate::backoff::Backoff;
use crate::metadata::Evidence;
use crate::record::Memory;

/// When to look at cloud-init again. One per driver.
#[derive(Debug)]
pub(crate) struct Readiness {
    pause: Backoff,
    next: Option<Instant>,
    /// The guest may have booted anew: what is known may be of the boot before.
    stale: bool,
}

impl Readiness {
    /// Pauses between looks grow from `min` to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            pause: Backoff::new(min, max),
            next: None,
            stale: true,
        }
    }

    /// Looks at the next opportunity, whatever is known.
    pub fn look_again(&mut self) {
        self.stale = true;
        self.next = None;
        self.pause.reset();
    }

    /// Whether a look is due although cloud-init was at its end.
    pub fn wants_look(&self) -> bool {
        self.stale
    }

    /// How long until the next look; `None` when it is due.
    pub fn not_before(&self, now: Instant) -> Option<Duration> {
        self.next
            .map(|next| next.saturating_duration_since(now))
            .filter(|wait| !wait.is_zero())
    }

    /// A look is over. Returns the pause before the next, if one is needed.
    pub fn looked(&mut self, found: Option<&CloudInitStatus>) -> Duration {
        self.stale = false;
        let pause = self.pause.pause();
        let progressing = found.is_some_and(|status| !status.state.is_final());
        if progressing {
            // Somebody answers: the end may be near.
            self.pause.reset();
        }
        self.next = Some(Instant::now() + pause);
        pause
    }

    /// What the guest's own files say outranks what was known.
    pub fn from_guest(memory: &mut Memory, found: Option<&CloudInitStatus>) {
        let Some(found) = found else {
            return;
        };
        if found.state == CloudInitState::Pending && memory.ready_by == Some(ReadyBy::PhoneHome) {
            // It phoned home, and leaves no files that an agent can read.
            return;
        }
        memory.cloud_init = found.clone();
        memory.ready_by = found.state.is_final().then_some(ReadyBy::GuestAgent);
    }

    /// What the metadata service saw, where the guest itself says nothing.
    pub fn from_evidence(memory: &mut Memory, evidence: &Evidence) {
        if memory.cloud_init.state.is_final() {
            return;
        }
        let this_run = |at: &waifud_types::Timestamp| memory.started_at.is_none_or(|s| *at >= s);
        if let Some((at, instance_id)) = &evidence.phoned_home
            && this_run(at)
        {
            memory.ready_by = Some(ReadyBy::PhoneHome);
            memory.cloud_init.state = CloudInitState::Done;
            memory.cloud_init.instance_id.clone_from(instance_id);
        } else if memory.cloud_init.state == CloudInitState::Pending
            && evidence
                .last
                .as_ref()
                .is_some_and(|(_, _, at)| this_run(at))
        {
            memory.cloud_init.state = CloudInitState::Running;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(state: CloudInitState) -> CloudInitStatus {
        CloudInitStatus {
            state,
            ..CloudInitStatus::default()
        }
    }

    #[test]
    fn the_guests_own_word_outranks_a_phone_call() {
        let mut memory = Memory::default();
        let evidence = Evidence {
            phoned_home: Some((waifud_types::Timestamp::UNIX_EPOCH, Some("i-1".to_owned()))),
            ..Evidence::default()
        };
        Readiness::from_evidence(&mut memory, &evidence);
        assert_eq!(memory.ready_by, Some(ReadyBy::PhoneHome));
        Readiness::from_guest(&mut memory, Some(&found(CloudInitState::Error)));
        assert_eq!(memory.ready_by, Some(ReadyBy::GuestAgent));
        Readiness::from_evidence(&mut memory, &evidence);
        assert_eq!(memory.cloud_init.state, CloudInitState::Error);
    }

    #[test]
    fn a_phone_call_of_an_earlier_run_proves_nothing() {
        let mut memory = Memory {
            started_at: Some("2026-01-02T00:00:00Z".parse().unwrap()),
            ..Memory::default()
        };
        let evidence = Evidence {
            phoned_home: Some(("2026-01-01T00:00:00Z".parse().unwrap(), None)),
            ..Evidence::default()
        };
        Readiness::from_evidence(&mut memory, &evidence);
        assert_eq!(
            memory,
            Memory {
                started_at: memory.started_at,
                ..Memory::default()
            }
        );
    }

    #[test]
    fn a_boot_anew_takes_ready_back_until_its_end() {
        let mut memory = Memory::default();
        Readiness::from_guest(&mut memory, Some(&found(CloudInitState::Done)));
        assert!(memory.ready_by.is_some());
        Readiness::from_guest(&mut memory, None);
        assert!(
            memory.ready_by.is_some(),
            "silence proves nothing either way"
        );
        Readiness::from_guest(&mut memory, Some(&found(CloudInitState::Running)));
        assert_eq!(memory.ready_by, None);
    }
}
