//! From rows, and from what is live, to what the API shows.

use waifud_api::Instance;
use waifud_store::InstanceRow;
use waifud_types::InstanceState;
use waifud_types::status::{
    AddressFamily, AddressSource, InstanceAddress, InstanceStatus, StepStatus,
};

use crate::events::event_builder::to_the_second;
use crate::nodes::live::Live;

/// An instance as it is shown.
pub fn instance(row: InstanceRow, live: &Live) -> Instance {
    let status = status(&row, live);
    Instance {
        id: row.id,
        name: row.name,
        labels: row.labels,
        generation: row.generation,
        created_at: row.created_at,
        spec: row.spec,
        status,
    }
}

fn status(row: &InstanceRow, live: &Live) -> InstanceStatus {
    let mut status = row.status.clone();
    status.node.clone_from(&row.node_name);
    status.addresses = addresses(row);
    let contact = row
        .node
        .and_then(|node| live.node(node))
        .map(|n| n.last_contact);
    status.last_seen = status
        .observed_generation
        .and(if row.node_reachable {
            contact
        } else {
            row.node_last_contact
        })
        .or(status.last_seen);
    if row.deleting {
        status.state = InstanceState::Deleting;
        status.ready = false;
        status.ready_by = None;
        status.reason = Some(waiting_for_destruction(row));
    } else if !row.node_reachable {
        status.last_state = Some(status.state);
        status.state = InstanceState::Unknown;
        status.ready = false;
        status.ready_by = None;
        let node = status
            .node
            .as_ref()
            .map_or("its node", |name| name.as_str());
        status.reason = Some(match row.node_last_contact {
            Some(since) => format!(
                "{node} has not been heard of since {}",
                to_the_second(since)
            ),
            None => format!("{node} has not been heard of"),
        });
    }
    // What a silent node was at is not what it is at.
    // Nor is the watch for readiness, which may end a report later than what it watches for.
    let over = |step: &StepStatus| status.ready && step.name == "ready";
    status.step = live
        .step(row.id)
        .filter(|step| row.node_reachable && !over(step));
    status
}

fn waiting_for_destruction(row: &InstanceRow) -> String {
    let node = row
        .node_name
        .as_ref()
        .map_or("its node", |name| name.as_str());
    match &row.status.reason {
        _ if !row.node_reachable => {
            format!("waiting for {node}, which is off, to come back and destroy it")
        }
        None => format!("waiting for {node} to destroy it"),
        Some(trouble) => format!("waiting for {node} to destroy it: {trouble}"),
    }
}

/// Assigned addresses first, then those that were seen at the guest and are not among them. The primary one is the
/// first nic's, IPv4 before IPv6; while that has none, none is primary.
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
