//! Instances: spec, status and node. One row for each instance that exists, including those being deleted.

use ipnet::Ipv4Net;
use rusqlite::{Row, named_params};
use waifud_kit::planted_bugs::Bug;
use waifud_types::spec::InstanceSpec;
use waifud_types::status::InstanceStatus;
use waifud_types::template::Datasource;
use waifud_types::{Epoch, Generation, InstanceId, Name, NodeId, Revision, Secret, Timestamp};

use crate::codec::{
    count, id16, instance_id, json, maybe_name, maybe_node_id, maybe_time, name, node16, time,
    to_i64, to_json, to_word, word,
};
use crate::error::taken;
use crate::moves::maybe_move;
use crate::nodes::maybe_net;
use crate::{
    ImageTraits, Labels, MoveRow, ReadTx, StoreError, StoredVerdicts, Taken, Topic, WriteTx,
    waiting,
};

/// An instance to create.
#[derive(Clone, PartialEq, Debug)]
pub struct NewInstance {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: Name,
    /// Its labels.
    pub labels: Labels,
    /// The desired state.
    pub spec: InstanceSpec,
    /// The initial status.
    pub status: InstanceStatus,
    /// What its image needs.
    pub traits: ImageTraits,
    /// Public keys.
    pub ssh_keys: Vec<String>,
    /// The instance-id that cloud-init is given.
    pub cloud_id: String,
    /// The user-data.
    pub user_data: Option<Secret<String>>,
    /// The time of creation.
    pub at: Timestamp,
}

/// A stored instance, and whether its node is reachable.
#[derive(Clone, PartialEq, Debug)]
pub struct InstanceRow {
    /// Its id.
    pub id: InstanceId,
    /// Its name.
    pub name: Name,
    /// Its labels.
    pub labels: Labels,
    /// The number of changes of the spec.
    pub generation: Generation,
    /// The number of changes of the owner.
    pub epoch: Epoch,
    /// When it was created.
    pub created_at: Timestamp,
    /// The desired state.
    pub spec: InstanceSpec,
    /// The last reported status.
    pub status: InstanceStatus,
    /// The owner; absent until the instance is placed.
    pub node: Option<NodeId>,
    /// The former name of the node that was removed with the disks of the instance. The instance is not placed until a user
    /// recreates it.
    pub lost_node: Option<Name>,
    /// The subnet of its address on `default`, if it is not that of its node.
    pub home: Option<Ipv4Net>,
    /// What is known of the owner.
    pub owner: Owner,
    /// The move to another node, while it lasts.
    pub moving: Option<MoveRow>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Why the node was chosen, or why no node was.
    pub placement: StoredVerdicts,
    /// The architecture that it needs.
    pub arch: String,
    /// How the guest finds its documents.
    pub datasource: Datasource,
    /// The instance-id that cloud-init is given.
    pub cloud_id: String,
}

/// The node that owns an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Its current name. The name in the status is the one at the time of placement.
    pub name: Option<Name>,
    /// Whether it is reachable; true until the instance is placed.
    pub reachable: bool,
    /// The last contact with it, if it is unreachable.
    pub last_contact: Option<Timestamp>,
}

pub(crate) const SELECT: &str = "SELECT i.*, n.name AS node_name, n.reachable, n.last_contact,
          v.source AS move_source, coalesce(vs.name, v.source_name) AS move_source_name,
          v.target AS move_target, coalesce(vt.name, v.target_name) AS move_target_name,
          v.state AS move_state, v.received AS move_received, v.was_on AS move_was_on, v.began_at AS move_began_at,
          v.new_address AS move_new_address
   FROM instances i LEFT JOIN nodes n ON n.id = i.node
   LEFT JOIN moves v ON v.instance = i.id
   LEFT JOIN nodes vs ON vs.id = v.source LEFT JOIN nodes vt ON vt.id = v.target";

impl ReadTx<'_> {
    /// One instance by id.
    pub fn instance(&self, id: InstanceId) -> Result<Option<InstanceRow>, StoreError> {
        self.first(&format!("{SELECT} WHERE i.id = ?1"), [id16(&id)], instance)
    }

    /// One instance by name.
    pub fn instance_named(&self, wanted: &str) -> Result<Option<InstanceRow>, StoreError> {
        self.first(&format!("{SELECT} WHERE i.name = ?1"), [wanted], instance)
    }

    /// One instance by name or by id. Names cannot look like ids.
    pub fn find_instance(&self, name_or_id: &str) -> Result<Option<InstanceRow>, StoreError> {
        if let Some(row) = self.instance_named(name_or_id)? {
            return Ok(Some(row));
        }
        match name_or_id.parse() {
            Ok(id) => self.instance(id),
            Err(_) => Ok(None),
        }
    }

    /// Every instance of a node.
    pub fn instances_on(&self, node: NodeId) -> Result<Vec<InstanceId>, StoreError> {
        self.all(
            "SELECT id FROM instances WHERE node = ?1",
            [node16(&node)],
            |row| instance_id(row, "id"),
        )
    }

    /// The public keys of an instance.
    pub fn ssh_keys(&self, id: InstanceId) -> Result<Vec<String>, StoreError> {
        self.conn
            .prepare_cached("SELECT ssh_keys FROM instances WHERE id = ?1")?
            .query_and_then([id16(&id)], |row| json(row, "ssh_keys"))?
            .next()
            .unwrap_or_else(|| Ok(Vec::new()))
    }

    /// The user-data of an instance.
    pub fn user_data(&self, id: InstanceId) -> Result<Option<Secret<String>>, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT text FROM user_data WHERE instance = ?1")?
            .query_map([id16(&id)], |row| row.get(0).map(Secret::new))?
            .next()
            .transpose()?)
    }
}

impl WriteTx<'_> {
    /// Adds an instance that is not placed yet. Fails with `Taken` if its name is in use.
    pub fn insert_instance(
        &mut self,
        new: &NewInstance,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO instances (id, name, generation, epoch, created_at, template, image, arch, datasource,
                                        firmware, state, labels, spec, status, placement, ssh_keys, cloud_id,
                                        slice_revision, wait_class, spread_group,
                                        firewall_peers)
                 VALUES (:id, :name, 1, 1, :at, :template, :image, :arch, :datasource, :firmware, :state, :labels,
                         :spec, :status, '[]', :ssh_keys, :cloud_id, :revision, :class, :group, :peers)",
            )?
            .execute(named_params! {
                ":id": id16(&new.id),
                ":name": new.name.as_str(),
                ":at": new.at.as_microsecond(),
                ":template": new.spec.template.as_str(),
                ":image": new.spec.image.bytes(),
                ":arch": new.traits.arch,
                ":datasource": to_word("a datasource", &new.traits.datasource)?,
                ":firmware": to_word("a firmware", &new.traits.firmware)?,
                ":state": new.status.state.as_str(),
                ":labels": to_json("labels", &new.labels)?,
                ":spec": to_json("a spec", &new.spec)?,
                ":status": to_json("a status", &new.status)?,
                ":ssh_keys": to_json("keys", &new.ssh_keys)?,
                ":cloud_id": new.cloud_id,
                ":revision": to_i64(revision.number),
                ":class": waiting::class(&new.spec, &new.traits.arch)?,
                ":group": group(&new.spec),
                ":peers": has_peers(&new.spec),
            })
            .map_err(|e| taken(e, &[("instances.name", Taken::InstanceName)]))?;
        self.index_labels(new.id, &new.labels)?;
        if let Some(text) = &new.user_data {
            self.set_user_data(new.id, text)?;
        }
        self.touch(Topic::Instance(new.id));
        Ok(())
    }

    /// Sets the generation and the epoch of an adopted instance to those of its copy on the node.
    pub fn set_adopted(
        &mut self,
        id: InstanceId,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET generation = ?2, epoch = ?3 WHERE id = ?1")?
            .execute((id16(&id), to_i64(generation.0), to_i64(epoch.0)))?;
        self.conn
            .prepare_cached(
                "UPDATE ownership SET epoch = ?2 WHERE instance = ?1 AND role = 'owner'",
            )?
            .execute((id16(&id), to_i64(epoch.0)))?;
        self.touch_instance(id)
    }

    /// Replaces the user-data's text.
    pub fn set_user_data(
        &mut self,
        id: InstanceId,
        text: &Secret<String>,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO user_data (instance, text) VALUES (?1, ?2)")?
            .execute((id16(&id), text.expose()))?;
        Ok(())
    }

    /// Replaces the labels. The node is not notified, because it does not use them; firewalls of other instances may.
    pub fn set_labels(&mut self, id: InstanceId, labels: &Labels) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET labels = ?2 WHERE id = ?1")?
            .execute((id16(&id), to_json("labels", labels)?))?;
        self.conn
            .prepare_cached("DELETE FROM instance_labels WHERE instance = ?1")?
            .execute([id16(&id)])?;
        self.index_labels(id, labels)?;
        self.touch(Topic::Instance(id));
        self.touch(Topic::Names);
        Ok(())
    }

    fn index_labels(&self, id: InstanceId, labels: &Labels) -> Result<(), StoreError> {
        let mut label = self.conn.prepare_cached(
            "INSERT INTO instance_labels (key, value, instance) VALUES (?1, ?2, ?3)",
        )?;
        for (key, value) in labels {
            label.execute((key, value, id16(&id)))?;
        }
        Ok(())
    }

    /// Sets the instance-id of cloud-init. It takes effect when the documents are rendered again.
    pub fn set_cloud_id(&mut self, id: InstanceId, cloud_id: &str) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET cloud_id = ?2 WHERE id = ?1")?
            .execute((id16(&id), cloud_id))?;
        Ok(())
    }

    /// Replaces the spec and notifies the node.
    pub fn set_spec(
        &mut self,
        id: InstanceId,
        spec: &InstanceSpec,
        generation: Generation,
        revision: Revision,
    ) -> Result<(), StoreError> {
        let arch: String = self
            .conn
            .prepare_cached("SELECT arch FROM instances WHERE id = ?1")?
            .query_row([id16(&id)], |row| row.get(0))?;
        self.conn
            .prepare_cached(
                "UPDATE instances SET spec = ?2, generation = ?3, slice_revision = ?4, rescue_image = ?5,
                        wait_class = ?6, spread_group = ?7, firewall_peers = ?8 WHERE id = ?1",
            )?
            .execute((
                id16(&id),
                to_json("a spec", spec)?,
                to_i64(generation.0),
                to_i64(revision.number),
                spec.rescue.as_ref().map(|rescue| rescue.image.bytes()),
                waiting::class(spec, &arch)?,
                group(spec),
                has_peers(spec),
            ))?;
        self.touch_instance(id)
    }

    /// Replaces the status. The node is not notified, because it reported it.
    pub fn set_status(
        &mut self,
        id: InstanceId,
        status: &InstanceStatus,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET status = ?2, state = ?3 WHERE id = ?1")?
            .execute((
                id16(&id),
                to_json("a status", status)?,
                status.state.as_str(),
            ))?;
        self.touch(Topic::Instance(id));
        Ok(())
    }

    /// Records that the disks of the instance were on a node that was removed, or, with `None`, that it is placed again.
    pub fn set_lost(&mut self, id: InstanceId, node: Option<&Name>) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET lost_node = ?2 WHERE id = ?1")?
            .execute((id16(&id), node.map(Name::as_str)))?;
        self.touch(Topic::Instance(id));
        Ok(())
    }

    /// Sets the subnet of the instance's address, if it is not that of its node. The peers of `nodes`, at which the address was or
    /// is now, change.
    pub fn set_home(
        &mut self,
        id: InstanceId,
        home: Option<Ipv4Net>,
        nodes: &[NodeId],
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET home = ?2 WHERE id = ?1")?
            .execute((id16(&id), home.map(|net| net.to_string())))?;
        for node in nodes {
            self.peer_changed(*node, revision)?;
        }
        Ok(())
    }

    /// Marks the instance as being deleted.
    pub fn mark_deleting(&mut self, id: InstanceId) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE instances SET deleting = 1 WHERE id = ?1")?
            .execute([id16(&id)])?;
        if Bug::AddressFreedEarly.is_planted() {
            self.conn
                .prepare_cached("UPDATE leases SET address = NULL WHERE instance = ?1")?
                .execute([id16(&id)])?;
        }
        self.touch_instance(id)
    }

    /// Removes the instance with its leases, reservations, volumes, user-data and bundles.
    pub fn remove_instance(&mut self, id: InstanceId) -> Result<(), StoreError> {
        self.touch_instance(id)?;
        // Explicitly and first: a cascade would not run the trigger that keeps the sums of the node.
        self.conn
            .prepare_cached("DELETE FROM reservations WHERE instance = ?1")?
            .execute([id16(&id)])?;
        self.conn
            .prepare_cached("DELETE FROM instances WHERE id = ?1")?
            .execute([id16(&id)])?;
        Ok(())
    }

    fn touch_instance(&mut self, id: InstanceId) -> Result<(), StoreError> {
        self.touch(Topic::Instance(id));
        let node = self
            .first(
                "SELECT node FROM instances WHERE id = ?1",
                [id16(&id)],
                |row| maybe_node_id(row, "node"),
            )?
            .flatten();
        if let Some(node) = node {
            self.touch(Topic::Node(node));
        }
        Ok(())
    }
}

fn has_peers(spec: &InstanceSpec) -> bool {
    spec.firewall.named_peers().next().is_some()
}

fn group(spec: &InstanceSpec) -> Option<&str> {
    spec.placement
        .spread
        .as_ref()
        .map(|spread| spread.group.as_str())
}

pub(crate) fn instance(row: &Row<'_>) -> Result<InstanceRow, StoreError> {
    Ok(InstanceRow {
        id: instance_id(row, "id")?,
        name: name(row, "name")?,
        labels: json(row, "labels")?,
        generation: Generation(count(row, "generation")?),
        epoch: Epoch(count(row, "epoch")?),
        created_at: time(row, "created_at")?,
        spec: json(row, "spec")?,
        status: json(row, "status")?,
        node: maybe_node_id(row, "node")?,
        lost_node: maybe_name(row, "lost_node")?,
        home: maybe_net(row, "home")?,
        owner: Owner {
            name: maybe_name(row, "node_name")?,
            reachable: row.get::<_, Option<bool>>("reachable")?.unwrap_or(true),
            last_contact: maybe_time(row, "last_contact")?,
        },
        moving: maybe_move(row)?,
        deleting: row.get("deleting")?,
        placement: StoredVerdicts::of(row, "placement")?,
        arch: row.get("arch")?,
        datasource: word(row, "datasource")?,
        cloud_id: row.get("cloud_id")?,
    })
}
