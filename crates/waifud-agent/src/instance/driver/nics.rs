//! Nics that are added to a running guest or removed from it, and the ports of removed ones.

use waifud_api::agent::AgentInstance;

use super::Driver;
use crate::control_link::table::View;
use crate::failpoints;
use crate::instance::domain_spec;
use crate::instance::failure::Failure;
use crate::instance::nics::EnsuredNics;
use crate::instance::planner::Observed;

impl Driver {
    /// Makes the running guest have exactly its nics. The rules of their ports are applied already; a nic that the guest has
    /// released is recorded before its port is removed.
    pub(super) async fn ensure_nics(&mut self, want: &AgentInstance) -> Result<(), Failure> {
        let shared = &self.shared;
        let record = shared.table.view(self.id).map(|view| view.record);
        if !record.is_some_and(|record| shared.network.in_force(&record)) {
            return Err(Failure::passing(
                "the firewall rules of its ports are not applied yet",
            ));
        }
        let wanted = domain_spec::nics(shared, want)?;
        let ensure = shared.hypervisor.ensure_nics(self.id, &wanted);
        let live = failpoints::NICS.around(ensure).await?;
        let ensured = EnsuredNics::new(want, live, self.nics.as_ref());
        shared.table.remember(self.id, |memory| {
            for removed in &mut memory.removed_nics {
                removed.released |= !ensured.has_port(&removed.tap(want.id));
            }
        })?;
        self.nics = Some(ensured);
        Ok(())
    }

    /// Applies the ports, and removes those of nics that the guest does not have any more. A guest that is off and is defined
    /// from the present spec has none of the removed ones.
    pub(super) async fn ensure_ports(&self, view: &View, seen: &Observed) -> Result<(), Failure> {
        let (table, network) = (&self.shared.table, &self.shared.network);
        if !view.record.memory.removed_nics.is_empty() {
            if !seen.is_on() {
                // Nics that were removed since this view are not released: the definition may still have them.
                let known = &view.record.memory.removed_nics;
                table.remember(self.id, |memory| {
                    let removed = memory.removed_nics.iter_mut();
                    for one in removed.filter(|one| known.iter().any(|it| it.nic == one.nic)) {
                        one.released = true;
                    }
                })?;
            }
            network.remove_ports(table).await?;
            table.remember(self.id, |memory| {
                memory.removed_nics.retain(|removed| !removed.released);
            })?;
        }
        Ok(network.ensure(table, self.id).await?)
    }
}
