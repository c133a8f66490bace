//! Nics that are added to an existing instance or removed from it.
//!
//! A nic gets the lowest free number, which is part of its name and determines its port on the node. A removed one leaves the spec
//! at once, but keeps its number, its addresses and its network until the node reports that the guest does not have it any more.

use waifud_api::agent::InstanceReport;
use waifud_api::{CreateNic, Instance};
use waifud_store::{InstanceRow, LeaseRow, NodeRow, RemovedNicRow, StoreError, Taken, WriteTx};
use waifud_types::Name;
use waifud_types::event::Cause;
use waifud_types::node::feature;
use waifud_types::spec::NicSpec;

use super::new_spec::choose_macs;
use super::{IfMatch, moving};
use crate::instances::problems as instance_problems;
use crate::network::networks::unusable;
use crate::network::nics::{WantedNic, check_added};
use crate::network::{self, lease_number, nic_problems};
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

impl Control {
    /// Adds a nic to an instance. A running guest gets it at once, others at their next start.
    pub async fn add_nic(
        &self,
        name_or_id: &str,
        request: CreateNic,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        self.change_instance(name_or_id, if_match, move |control, tx, row| {
            let row = control.add_nic_in(tx, row, &request, &cause)?;
            Ok(control.instance_view(row))
        })
        .await
    }

    /// Removes a nic, named by its name or MAC address, from an instance. Repeating the request changes nothing until the nic
    /// is gone.
    pub async fn remove_nic(
        &self,
        name_or_id: &str,
        nic: &str,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        let nic = nic.to_owned();
        self.change_instance(name_or_id, if_match, move |control, tx, row| {
            let row = control.remove_nic_in(tx, row, &nic, &cause)?;
            Ok(control.instance_view(row))
        })
        .await
    }

    fn add_nic_in(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        request: &CreateNic,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let node = changeable(tx, &row)?;
        let wanted = check_added(&row.spec.nics, request)?;
        if wanted.vlan.is_some() {
            require_vlans(row.spec.nics.len(), node.as_ref())?;
        }
        let removed = tx.removed_nics(row.id)?;
        if let Some(before) = removed.iter().find(|before| is_same(before, &wanted)) {
            return self.keep_nic(tx, row, before, cause);
        }
        let index = row.spec.nics.len();
        // Its address on `default` is still in use.
        let blocks = |before: &&RemovedNicRow| {
            network::is_default(&wanted.network) && before.nic.network == wanted.network
        };
        if let Some(before) = removed.iter().find(blocks) {
            let (nic, network) = (&before.nic.name, &before.nic.network);
            return Err(nic_problems::still_being_removed(index, nic, network).into());
        }
        let mac = choose_macs(tx, self.entropy(), std::slice::from_ref(&wanted))?;
        let mac = mac.into_iter().next().ok_or_else(|| {
            ControlError::Inconsistent("no MAC address was chosen for a nic".to_owned())
        })?;
        let number = free_number(&row, &removed);
        row.spec.nics.push(NicSpec {
            name: name_of(number)?,
            network: wanted.network.clone(),
            mac,
            address: wanted.address.map(|address| address.ip),
            prefix_len: wanted.address.and_then(|address| address.prefix_len),
            gateway: None,
            vlan: wanted.vlan,
            allow_addresses: wanted.allow_addresses.clone(),
        });
        self.check_nic(tx, &row, index, node.as_ref())?;
        insert_lease(tx, &row, index)?;
        tx.use_network(&wanted.network, row.id)?;
        if let Some(node) = &node {
            assign_address(tx, &mut row, index, node)?;
        }
        let message = format!("nic eth{number} added on {}", wanted.network);
        self.store_nics(tx, row, message, cause)
    }

    /// Takes back the removal of a nic.
    fn keep_nic(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        before: &RemovedNicRow,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        tx.restore_nic(row.id, before.number)?;
        let nic = before.nic.clone();
        let message = format!(
            "the removal of nic {} on {} is canceled",
            nic.name, nic.network
        );
        // The first nic stays the first: it has number 0 and is never removed.
        row.spec.nics.push(nic);
        row.spec.nics.sort_by_key(NicSpec::number);
        self.store_nics(tx, row, message, cause)
    }

    /// Checks the nic at a position against the database, and against the node of the instance.
    fn check_nic(
        &self,
        tx: &WriteTx<'_>,
        row: &InstanceRow,
        index: usize,
        node: Option<&NodeRow>,
    ) -> Result<(), ControlError> {
        let mut spec = row.spec.clone();
        if let Some(node) = node {
            spec.placement.node = Some(node.name.clone());
        }
        let capacities = tx.node_capacities()?;
        let range = self.config().guest_range;
        network::check_from(tx, &spec, index, &capacities, range)?;
        let Some((node, nic)) = node.zip(row.spec.nics.get(index)) else {
            return Ok(());
        };
        let bridge = tx.network(nic.network.as_str())?.and_then(|row| row.bridge);
        let verdict = bridge.and_then(|bridge| unusable(&node.facts, &bridge, nic.vlan));
        match verdict {
            Some(why) => {
                let problem =
                    nic_problems::network_not_on_node(index, &nic.network, &node.name, &why);
                Err(problem.into())
            }
            None => Ok(()),
        }
    }

    fn remove_nic_in(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        wanted: &str,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let is_it = |nic: &NicSpec| {
            nic.name.as_str() == wanted
                || wanted
                    .parse()
                    .is_ok_and(|mac: waifud_types::MacAddr| mac == nic.mac)
        };
        let Some(position) = row.spec.nics.iter().position(is_it) else {
            let removed = tx.removed_nics(row.id)?;
            if removed.iter().any(|before| is_it(&before.nic)) {
                return Ok(row);
            }
            return Err(nic_problems::unknown_nic(&row.name, wanted).into());
        };
        let node = changeable(tx, &row)?;
        if position == 0 {
            let first = row.spec.nics.first().map(|nic| &nic.name);
            let first = first.unwrap_or(&row.name);
            return Err(nic_problems::first_nic(&row.name, first).into());
        }
        let nic = row.spec.nics.remove(position);
        let message = format!("nic {} on {} removed", nic.name, nic.network);
        let number = lease_number(position, &nic);
        let removed = RemovedNicRow {
            number,
            nic,
            removed_at: row.generation.next(),
        };
        tx.set_nic_removed(row.id, &removed)?;
        if node.is_none() {
            // No node has ever had it.
            free(tx, &row, &removed)?;
        }
        self.store_nics(tx, row, message, cause)
    }

    /// Stores the changed nics of an instance, with its documents, which describe them.
    fn store_nics(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        message: String,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        row.generation = row.generation.next();
        let event = self.instance_event("instance.updated", &row, cause, message);
        let revision = tx.emit(&event)?;
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        if has_left_home(tx, &row)? {
            row.home = None;
            tx.set_home(row.id, None, row.node.as_slice(), revision)?;
        }
        if let Some(node) = row.node
            && let Some(node) = tx.node(node)?
        {
            self.put_bundle(tx, &row, &node)?;
        }
        self.place_changed(tx, row, cause)
    }
}

/// The node of an instance whose nics can be changed now; `None` if it waits for one.
fn changeable(tx: &WriteTx<'_>, row: &InstanceRow) -> Result<Option<NodeRow>, ControlError> {
    if row.deleting {
        return Err(instance_problems::deleting(&row.name).into());
    }
    moving::require_not_moving(row)?;
    let node = match row.node {
        Some(node) => tx.node(node)?,
        None => None,
    };
    if let Some(node) = node.as_ref().filter(|node| !node.facts.has(feature::NICS)) {
        return Err(node_problems::agent_too_old(&node.name).into());
    }
    Ok(node)
}

/// Refuses a nic in a VLAN on a node whose agent would ignore that.
fn require_vlans(index: usize, node: Option<&NodeRow>) -> Result<(), ControlError> {
    match node.filter(|node| !node.facts.has(feature::VLANS)) {
        Some(node) => {
            let problem = node_problems::agent_too_old(&node.name);
            Err(problem.field(format!("spec.nics[{index}].vlan")).into())
        }
        None => Ok(()),
    }
}

/// Whether a request asks for the nic that is being removed: with its MAC address, or on `default`, where there is one at most.
fn is_same(before: &RemovedNicRow, wanted: &WantedNic) -> bool {
    let nic = &before.nic;
    let same_mac = match wanted.mac {
        Some(mac) => mac == nic.mac,
        None => network::is_default(&nic.network),
    };
    let same_address = wanted
        .address
        .is_none_or(|address| Some(address.ip) == nic.address);
    let allows = &wanted.allow_addresses;
    let same_further = allows.is_empty() || *allows == nic.allow_addresses;
    let same_network = (&nic.network, nic.vlan) == (&wanted.network, wanted.vlan);
    same_mac && same_address && same_further && same_network
}

/// The lowest number that no nic of the instance has, nor one that is being removed.
fn free_number(row: &InstanceRow, removed: &[RemovedNicRow]) -> usize {
    let has = |number: &usize| {
        row.spec.numbered_nics().any(|(other, _)| other == *number)
            || removed
                .iter()
                .any(|before| usize::try_from(before.number) == Ok(*number))
    };
    let most = row.spec.nics.len() + removed.len();
    (0..=most).find(|number| !has(number)).unwrap_or(most)
}

fn name_of(number: usize) -> Result<Name, ControlError> {
    format!("eth{number}")
        .parse()
        .map_err(|error: waifud_types::name::NameError| {
            ControlError::Inconsistent(error.to_string())
        })
}

fn insert_lease(tx: &mut WriteTx<'_>, row: &InstanceRow, index: usize) -> Result<(), ControlError> {
    let Some(nic) = row.spec.nics.get(index) else {
        return Ok(());
    };
    let number = lease_number(index, nic);
    let lease = LeaseRow {
        nic: number,
        mac: nic.mac,
        // Set afterwards, as for a nic whose address is chosen, so that names change with it.
        address: None,
    };
    tx.insert_lease(row.id, &lease)
        .map_err(|error| match error {
            StoreError::Taken(Taken::Mac) => nic_problems::added_mac_taken(index).into(),
            other => ControlError::from(other),
        })?;
    let Some(address) = nic.address else {
        return Ok(());
    };
    match tx.set_lease_address(row.id, number, address) {
        Err(StoreError::Taken(Taken::Address)) => {
            Err(network::address_taken(tx, index, nic)?.into())
        }
        other => Ok(other?),
    }
}

/// Assigns an address of the node to a new nic on `default`.
fn assign_address(
    tx: &mut WriteTx<'_>,
    row: &mut InstanceRow,
    index: usize,
    node: &NodeRow,
) -> Result<(), ControlError> {
    let new = row.spec.nics.get(index);
    let Some(nic) = new.filter(|nic| network::is_default(&nic.network) && nic.address.is_none())
    else {
        return Ok(());
    };
    let mut spec = row.spec.clone();
    // Its own ports are reserved on the node already.
    spec.publish.clear();
    match network::fit(tx, &spec, node)? {
        Ok(Some(address)) => Ok(network::set_default_address(
            tx,
            row.id,
            &mut row.spec,
            address,
        )?),
        Ok(None) => Ok(()),
        Err(obstacle) => Err(nic_problems::network_not_on_node(
            index,
            &nic.network,
            &node.name,
            &obstacle.verdict,
        )
        .into()),
    }
}

/// Frees the removed nics that the node does not have any more, according to its report about the instance. Returns whether
/// there were any.
pub(crate) fn free_removed(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
    report: &InstanceReport,
) -> Result<bool, ControlError> {
    // Agents of earlier versions do not report nics.
    let Some(has) = &report.nics else {
        return Ok(false);
    };
    let mut freed = false;
    for removed in tx.removed_nics(row.id)? {
        let knows = report.observed_generation >= removed.removed_at;
        if knows && !has.iter().any(|nic| nic.name == removed.nic.name) {
            free(tx, row, &removed)?;
            freed = true;
        }
    }
    Ok(freed)
}

/// Whether the instance has no nic on `default` any more, and had an address there that it had kept when it moved.
pub(crate) fn has_left_home(tx: &WriteTx<'_>, row: &InstanceRow) -> Result<bool, ControlError> {
    let on_default = |nic: &NicSpec| network::is_default(&nic.network);
    let removed = tx.removed_nics(row.id)?;
    Ok(row.home.is_some()
        && !row.spec.nics.iter().any(on_default)
        && !removed.iter().any(|removed| on_default(&removed.nic)))
}

/// Frees all removed nics of an instance whose node is given up.
pub(super) fn free_all_removed(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
) -> Result<(), ControlError> {
    for removed in tx.removed_nics(row.id)? {
        free(tx, row, &removed)?;
    }
    Ok(())
}

/// Frees the addresses of a removed nic, and its network if no other nic of the instance uses it.
fn free(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
    removed: &RemovedNicRow,
) -> Result<(), ControlError> {
    tx.remove_lease(row.id, removed.number)?;
    let network = &removed.nic.network;
    let others = tx.removed_nics(row.id)?;
    let mut others = others.iter().map(|other| &other.nic);
    let used = row.spec.nics.iter().any(|nic| nic.network == *network)
        || others.any(|nic| nic.network == *network);
    if !used {
        tx.leave_network(network, row.id)?;
    }
    Ok(())
}
