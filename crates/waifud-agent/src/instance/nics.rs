//! The nics of a guest compared with its spec: pure functions over the record and what was ensured.

use std::collections::{BTreeMap, BTreeSet};

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::LiveNic;
use waifud_types::spec::NicSpec;
use waifud_types::status::{Condition, NicState, NicStatus};
use waifud_types::{TapName, Timestamp};

use crate::control_link::record::{Memory, RemovedNic};

/// The nics of a running guest, as this process last ensured them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EnsuredNics {
    /// The nics of the spec that they were ensured for.
    spec: Vec<NicSpec>,
    live: BTreeMap<TapName, LiveNic>,
    /// Ports of nics that the guest has and was asked to release. It may do so even if the removal was taken back.
    asked: BTreeSet<TapName>,
}

impl EnsuredNics {
    /// `before` is what was ensured before, since the guest was started.
    pub(crate) fn new(
        want: &AgentInstance,
        live: BTreeMap<TapName, LiveNic>,
        before: Option<&Self>,
    ) -> Self {
        let was_asked = |tap: &TapName| before.is_some_and(|before| before.asked.contains(tap));
        let asked = live.iter().filter(|(tap, nic)| match nic {
            LiveNic::Leaving => true,
            LiveNic::Attached => was_asked(tap),
            LiveNic::Refused(_) => false,
        });
        Self {
            spec: want.spec.nics.clone(),
            asked: asked.map(|(tap, _)| tap.clone()).collect(),
            live,
        }
    }

    /// The nics of a guest that was started from a definition with this spec.
    pub(crate) fn of_start(want: &AgentInstance) -> Self {
        let nics = want.spec.numbered_nics();
        let live = nics.map(|(number, _)| (TapName::of(want.id, number), LiveNic::Attached));
        Self::new(want, live.collect(), None)
    }

    /// Whether nothing is left to do for this spec.
    pub(crate) fn are_final(&self, want: &AgentInstance) -> bool {
        let mut live = self.live.values();
        self.spec == want.spec.nics
            && live.all(|nic| *nic == LiveNic::Attached)
            && self.asked.is_empty()
    }

    /// Whether the guest had a nic at this port.
    pub(crate) fn has_port(&self, tap: &TapName) -> bool {
        match self.live.get(tap) {
            Some(LiveNic::Attached | LiveNic::Leaving) => true,
            Some(LiveNic::Refused(_)) | None => false,
        }
    }
}

/// Records the nics that the change from `old` to `new` removes, and forgets those that it brings back, and those whose
/// number another nic gets: the port is that nic's. waifud gives a number to another nic while the guest still has a removed
/// one only if its database was restored.
///
/// The documents describe the nics, but a guest that has read them needs no restart for that.
pub(crate) fn record_change(memory: &mut Memory, old: &AgentInstance, new: &AgentInstance) {
    let same_user_data = old.spec.user_data == new.spec.user_data && old.epoch == new.epoch;
    let is_current = memory.documents == Some(old.bundle.digest);
    if old.spec.nics != new.spec.nics && same_user_data && is_current {
        memory.documents = Some(new.bundle.digest);
    }
    let is_wanted = |nic: &NicSpec| {
        let mut nics = new.spec.nics.iter();
        nics.any(|other| other.name == nic.name && other.mac == nic.mac)
    };
    let is_taken = |number: usize| new.spec.numbered_nics().any(|(taken, _)| taken == number);
    memory
        .removed_nics
        .retain(|one| !is_wanted(&one.nic) && !is_taken(one.number));
    let nics = old.spec.numbered_nics();
    for (number, nic) in nics.filter(|(number, nic)| !is_wanted(nic) && !is_taken(*number)) {
        memory.removed_nics.retain(|one| one.nic.name != nic.name);
        memory.removed_nics.push(RemovedNic {
            number,
            bridge: old.bridges.get(&nic.network).cloned(),
            nic: nic.clone(),
            released: false,
        });
    }
}

/// The nics for a report; `None` if they are unknown. `is_on` is `None` if the hypervisor does not answer.
pub(crate) fn report(
    want: &AgentInstance,
    memory: &Memory,
    is_on: Option<bool>,
    ensured: Option<&EnsuredNics>,
) -> Option<Vec<NicStatus>> {
    let live = if is_on? { Some(&ensured?.live) } else { None };
    let nics = want.spec.numbered_nics().map(|(number, nic)| {
        let (state, reason) = match live {
            None => (NicState::Off, None),
            Some(live) => match live.get(&TapName::of(want.id, number)) {
                Some(LiveNic::Attached) => (NicState::Attached, None),
                Some(LiveNic::Refused(reason)) => (NicState::NextStart, Some(reason.clone())),
                Some(LiveNic::Leaving) | None => (NicState::Adding, None),
            },
        };
        status(nic, state, reason)
    });
    let removed = memory.removed_nics.iter().map(|removed| {
        let tap = removed.tap(want.id);
        let leaving = live.and_then(|live| live.get(&tap)) == Some(&LiveNic::Leaving);
        let reason = leaving.then(|| {
            "the guest has not released it yet; otherwise it is removed when the guest is off"
                .to_owned()
        });
        status(&removed.nic, NicState::Removing, reason)
    });
    Some(nics.chain(removed).collect())
}

/// Set while a nic waits for something that may not come by itself.
pub(crate) fn condition(nics: &[NicStatus], since: Timestamp) -> Option<Condition> {
    let (nic, reason) = nics
        .iter()
        .find_map(|nic| Some((nic, nic.reason.as_ref()?)))?;
    let message = match nic.state {
        NicState::NextStart => format!(
            "nic {} is added at the next start, because the running guest cannot get it: {reason}",
            nic.name
        ),
        _ => format!("nic {} is still being removed: {reason}", nic.name),
    };
    let kind = nic.state.as_str();
    Some(crate::condition::condition(
        "nics", false, kind, message, since,
    ))
}

fn status(nic: &NicSpec, state: NicState, reason: Option<String>) -> NicStatus {
    NicStatus {
        name: nic.name.clone(),
        network: nic.network.clone(),
        mac: nic.mac,
        state,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use NicState::{Adding, Attached, NextStart, Off, Removing};

    use super::*;
    use crate::fake::sample_instance;

    /// An instance with nics of these numbers.
    fn having(numbers: &[u8]) -> AgentInstance {
        let mut instance = sample_instance("web");
        instance.id = "0198c0de-0000-7000-8000-00000000abcd".parse().unwrap();
        let first = instance.spec.nics[0].clone();
        let nic = |number: &u8| NicSpec {
            name: format!("eth{number}").parse().unwrap(),
            mac: waifud_types::MacAddr::of_guest([0, 0, *number]),
            ..first.clone()
        };
        instance.spec.nics = numbers.iter().map(nic).collect();
        instance
    }

    fn removed(memory: &Memory) -> Vec<&str> {
        let nics = memory.removed_nics.iter();
        nics.map(|removed| removed.nic.name.as_str()).collect()
    }

    fn states(nics: &[NicStatus]) -> Vec<(&str, NicState)> {
        nics.iter()
            .map(|nic| (nic.name.as_str(), nic.state))
            .collect()
    }

    #[test]
    fn removed_nics_are_remembered_until_they_are_released_or_come_back() {
        let mut memory = Memory::default();
        record_change(&mut memory, &having(&[0, 1, 2]), &having(&[0]));
        assert_eq!(removed(&memory), ["eth1", "eth2"]);
        record_change(&mut memory, &having(&[0]), &having(&[0, 2, 3]));
        assert_eq!(removed(&memory), ["eth1"]);
        record_change(&mut memory, &having(&[0, 2, 3]), &having(&[0, 2, 3]));
        assert_eq!(removed(&memory), ["eth1"], "the same instance again");
    }

    #[test]
    fn the_port_of_a_removed_nic_may_be_that_of_another_nic() {
        // A restored database contains neither of the nics 1 and 2, so the next one has the number 1.
        let mut other = having(&[0, 1]);
        other.spec.nics[1].mac = waifud_types::MacAddr::of_guest([0, 0, 9]);
        let mut memory = Memory::default();
        record_change(&mut memory, &having(&[0, 1, 2]), &other);
        assert_eq!(removed(&memory), ["eth2"]);
        record_change(&mut memory, &having(&[0, 1]), &having(&[0]));
        record_change(&mut memory, &having(&[0]), &other);
        assert_eq!(removed(&memory), ["eth2"]);
    }

    #[test]
    fn documents_that_differ_in_the_nics_only_need_no_restart() {
        let (before, mut after) = (having(&[0]), having(&[0, 1]));
        let digest = |byte: &str| format!("sha256:{}", byte.repeat(64)).parse().ok();
        after.bundle.digest = digest("b").unwrap();
        let mut memory = Memory {
            documents: Some(before.bundle.digest),
            ..Memory::default()
        };
        record_change(&mut memory, &before, &after);
        assert_eq!(memory.documents, Some(after.bundle.digest));
        let mut edited = before.clone();
        edited.bundle.digest = digest("c").unwrap();
        record_change(&mut memory, &after.clone(), &edited);
        assert_eq!(memory.documents, Some(edited.bundle.digest));
        memory.documents = digest("d");
        record_change(&mut memory, &before, &after);
        assert_eq!(
            memory.documents,
            digest("d"),
            "the guest has read older ones"
        );
    }

    #[test]
    fn nics_of_a_running_guest_are_reported_as_the_hypervisor_has_them() {
        let (before, want) = (having(&[0, 1]), having(&[0, 2, 3]));
        let mut memory = Memory::default();
        record_change(&mut memory, &before, &want);
        let ensured = EnsuredNics::of_start(&before);
        assert!(ensured.are_final(&before) && !ensured.are_final(&want));
        let nics = report(&want, &memory, Some(true), Some(&ensured)).unwrap();
        let expected = [
            ("eth0", Attached),
            ("eth2", Adding),
            ("eth3", Adding),
            ("eth1", Removing),
        ];
        assert_eq!(states(&nics), expected);
        assert!(nics.iter().all(|nic| nic.reason.is_none()));
        assert_eq!(condition(&nics, Timestamp::UNIX_EPOCH), None);

        let tap = |number| TapName::of(want.id, number);
        let live = [
            (tap(0), LiveNic::Attached),
            (tap(1), LiveNic::Leaving),
            (tap(2), LiveNic::Attached),
            (tap(3), LiveNic::Refused("no port is free".to_owned())),
        ];
        let ensured = EnsuredNics::new(&want, live.into(), None);
        assert!(!ensured.are_final(&want));
        // The guest was asked to release eth1, and may still do so.
        let attached = EnsuredNics::of_start(&before).live;
        let kept = EnsuredNics::new(&before, attached.clone(), Some(&ensured));
        assert!(!kept.are_final(&before));
        assert!(EnsuredNics::new(&before, attached, None).are_final(&before));
        assert!(
            ensured.has_port(&tap(1)) && !ensured.has_port(&tap(3)) && !ensured.has_port(&tap(4))
        );
        let nics = report(&want, &memory, Some(true), Some(&ensured)).unwrap();
        let expected = [
            ("eth0", Attached),
            ("eth2", Attached),
            ("eth3", NextStart),
            ("eth1", Removing),
        ];
        assert_eq!(states(&nics), expected);
        assert_eq!(nics[2].reason.as_deref(), Some("no port is free"));
        assert!(nics[3].reason.is_some());
        let condition = condition(&nics, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            (condition.ok, condition.reason.as_str()),
            (false, "next-start")
        );
        assert!(
            condition
                .message
                .ends_with("cannot get it: no port is free")
        );

        let off = report(&want, &memory, Some(false), None).unwrap();
        assert_eq!(off[0].state, Off);
        assert_eq!(off[3].state, Removing, "its port is still there");
        assert_eq!(report(&want, &memory, Some(true), None), None);
        assert_eq!(report(&want, &memory, None, Some(&ensured)), None);
    }
}
