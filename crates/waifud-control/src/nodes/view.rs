//! A node as the API shows it: its row and its last reported load.

use waifud_api::{Node, Unmanaged};
use waifud_store::{NodeRow, PoolPromise};
use waifud_types::node::NodeState;

use crate::nodes::contacts::NodeContacts;

/// The node as the API shows it.
pub fn node(
    row: NodeRow,
    unmanaged: Vec<Unmanaged>,
    promises: &[PoolPromise],
    contacts: &NodeContacts,
) -> Node {
    let load = contacts.load(row.id);
    let mut pools = load
        .as_ref()
        .and_then(|load| load.pools.clone())
        .unwrap_or_else(|| row.facts.pools.clone());
    for pool in &mut pools {
        if let Some(promise) = promises
            .iter()
            .find(|p| p.node == row.id && p.pool == pool.name)
        {
            pool.promised_bytes = promise.promised;
        }
    }
    let state = if !row.reachable {
        NodeState::Unreachable
    } else if row.drain.is_some() {
        NodeState::Draining
    } else if row.cordoned {
        NodeState::Cordoned
    } else {
        NodeState::Ready
    };
    let last_contact = load.as_ref().map(|load| load.last_contact);
    Node {
        id: row.id,
        name: row.name,
        state,
        cordoned: row.cordoned,
        labels: row.facts.labels.into_iter().chain(row.labels).collect(),
        arch: Some(row.facts.arch),
        cpu_model: Some(row.facts.cpu_model),
        hypervisor: Some(row.facts.hypervisor),
        agent_version: Some(row.facts.agent_version),
        capacity: row.facts.capacity,
        promised: row.promised,
        used: load
            .as_ref()
            .and_then(|load| load.used)
            .unwrap_or(row.facts.used),
        subnets: vec![row.subnet],
        bridges: row.facts.bridges,
        unfit_bridges: row.facts.unfit_bridges,
        mesh_backend: row.facts.mesh_backend,
        pools,
        last_contact: if row.reachable {
            last_contact
        } else {
            row.last_contact
        },
        clock_skew_s: load.and_then(|load| load.clock_skew),
        conditions: row.facts.conditions,
        unmanaged,
        confirmed: row.confirmed,
    }
}
