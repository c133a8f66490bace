//! What this process has already ensured for the present spec, so that a pass does not repeat it.

use waifud_api::agent::AgentInstance;
use waifud_types::template::Datasource;

use super::Driver;
use crate::control_link::record::DesiredState;
use crate::instance::datasource::{self, Choice, Reach, Seeded};
use crate::instance::observe::Ensured;
use crate::instance::rescue;
use crate::network::identity::identity;

impl Driver {
    pub(super) fn ensured(&mut self, desired: &DesiredState) -> Ensured {
        self.choice = None;
        let DesiredState::Keep(want) = desired else {
            self.prepared = None;
            self.defined = None;
            self.seeded = Seeded::Unknown;
            self.nics = None;
            return Ensured::default();
        };
        let choice = self.choice(want);
        let by_disk = choice.datasource == Datasource::Cidata;
        let same = self.prepared.as_ref().is_some_and(|(was, _)| {
            was.spec.disks == want.spec.disks
                && was.spec.image == want.spec.image
                && was.rescue_image == want.rescue_image
        });
        if !same {
            self.prepared = None;
            self.defined = None;
        }
        let defined = self.defined.as_ref().is_some_and(|spec| {
            spec.epoch == want.epoch
                && spec.name == want.name
                && spec.cpus == want.spec.cpus
                && spec.memory == want.spec.memory_bytes
                && spec.firmware == rescue::firmware(want)
                && spec.datasource == choice.datasource
                && self
                    .prepared
                    .as_ref()
                    .is_some_and(|(was, _)| was.spec.nics == want.spec.nics)
        });
        Ensured {
            volumes: self.prepared.is_some(),
            defined,
            seed: self.seeded == Seeded::wanted(want, by_disk),
            by_disk,
            nics: self.nics.as_ref().is_some_and(|nics| nics.are_final(want)),
        }
    }

    /// How the guest finds its documents at the next start. The choice stays the same within a pass.
    pub(super) fn choice(&mut self, want: &AgentInstance) -> Choice {
        let shared = &self.shared;
        *self.choice.get_or_insert_with(|| {
            let address = identity(want, &shared.memory(want.id));
            let reach = match (address, shared.metadata.unreachable_for()) {
                (None, _) => Reach::NoNetwork,
                (Some(_), Some(long)) => Reach::Unreachable(long),
                (Some(_), None) => Reach::Served,
            };
            let patience = shared.settings.timing.metadata_patience;
            datasource::choose(rescue::datasource(want), reach, patience)
        })
    }
}
