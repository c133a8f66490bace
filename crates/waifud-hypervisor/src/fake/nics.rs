//! The nics of a running fake domain.

use std::collections::{BTreeMap, BTreeSet};

use waifud_types::{InstanceId, TapName};

use super::{FakeHypervisor, is_active};
use crate::{DomainEventKind, DomainNic, LiveNic};

/// The nics of one domain while it runs.
#[derive(Default)]
pub(super) struct FakeNics {
    live: BTreeMap<TapName, DomainNic>,
    /// Nics that the guest was asked to release.
    leaving: BTreeSet<TapName>,
    /// Whether the guest releases nics only when a test tells it to.
    holds: bool,
    /// Why no further nic can be added.
    refuses: Option<String>,
}

impl FakeNics {
    pub(super) fn started_with(&mut self, nics: &[DomainNic]) {
        let nics = nics.iter().map(|nic| (nic.tap.clone(), nic.clone()));
        self.live = nics.collect();
        self.leaving.clear();
    }

    pub(super) fn ensure(&mut self, wanted: &[DomainNic]) -> BTreeMap<TapName, LiveNic> {
        let other = |nic: &DomainNic| !wanted.contains(nic);
        let others = self.live.values().filter(|nic| other(nic));
        self.leaving = others.map(|nic| nic.tap.clone()).collect();
        if !self.holds {
            self.release();
        }
        let mut nics = BTreeMap::new();
        for nic in wanted {
            let state = match (self.live.get(&nic.tap), &self.refuses) {
                (Some(live), _) if live == nic => LiveNic::Attached,
                (Some(_), _) => LiveNic::Refused("the port has another nic".to_owned()),
                (None, Some(reason)) => LiveNic::Refused(reason.clone()),
                (None, None) => {
                    self.live.insert(nic.tap.clone(), nic.clone());
                    LiveNic::Attached
                }
            };
            nics.insert(nic.tap.clone(), state);
        }
        let leaving = self.leaving.iter();
        nics.extend(leaving.map(|tap| (tap.clone(), LiveNic::Leaving)));
        nics
    }

    fn release(&mut self) {
        for tap in std::mem::take(&mut self.leaving) {
            self.live.remove(&tap);
        }
    }
}

impl FakeHypervisor {
    /// The ports of a running domain's nics; empty if it is off.
    pub fn nics(&self, id: InstanceId) -> BTreeSet<TapName> {
        let state = self.state();
        let domain = state.domains.get(&id).filter(|d| is_active(d.state));
        domain.map_or_else(BTreeSet::new, |d| d.nics.live.keys().cloned().collect())
    }

    /// Sets whether the guest keeps nics that it was asked to release. Afterwards it releases those it was asked for.
    pub fn set_holds_nics(&self, id: InstanceId, holds: bool) {
        self.change(id, |domain| {
            domain.nics.holds = holds;
            if holds {
                return None;
            }
            domain.nics.release();
            Some(DomainEventKind::Changed)
        });
    }

    /// Sets why no nic can be added to the running domain; `None` if one can.
    pub fn set_refuses_nics(&self, id: InstanceId, reason: Option<&str>) {
        self.change(id, |domain| {
            domain.nics.refuses = reason.map(str::to_owned);
            None
        });
    }
}
