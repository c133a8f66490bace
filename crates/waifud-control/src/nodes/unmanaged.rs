//! Unmanaged objects on nodes: an administrator adopts or deletes them; waifud does neither on its own.
//!
//! A node reports each unmanaged instance with its record: the spec and the sealed documents that waifud once sent. Adopting
//! restores the spec, address, user-data and keys while the guest keeps running.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use waifud_api::agent::{AgentInstance, Tombstone, Unmanaged};
use waifud_api::{AdoptInstance, Instance, Node};
use waifud_store::{
    ImageRow, ImageTraits, InstanceRow, LeaseRow, NewInstance, NodeRow, PlacementRow, ReadTx,
    StoreError, StoredBundle, StoredVerdicts, Taken, WriteTx,
};
use waifud_types::event::Cause;
use waifud_types::ownership::Ownership;
use waifud_types::status::InstanceStatus;
use waifud_types::{Epoch, InstanceId, Name, WaitReason};

use super::list::find_node;
use crate::events::event_builder::{self, EventExt};
use crate::instances::handover::require_newest;
use crate::instances::problems as instance_problems;
use crate::network;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, problems};

impl Control {
    /// Adopts an unmanaged instance as it is on its node.
    pub async fn adopt(
        &self,
        node: &str,
        instance: &str,
        request: AdoptInstance,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        let (node, instance) = (node.to_owned(), instance.to_owned());
        let name = request
            .name
            .map(|text| crate::instances::validate::instance_name(&text))
            .transpose()?;
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let (row, found) = find_on_node(tx, &node, &instance)?;
                let adoption = Adoption::of(&found, name)?;
                control.adopt_in(tx, &row, adoption, &cause)
            })
            .await
    }

    fn adopt_in(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        adoption: Adoption,
        cause: &Cause,
    ) -> Result<Instance, ControlError> {
        let lost = tx.instance(adoption.record.id)?;
        if lost.as_ref().is_some_and(|row| !is_lost(row)) {
            return Err(node_problems::already_managed(&adoption.name).into());
        }
        let record = &adoption.record;
        if tx.tombstone_epoch(record.id, node.id)?.is_some() {
            return Err(instance_problems::deleting(&adoption.name).into());
        }
        require_newest(tx, record.id, record.epoch, &adoption.name)?;
        let epoch = adopted_epoch(tx, &adoption, lost.as_ref())?;
        let generation = match &lost {
            Some(row) if row.generation >= record.generation => row.generation.next(),
            _ => record.generation,
        };
        crate::instances::validate::given_spec(&record.spec)
            .map_err(|part| node_problems::invalid_record(&adoption.name, part))?;
        require_networks(tx, &adoption)?;
        let mut spec = record.spec.clone();
        // It boots from its own disk next: the rescue image may be unknown here.
        spec.rescue = None;
        spec.protected |= lost.as_ref().is_some_and(|row| row.spec.protected);
        spec.user_data = adoption
            .user_data
            .as_ref()
            .and_then(crate::instances::validate::recorded_user_data_facts);
        let mut status = InstanceStatus::pending(None);
        status.set_wait(&WaitReason::NodePreparing {
            node: node.name.clone(),
        });
        status.node = Some(node.name.clone());
        // The node has the image. Whether waifud has its file is checked when it is needed.
        tx.insert_image(&ImageRow {
            digest: spec.image,
            size: record.image_size_bytes,
            virtual_size: record.image_virtual_size_bytes,
            created_at: self.now(),
        })?;
        let event = self
            .event(
                "instance.adopted",
                event_builder::instance(record.id, &adoption.name),
                cause,
                format!("it was an unmanaged instance on {}", node.name),
            )
            .generation(generation)
            .details(serde_json::json!({ "node": node.name }));
        let revision = tx.emit(&event)?;
        let new = NewInstance {
            id: record.id,
            name: adoption.name.clone(),
            labels: lost
                .as_ref()
                .map(|row| row.labels.clone())
                .unwrap_or_default(),
            spec: spec.clone(),
            status: status.clone(),
            traits: ImageTraits {
                arch: node.facts.arch.clone(),
                datasource: record.datasource,
                firmware: record.firmware,
            },
            ssh_keys: adoption.ssh_keys,
            cloud_id: adoption.cloud_id,
            user_data: adoption.user_data,
            at: lost
                .as_ref()
                .map_or_else(|| self.now(), |row| row.created_at),
        };
        if lost.is_some() {
            // Its machine has returned: the copy there replaces what is left of it here.
            tx.remove_instance(new.id)?;
        }
        tx.insert_instance(&new, revision)
            .map_err(|error| match error {
                StoreError::Taken(Taken::InstanceName) => {
                    node_problems::adopted_name_taken(&adoption.name, record.id).into()
                }
                other => ControlError::from(other),
            })?;
        for (position, spec) in spec.nics.iter().enumerate() {
            let lease = LeaseRow {
                nic: network::lease_number(position, spec),
                mac: spec.mac,
                address: spec.address,
            };
            tx.insert_lease(record.id, &lease)
                .map_err(|error| match error {
                    StoreError::Taken(taken) => {
                        node_problems::adopt_conflict(&adoption.name, &taken.to_string()).into()
                    }
                    other => ControlError::from(other),
                })?;
            tx.use_network(&spec.network, record.id)?;
        }
        tx.set_adopted(record.id, generation, epoch)?;
        let placement = PlacementRow {
            instance: record.id,
            node: node.id,
            spec: &spec,
            status: &status,
            verdicts: &StoredVerdicts::new(&[])?,
        };
        tx.place(&placement, revision)?;
        // It kept its address when it moved to the node.
        if let Some(home) = record.home.filter(|home| *home != node.subnet) {
            tx.set_home(record.id, Some(home), &[node.id], revision)?;
        }
        tx.put_bundle(record.id, &adoption.bundle, self.now())?;
        let row = tx.instance(record.id)?.ok_or_else(|| {
            ControlError::Inconsistent("an adopted instance is missing".to_owned())
        })?;
        crate::network::reserve_ports(tx, &row, &spec.publish)?;
        Ok(self.instance_view(row))
    }

    /// Orders the deletion of an unmanaged instance, including its disks.
    pub async fn delete_unmanaged(
        &self,
        node: &str,
        instance: &str,
        cause: Cause,
    ) -> Result<(), ControlError> {
        let (node, instance) = (node.to_owned(), instance.to_owned());
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let (row, found) = find_on_node(tx, &node, &instance)?;
                let id = found.instance;
                let name = shown_name(&found)?;
                if tx.part_in(id, row.id)?.is_some() {
                    return Err(node_problems::copy_is_managed(&name, &row.name).into());
                }
                // Only the copy that the node reports, not a later one.
                let epoch = found.record.as_ref().map_or(Epoch(1), |r| r.epoch);
                if tx.tombstone_epoch(id, row.id)? >= Some(epoch) {
                    // A repeated request: the deletion is already ordered.
                    return Ok(());
                }
                let event = control.event(
                    "instance.deleting",
                    event_builder::instance(id, &name),
                    &cause,
                    format!("{} was told to destroy this unmanaged instance", row.name),
                );
                let revision = tx.emit(&event)?;
                let tombstone = Tombstone {
                    instance: id,
                    name,
                    epoch,
                };
                tx.put_tombstone(row.id, &tombstone, control.now(), revision)?;
                Ok(())
            })
            .await
    }

    /// Records an administrator's confirmation that the restored database is correct for a node, which then deletes instances
    /// again.
    pub async fn confirm_node(&self, node: &str, cause: Cause) -> Result<Node, ControlError> {
        let wanted = node.to_owned();
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let row = find_node(tx, &wanted)?;
                if row.confirmed {
                    return Ok::<_, ControlError>(());
                }
                let revision = tx.emit(&control.event(
                    "node.confirmed",
                    event_builder::node(row.id, &row.name),
                    &cause,
                    "the restored database is confirmed: the node executes deletions again and creates missing \
                     ones",
                ))?;
                tx.confirm_node(row.id, revision)?;
                if let Some(row) = tx.node(row.id)? {
                    let unmanaged = tx.unmanaged_on(row.id)?;
                    control.release_older_copies(tx, &row, &unmanaged, &cause)?;
                    control.give_back(tx, &cause)?;
                }
                Ok(())
            })
            .await?;
        self.node(node).await
    }
}

/// The checked data of an adoption.
struct Adoption {
    name: Name,
    running: bool,
    record: AgentInstance,
    bundle: StoredBundle,
    cloud_id: String,
    ssh_keys: Vec<String>,
    user_data: Option<waifud_types::Secret<String>>,
}

impl Adoption {
    fn of(found: &Unmanaged, name: Option<Name>) -> Result<Self, ControlError> {
        let old_name = shown_name(found)?;
        if name.is_none() {
            // A name from a node's record was not validated here.
            crate::instances::validate::instance_name(old_name.as_str())?;
        }
        let unknown = || node_problems::not_adoptable(&old_name);
        let record = found.record.as_deref().ok_or_else(unknown)?.clone();
        let ciphertext = found
            .bundle
            .as_ref()
            .and_then(|text| STANDARD.decode(text).ok())
            .ok_or_else(unknown)?;
        let documents =
            waifud_cloudinit::open(&ciphertext, record.bundle.digest, &record.bundle.key)
                .map_err(ControlError::Seal)?;
        Ok(Self {
            name: name.unwrap_or_else(|| record.name.clone()),
            running: found.running,
            cloud_id: documents.instance_id().to_owned(),
            ssh_keys: documents.ssh_keys(),
            user_data: documents
                .user_data()
                .map(|text| waifud_types::Secret::new(text.to_owned())),
            bundle: StoredBundle {
                digest: record.bundle.digest,
                key: record.bundle.key.clone(),
                ciphertext,
            },
            record,
        })
    }
}

/// The former name, or the id if the name is unknown.
fn shown_name(found: &Unmanaged) -> Result<Name, ControlError> {
    let known = found.record.as_ref().map(|record| record.name.clone());
    if let Some(name) = known.or_else(|| found.name.as_deref().and_then(|name| name.parse().ok())) {
        return Ok(name);
    }
    found
        .instance
        .to_string()
        .parse()
        .map_err(|error: waifud_types::name::NameError| {
            ControlError::Inconsistent(error.to_string())
        })
}

/// Whether no node has the instance: its node was removed, or it waited for one in a backup that was restored.
fn is_lost(row: &InstanceRow) -> bool {
    !row.deleting && (row.lost_node.is_some() || row.node.is_none())
}

/// The epoch of an adopted copy. Usually its own: an older backup that contains the instance may be restored later, and has
/// this epoch, too. A node ignores the epoch of a copy that it has released, so a copy that is off gets the next one, and
/// so does one of an instance that has had another epoch since.
fn adopted_epoch(
    tx: &ReadTx<'_>,
    adoption: &Adoption,
    lost: Option<&InstanceRow>,
) -> Result<Epoch, ControlError> {
    let own = adoption.record.epoch;
    if lost.is_none() && adoption.running {
        return Ok(own);
    }
    let ownership = Ownership {
        epoch: lost.map_or(own, |row| row.epoch.max(own)),
        floor: tx.epoch_floor()?,
        parts: Vec::new(),
    };
    Ok(ownership.next_epoch())
}

/// Refuses an adoption if a network of the instance is missing or has another bridge, as after a restore.
fn require_networks(tx: &WriteTx<'_>, adoption: &Adoption) -> Result<(), ControlError> {
    for nic in &adoption.record.spec.nics {
        let on_node = adoption.record.bridges.get(&nic.network);
        let here = tx.network(nic.network.as_str())?;
        if here.as_ref().map(|row| row.bridge.as_ref()) != Some(on_node) {
            return Err(node_problems::adopt_network_mismatch(
                &adoption.name,
                adoption.record.id,
                &nic.network,
                on_node.map(String::as_str),
                here.is_some(),
            )
            .into());
        }
    }
    Ok(())
}

/// A node, and an unmanaged instance on it.
fn find_on_node(
    tx: &ReadTx<'_>,
    node: &str,
    instance: &str,
) -> Result<(NodeRow, Unmanaged), ControlError> {
    let row = find_node(tx, node)?;
    let found = find_unmanaged(&tx.unmanaged_on(row.id)?, instance, &row.name)?.clone();
    Ok((row, found))
}

/// The entry of an instance by id or former name; one with a record if there is one.
fn find_unmanaged<'a>(
    unmanaged: &'a [Unmanaged],
    wanted: &str,
    node: &Name,
) -> Result<&'a Unmanaged, ControlError> {
    let id = wanted.parse::<InstanceId>().ok();
    let named = |entry: &&Unmanaged| match id {
        Some(id) => entry.instance == id,
        None => {
            entry.name.as_deref() == Some(wanted)
                || entry
                    .record
                    .as_ref()
                    .is_some_and(|record| record.name.as_str() == wanted)
        }
    };
    let mut found: Vec<&Unmanaged> = unmanaged.iter().filter(named).collect();
    found.sort_by_key(|entry| entry.record.is_none());
    let Some(first) = found.first() else {
        return Err(problems::not_found("unmanaged instance", wanted).into());
    };
    if found.iter().any(|other| other.instance != first.instance) {
        return Err(node_problems::ambiguous_unmanaged(wanted, node).into());
    }
    Ok(first)
}

/// The entry as the API shows it, without the record, which contains a key.
pub fn shown(tx: &ReadTx<'_>, entry: Unmanaged) -> Result<waifud_api::Unmanaged, StoreError> {
    // An older copy of an instance that is managed elsewhere is not adopted.
    let is_free = tx.instance(entry.instance)?.as_ref().is_none_or(is_lost);
    Ok(waifud_api::Unmanaged {
        adoptable: is_free && entry.record.is_some() && entry.bundle.is_some(),
        kind: entry.kind,
        instance: entry.instance,
        name: entry
            .name
            .or_else(|| entry.record.map(|record| record.name.to_string())),
        volume: entry.volume,
        running: entry.running,
        addresses: entry.addresses,
    })
}
