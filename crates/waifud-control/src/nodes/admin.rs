//! Administration of nodes: names, labels, cordons, and removal of nodes that will not return.
//!
//! Only an administrator removes a node; an unreachable node keeps its instances. Guests on a removed node keep running, and
//! their addresses are not reused before the subnet is purged.

use waifud_api::{Node, RemoveNode, UpdateNode};
use waifud_store::{NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::{Digest, Name, NodeId};

use super::list::find_node;
use crate::events::event_builder;
use crate::instances::handover::is_older_copy;
use crate::instances::moving::can_return;
use crate::instances::validate;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

/// The number of instances named in a refusal.
const NAMED_MAX: usize = 3;

impl Control {
    /// Renames a node, cordons or uncordons it, and sets and removes labels. The node's own reports do not undo them.
    pub async fn update_node(
        &self,
        name_or_id: &str,
        change: UpdateNode,
        cause: Cause,
    ) -> Result<Node, ControlError> {
        validate::changed_labels(&change.labels)?;
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        let id = self
            .store()
            .write(move |tx| {
                let mut row = find_node(tx, &wanted)?;
                if let Some(name) = change.name.filter(|name| *name != row.name) {
                    control.rename_node_in(tx, &mut row, name, &cause)?;
                }
                if let Some(cordoned) = change.cordoned.filter(|it| *it != row.cordoned) {
                    control.cordon_node_in(tx, &row, cordoned, &cause)?;
                }
                let mut labels = row.labels.clone();
                for (key, value) in change.labels {
                    match value {
                        Some(value) => labels.insert(key, value),
                        None => labels.remove(&key),
                    };
                }
                validate::labels("labels", &labels)?;
                if labels != row.labels {
                    tx.set_node_labels(row.id, &labels)?;
                    tx.emit(&event_builder::event(
                        control.now(),
                        "node.updated",
                        event_builder::node(row.id, &row.name),
                        &cause,
                        "labels changed",
                    ))?;
                    // An instance may wait for one of the labels.
                    control.place_waiting(tx)?;
                }
                Ok::<_, ControlError>(row.id)
            })
            .await?;
        self.node(&id.to_string()).await
    }

    /// Renames a node. The node receives the name; the name in its own configuration has no effect.
    fn rename_node_in(
        &self,
        tx: &mut WriteTx<'_>,
        row: &mut NodeRow,
        name: Name,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let owner = tx.node_id_named(&name)?;
        if owner.is_some_and(|owner| owner != row.id) {
            return Err(node_problems::name_taken(&name).into());
        }
        let revision = tx.emit(&event_builder::event(
            self.now(),
            "node.renamed",
            event_builder::node(row.id, &name),
            cause,
            format!("renamed from {}", row.name),
        ))?;
        tx.rename_node(row.id, &name, revision)?;
        tx.rename_node_key(row.id, &name)?;
        row.name = name;
        // An instance may wait for a node of this name.
        self.place_waiting(tx)
    }

    /// Cordons or uncordons a node.
    fn cordon_node_in(
        &self,
        tx: &mut WriteTx<'_>,
        row: &NodeRow,
        cordoned: bool,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let (kind, message) = if cordoned {
            ("node.cordoned", "it accepts no new instances")
        } else {
            ("node.uncordoned", "it accepts new instances again")
        };
        tx.emit(&event_builder::event(
            self.now(),
            kind,
            event_builder::node(row.id, &row.name),
            cause,
            message,
        ))?;
        tx.set_node_cordoned(row.id, cordoned)?;
        if !cordoned && row.drain.is_some() {
            self.end_drain(tx, row, cause)?;
        }
        // After a cordon, instances may wait for another reason than before.
        self.place_waiting(tx)
    }

    /// Removes a node and its key. Refused while the node has instances that are not being deleted, unless it is forced.
    pub async fn remove_node(
        &self,
        name_or_id: &str,
        how: RemoveNode,
        cause: Cause,
    ) -> Result<(), ControlError> {
        if how.force && !how.confirm_off {
            return Err(node_problems::off_not_confirmed().into());
        }
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        let (removed, images) = self
            .store()
            .write(move |tx| control.remove_node_in(tx, &wanted, how, &cause))
            .await?;
        if let Some(node) = removed {
            self.contacts().forget(node);
        }
        self.images().collect(images).await;
        Ok(())
    }

    fn remove_node_in(
        &self,
        tx: &mut WriteTx<'_>,
        wanted: &str,
        how: RemoveNode,
        cause: &Cause,
    ) -> Result<(Option<NodeId>, Vec<Digest>), ControlError> {
        let purge = how.purge;
        let removed = match find_node(tx, wanted) {
            Ok(row) => self
                .forget(tx, &row, how.force, cause)
                .map(|images| (Some(row.id), images))?,
            Err(not_found) => match only_admitted(tx, wanted)? {
                // The node was admitted and has never sent a hello.
                Some(id) => {
                    tx.forget_node_key(id)?;
                    (Some(id), Vec::new())
                }
                None if purge && tx.is_removed_node(wanted)? => (None, Vec::new()),
                None => return Err(not_found),
            },
        };
        if purge {
            tx.purge_node(wanted)?;
        }
        Ok(removed)
    }

    fn forget(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        force: bool,
        cause: &Cause,
    ) -> Result<Vec<Digest>, ControlError> {
        if force && node.reachable {
            return Err(node_problems::still_reachable(&node.name).into());
        }
        self.end_moves_to(tx, node.id, cause)?;
        let mut ids = tx.instances_on(node.id)?;
        // Instances that the node has released, or was to receive.
        ids.extend(tx.handovers_on(node.id)?);
        ids.sort();
        ids.dedup();
        let (mut deleted, mut elsewhere) = (Vec::new(), Vec::new());
        let mut still_present: Vec<Name> = Vec::new();
        let mut lost = Vec::new();
        let mut returning = Vec::new();
        for id in ids {
            let Some(row) = tx.instance(id)? else {
                continue;
            };
            let parts = tx.ownership(id)?;
            let only_here = parts
                .iter()
                .all(|part| part.node == node.id || is_older_copy(part, &row));
            if !row.deleting && row.node == Some(node.id) {
                if force && can_return(&row, node.id) {
                    returning.push(row);
                } else if force && only_here {
                    lost.push(row);
                } else {
                    still_present.push(row.name);
                }
            } else if row.deleting && parts.iter().all(|part| part.node == node.id) {
                deleted.push(row);
            } else {
                elsewhere.push(row);
            }
        }
        if !still_present.is_empty() {
            still_present.sort();
            let shown = still_present.get(..NAMED_MAX).unwrap_or(&still_present);
            return Err(
                node_problems::has_instances(&node.name, shown, still_present.len()).into(),
            );
        }
        if node.reachable && node.unmanaged.count > 0 {
            return Err(node_problems::has_unmanaged(&node.name, node.unmanaged.count).into());
        }
        for row in elsewhere {
            tx.end_part(row.id, node.id)?;
            if row.deleting && row.home.is_some() && row.node == Some(node.id) {
                let message = format!("{} was removed before it confirmed the deletion", node.name);
                self.leave(tx, &row, node, cause, message)?;
            }
        }
        for row in returning {
            self.return_home(tx, row, node, cause)?;
        }
        for row in lost {
            self.lose(tx, row, node, cause)?;
        }
        let mut images = Vec::new();
        for row in deleted {
            let message = format!("{} was removed before it confirmed the deletion", node.name);
            images.push(self.remove(tx, &row, cause, &message)?);
        }
        let revision = tx.emit(&event_builder::event(
            self.now(),
            "node.removed",
            event_builder::node(node.id, &node.name),
            cause,
            format!(
                "its key was revoked; {} stays reserved until the node is purged",
                node.subnet
            ),
        ))?;
        tx.forget_node_key(node.id)?;
        tx.remove_node(node, self.now(), revision)?;
        self.place_waiting(tx)?;
        Ok(images)
    }
}

fn only_admitted(tx: &ReadTx<'_>, wanted: &str) -> Result<Option<NodeId>, ControlError> {
    match wanted.parse::<Name>() {
        Ok(name) => Ok(tx.node_id_named(&name)?),
        Err(_) => Ok(None),
    }
}
