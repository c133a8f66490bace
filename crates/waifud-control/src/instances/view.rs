//! An instance as the API shows it: its row, its current step and the last contact of its node.

use waifud_api::Instance;
use waifud_store::InstanceRow;
use waifud_types::status::{
    AddressFamily, AddressSource, InstanceAddress, InstanceStatus, StepStatus,
};
use waifud_types::{InstanceState, WaitReason};

use super::moving;
use super::progress::InstanceProgress;
use crate::Control;
use crate::nodes::contacts::NodeContacts;

impl Control {
    /// An instance as the API shows it: its row, its current step and the last contact of its node.
    pub(crate) fn instance_view(&self, row: InstanceRow) -> Instance {
        let mut status = status(&row, self.contacts(), self.instance_progress());
        let progress = self.move_progress();
        if let Some(moving) = &row.moving
            && !row.deleting
            && moving.state.is_between_owners()
        {
            status.state = InstanceState::Moving;
            status.last_state = None;
            status.ready = false;
            status.ready_by = None;
            status.set_wait(&moving::reason(moving, moving::problem(&row, progress)));
            let report = moving::report(&row, progress);
            status.step = report.map(|report| moving::step(moving, &report));
        }
        Instance {
            moving: moving::view(&row, progress),
            status,
            id: row.id,
            name: row.name,
            labels: row.labels,
            generation: row.generation,
            created_at: row.created_at,
            spec: row.spec,
        }
    }
}

fn status(
    row: &InstanceRow,
    contacts: &NodeContacts,
    progress: &InstanceProgress,
) -> InstanceStatus {
    let mut status = row.status.clone();
    status.node.clone_from(&row.owner.name);
    status.addresses = addresses(row);
    let contact = row
        .node
        .and_then(|node| contacts.load(node))
        .map(|n| n.last_contact);
    status.last_seen = status
        .observed_generation
        .and(if row.owner.reachable {
            contact
        } else {
            row.owner.last_contact
        })
        .or(status.last_seen);
    if row.deleting {
        status.state = InstanceState::Deleting;
        status.ready = false;
        status.ready_by = None;
        status.set_wait(&waiting_for_destruction(row));
    } else if !row.owner.reachable {
        status.last_state = Some(status.state);
        status.state = InstanceState::Unknown;
        status.ready = false;
        status.ready_by = None;
        status.set_wait(&WaitReason::NoContact {
            node: status.node.clone(),
            since: row.owner.last_contact,
        });
    }
    // The last step of an unreachable node may be over. The step that waits for readiness may end one report later than
    // the instance becomes ready.
    let over = |step: &StepStatus| status.ready && step.name == "ready";
    status.step = progress
        .step(row.id)
        .filter(|step| row.owner.reachable && !over(step));
    status
}

fn waiting_for_destruction(row: &InstanceRow) -> WaitReason {
    WaitReason::Destruction {
        node: row.owner.name.clone(),
        reachable: row.owner.reachable,
        problem: row.status.reason.clone(),
    }
}

/// Assigned addresses first, then other addresses that were observed. The primary address is one of the first nic, IPv4
/// before IPv6; while that nic has no address, there is no primary one.
fn addresses(row: &InstanceRow) -> Vec<InstanceAddress> {
    let nics = &row.spec.nics;
    let assigned = nics.iter().filter_map(|nic| {
        Some(InstanceAddress {
            address: nic.address?.into(),
            family: AddressFamily::Ipv4,
            network: nic.network.clone(),
            source: AddressSource::Assigned,
            primary: false,
        })
    });
    let mut all: Vec<_> = assigned.collect();
    for seen in &row.status.addresses {
        let known = all.iter().any(|known| known.address == seen.address);
        if !known && nics.iter().any(|nic| nic.network == seen.network) {
            all.push(InstanceAddress {
                primary: false,
                ..seen.clone()
            });
        }
    }
    let first = nics.first().map(|nic| &nic.network);
    let mut candidates: Vec<usize> = (0..all.len()).collect();
    candidates.sort_by_key(|&index| all.get(index).map(|a| a.family == AddressFamily::Ipv6));
    let primary = candidates
        .into_iter()
        .filter_map(|index| all.get(index).map(|address| (index, address)))
        .find(|(_, address)| Some(&address.network) == first)
        .map(|(index, _)| index);
    if let Some(address) = primary.and_then(|index| all.get_mut(index)) {
        address.primary = true;
    }
    all
}
