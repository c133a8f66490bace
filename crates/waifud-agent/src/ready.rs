//! When to look at cloud-init, and what follows from what was seen: *ready* is claimed only when proven.
//!
//! The guest's own files, read by its agent, outrank everything. A phone-home proves readiness too, and comes a little
//! before cloud-init writes its result: looking goes on for a while after it, for the result says more.

use std::time::{Duration, Instant};

use waifud_types::Timestamp;
use waifud_types::status::{CloudInitState, CloudInitStatus, ReadyBy};

use crate::backoff::Backoff;
use crate::metadata::Evidence;
use crate::record::Memory;

/// Looks after a phone-home, before its word is taken for all that can be learned.
const LOOKS_AFTER_CALL: u32 = 20;

/// When to look at cloud-init again. One per driver.
#[derive(Debug)]
pub(crate) struct Readiness {
    pause: Backoff,
    next: Option<Instant>,
    /// The guest may have booted anew: what is known may be of the boot before.
    stale: bool,
    /// When the guest's agent last came or left: perhaps the guest booted then.
    boot: Option<Timestamp>,
    looks_after_call: u32,
}

impl Readiness {
    /// Pauses between looks grow from `min` to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            pause: Backoff::new(min, max),
            next: None,
            stale: true,
            boot: None,
            looks_after_call: 0,
        }
    }

    /// Looks at the next opportunity, whatever is known.
    pub fn look_again(&mut self) {
        self.stale = true;
        self.next = None;
        self.looks_after_call = 0;
        self.pause.reset();
    }

    /// The guest's agent came or left: what was proven before counts no more if the guest booted.
    pub fn agent_changed(&mut self, now: Timestamp) {
        self.boot = Some(now);
        self.look_again();
    }

    /// Whether there is nothing more to learn.
    pub fn is_settled(&self, memory: &Memory) -> bool {
        let by_call = memory.ready_by == Some(ReadyBy::PhoneHome);
        !self.stale
            && memory.cloud_init.state.is_final()
            && (!by_call || self.looks_after_call >= LOOKS_AFTER_CALL)
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
        self.looks_after_call += 1;
        if found.is_some_and(|status| !status.state.is_final()) {
            // Somebody answers: the end may be near.
            self.pause.reset();
        }
        let pause = self.pause.pause();
        self.next = Some(Instant::now() + pause);
        pause
    }

    /// What follows from what the guest says (null: nothing) and from what the metadata service saw.
    pub fn learn(&self, memory: &mut Memory, found: Option<&CloudInitStatus>, evidence: &Evidence) {
        let since = memory.started_at.max(self.boot);
        let counts = |at: &Timestamp| since.is_none_or(|since| *at >= since);
        if let Some((at, instance_id)) = &evidence.phoned_home
            && counts(at)
            // Once for each run: it is written to disk, and a guest may call as often as it likes.
            && !memory.phoned_home_at.as_ref().is_some_and(counts)
        {
            memory.phoned_home_at = Some(*at);
            if !memory.cloud_init.state.is_final() {
                memory.cloud_init.instance_id.clone_from(instance_id);
            }
        }
        let called = memory.phoned_home_at.as_ref().is_some_and(counts);
        match found {
            Some(found) if found.state.is_final() => {
                memory.cloud_init = found.clone();
                memory.ready_by = Some(ReadyBy::GuestAgent);
            }
            Some(found) if !called => {
                memory.cloud_init = found.clone();
                memory.ready_by = None;
            }
            // Silence, or files that are not written yet: what was proven stays proven.
            _ if called && memory.ready_by.is_none() => {
                memory.ready_by = Some(ReadyBy::PhoneHome);
                memory.cloud_init.state = CloudInitState::Done;
            }
            _ => {}
        }
        let asked = evidence.last.as_ref().is_some_and(|(_, _, at)| counts(at));
        if memory.cloud_init.state == CloudInitState::Pending && asked {
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

    fn call(at: &str) -> Evidence {
        Evidence {
            phoned_home: Some((at.parse().unwrap(), Some("i-1".to_owned()))),
            ..Evidence::default()
        }
    }

    fn readiness() -> Readiness {
        Readiness::new(Duration::from_secs(1), Duration::from_secs(1))
    }

    #[test]
    fn the_guests_own_word_outranks_a_phone_call() {
        let ready = readiness();
        let mut memory = Memory::default();
        let evidence = call("2026-01-01T00:00:00Z");
        ready.learn(&mut memory, None, &evidence);
        assert_eq!(memory.ready_by, Some(ReadyBy::PhoneHome));
        assert_eq!(memory.cloud_init.instance_id.as_deref(), Some("i-1"));
        // Its result is not written yet: no reason to doubt the call.
        ready.learn(
            &mut memory,
            Some(&found(CloudInitState::Running)),
            &evidence,
        );
        assert_eq!(memory.ready_by, Some(ReadyBy::PhoneHome));
        ready.learn(&mut memory, Some(&found(CloudInitState::Error)), &evidence);
        assert_eq!(memory.ready_by, Some(ReadyBy::GuestAgent));
        ready.learn(&mut memory, None, &evidence);
        assert_eq!(memory.cloud_init.state, CloudInitState::Error);
    }

    #[test]
    fn only_the_first_call_of_a_run_is_written_down() {
        let ready = readiness();
        let mut memory = Memory::default();
        ready.learn(&mut memory, None, &call("2026-01-01T00:00:00Z"));
        let before = memory.clone();
        ready.learn(&mut memory, None, &call("2026-01-01T00:00:01Z"));
        assert_eq!(memory, before);
    }

    #[test]
    fn looking_goes_on_for_a_while_after_a_call() {
        let mut ready = readiness();
        let mut memory = Memory::default();
        ready.learn(&mut memory, None, &call("2026-01-01T00:00:00Z"));
        ready.looked(None);
        assert!(!ready.is_settled(&memory));
        for _ in 0..LOOKS_AFTER_CALL {
            ready.looked(None);
        }
        assert!(ready.is_settled(&memory));
    }

    #[test]
    fn a_phone_call_of_an_earlier_run_or_boot_proves_nothing() {
        let mut memory = Memory {
            started_at: Some("2026-01-02T00:00:00Z".parse().unwrap()),
            ..Memory::default()
        };
        let unchanged = memory.clone();
        readiness().learn(&mut memory, None, &call("2026-01-01T00:00:00Z"));
        assert_eq!(memory, unchanged);

        let mut ready = readiness();
        let evidence = call("2026-01-03T00:00:00Z");
        ready.learn(&mut memory, None, &evidence);
        assert!(memory.ready_by.is_some());
        ready.agent_changed("2026-01-04T00:00:00Z".parse().unwrap());
        ready.learn(
            &mut memory,
            Some(&found(CloudInitState::Running)),
            &evidence,
        );
        assert_eq!(memory.ready_by, None, "it boots anew");
    }

    #[test]
    fn a_boot_anew_takes_ready_back_until_its_end() {
        let ready = readiness();
        let mut memory = Memory::default();
        let none = Evidence::default();
        ready.learn(&mut memory, Some(&found(CloudInitState::Done)), &none);
        assert!(memory.ready_by.is_some());
        ready.learn(&mut memory, None, &none);
        assert!(memory.ready_by.is_some(), "silence proves nothing");
        ready.learn(&mut memory, Some(&found(CloudInitState::Running)), &none);
        assert_eq!(memory.ready_by, None);
    }
}
