//! What administrators do with nodes: names and labels that placement asks for, and removal of one that will not come back.
//!
//! Removal is an operator's word, never waifud's conclusion: a node that is silent keeps its instances. What runs on a
//! removed machine runs on; nobody is given its addresses before the subnet is purged.

use std::collections::BTreeMap;

use waifud_api::{Node, UpdateNode};
use waifud_store::{NodeRow, ReadTx, WriteTx};
use waifud_types::{Digest, Name, NodeId};

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::instances::validate;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, problems};

/// How many instances a refusal names.
const NAMED: usize = 3;

impl Control {
    /// Renames a node, and sets and removes its labels. The node itself does not hear of them, and what it reports does not undo them.
    pub async fn update_node(
        &self,
        name_or_id: &str,
        change: UpdateNode,
        cause: Cause,
    ) -> Result<Node, ControlError> {
        let set: BTreeMap<String, String> = change
            .labels
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
            .collect();
        validate::labels("labels", &set)?;
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        let id = self
            .shared
            .store
            .write(move |tx| {
                let mut row = find(tx, &wanted)?;
                if let Some(name) = change.name.filter(|name| *name != row.name) {
                    control.rename_node_in(tx, &mut row, name, &cause)?;
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
                        "other labels",
                    ))?;
                    // Somebody may have waited for one of them.
                    control.place_waiting(tx)?;
                }
                Ok::<_, ControlError>(row.id)
            })
            .await?;
        self.node(&id.to_string()).await
    }

    /// Gives a node another name. It hears of it, and whatever it calls itself, it keeps that name.
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
            format!("it was called {}", row.name),
        ))?;
        tx.rename_node(row.id, &name, revision)?;
        tx.rename_node_key(row.id, &name)?;
        row.name = name;
        // Somebody may have waited for a node of this name.
        self.place_waiting(tx)
    }

    /// Forgets a node and its key. Refused while instances are on it that nobody deleted. With `purge`, others may have
    /// its subnet; that can be said later, too.
    pub async fn remove_node(
        &self,
        name_or_id: &str,
        purge: bool,
        cause: Cause,
    ) -> Result<(), ControlError> {
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        let (removed, images) = self
            .shared
            .store
            .write(move |tx| control.remove_node_in(tx, &wanted, purge, &cause))
            .await?;
        if let Some(node) = removed {
            self.shared.live.forget_node(node);
        }
        self.collect_images(images).await;
        Ok(())
    }

    fn remove_node_in(
        &self,
        tx: &mut WriteTx<'_>,
        wanted: &str,
        purge: bool,
        cause: &Cause,
    ) -> Result<(Option<NodeId>, Vec<Digest>), ControlError> {
        let gone = match find(tx, wanted) {
            Ok(row) => self
                .forget(tx, &row, cause)
                .map(|images| (Some(row.id), images))?,
            Err(not_found) => match only_admitted(tx, wanted)? {
                // It was let in and never heard of.
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
        Ok(gone)
    }

    fn forget(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        cause: &Cause,
    ) -> Result<Vec<Digest>, ControlError> {
        let mut deleted = Vec::new();
        let mut living: Vec<Name> = Vec::new();
        for id in tx.instances_on(node.id)? {
            match tx.instance(id)? {
                Some(row) if row.deleting => deleted.push(row),
                Some(row) => living.push(row.name),
                None => {}
            }
        }
        if !living.is_empty() {
            living.sort();
            let shown = living.get(..NAMED).unwrap_or(&living);
            return Err(node_problems::has_instances(&node.name, shown, living.len()).into());
        }
        if node.reachable && node.unmanaged_count > 0 {
            return Err(node_problems::has_unmanaged(&node.name, node.unmanaged_count).into());
        }
        let mut images = Vec::new();
        for row in deleted {
            let message = format!("{} was removed before it confirmed", node.name);
            images.push(self.remove(tx, &row, cause, &message)?);
        }
        tx.emit(&event_builder::event(
            self.now(),
            "node.removed",
            event_builder::node(node.id, &node.name),
            cause,
            format!(
                "its key is forgotten; nobody is given {} before it is purged",
                node.subnet
            ),
        ))?;
        tx.forget_node_key(node.id)?;
        tx.remove_node(node, self.now())?;
        self.place_waiting(tx)?;
        Ok(images)
    }
}

fn find(tx: &ReadTx<'_>, wanted: &str) -> Result<NodeRow, ControlError> {
    if let Some(row) = tx.node_named(wanted)? {
        return Ok(row);
    }
    let by_id = match wanted.parse::<NodeId>() {
        Ok(id) => tx.node(id)?,
        Err(_) => None,
    };
    by_id.ok_or_else(|| problems::not_found("node", wanted).into())
}

fn only_admitted(tx: &ReadTx<'_>, wanted: &str) -> Result<Option<NodeId>, ControlError> {
    match wanted.parse::<Name>() {
        Ok(name) => Ok(tx.node_id_named(&name)?),
        Err(_) => Ok(None),
    }
}
