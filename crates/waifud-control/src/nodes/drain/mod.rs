//! Draining a node: all of its instances move to others, a few at a time, until none is left.
//!
//! A drain is an order in the database. A background task begins the moves that are possible ([`run`]); what is possible
//! is planned from the database each time ([`plan`]), so that instances that do not fit now are moved as soon as they do.

mod plan;
mod run;

use waifud_api::{Drain, DrainNode};
use waifud_store::{DrainRow, NodeRow, WriteTx};
use waifud_types::event::Cause;

use super::list::find_node;
use crate::events::event_builder;
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError};

/// The number of instances named in a refusal.
const NAMED_MAX: usize = 3;

impl Control {
    /// What is left of a drain; for a node that is not drained, what draining it would do.
    pub async fn drain(
        &self,
        name_or_id: &str,
        new_address: Option<bool>,
    ) -> Result<Drain, ControlError> {
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        self.store()
            .read(move |tx| {
                let node = find_node(&tx, &wanted)?;
                plan::plan(&control, &tx, &node, new_address)
            })
            .await
    }

    /// Cordons a node and begins to move its instances to others. Repeating the request changes nothing.
    pub async fn drain_node(
        &self,
        name_or_id: &str,
        request: DrainNode,
        cause: Cause,
    ) -> Result<Drain, ControlError> {
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        let id = self
            .store()
            .write(move |tx| {
                let node = find_node(tx, &wanted)?;
                control.begin_drain(tx, &node, request, &cause)?;
                Ok::<_, ControlError>(node.id)
            })
            .await?;
        // The first moves begin before the answer.
        self.continue_drain(id).await?;
        self.drain(&id.to_string(), None).await
    }

    /// Ends the drain of a node, which stays cordoned. Moves that have begun go on.
    pub async fn cancel_drain(
        &self,
        name_or_id: &str,
        cause: Cause,
    ) -> Result<Drain, ControlError> {
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        self.store()
            .write(move |tx| {
                let node = find_node(tx, &wanted)?;
                if node.drain.is_none() {
                    return Err(node_problems::not_draining(&node.name).into());
                }
                control.end_drain(tx, &node, &cause)?;
                let node = find_node(tx, &wanted)?;
                plan::plan(&control, tx, &node, None)
            })
            .await
    }

    fn begin_drain(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        request: DrainNode,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        let is_known = node
            .drain
            .is_some_and(|drain| drain.new_address || !request.new_address);
        if is_known {
            return Ok(());
        }
        let instances = plan::instances(tx, node.id)?;
        if !instances.is_empty() && tx.nodes("", 2)?.len() == 1 {
            return Err(node_problems::only_node(&node.name).into());
        }
        if !request.new_address {
            let bound = plan::bound_to_addresses(tx, node, &instances)?;
            if !bound.is_empty() {
                let shown = bound.get(..NAMED_MAX).unwrap_or(&bound);
                return Err(
                    node_problems::new_addresses_needed(&node.name, shown, bound.len()).into(),
                );
            }
        }
        let drain = DrainRow {
            began_at: node
                .drain
                .map_or_else(|| self.now(), |drain| drain.began_at),
            new_address: request.new_address,
        };
        tx.emit(&event_builder::event(
            self.now(),
            "node.draining",
            event_builder::node(node.id, &node.name),
            cause,
            format!("its instances move to other nodes: {}", instances.len()),
        ))?;
        tx.set_node_cordoned(node.id, true)?;
        tx.set_node_drain(node.id, Some(&drain))?;
        // Instances that wait may wait for another reason than before.
        self.place_waiting(tx)
    }

    /// Ends the drain of a node before it is empty.
    pub(super) fn end_drain(
        &self,
        tx: &mut WriteTx<'_>,
        node: &NodeRow,
        cause: &Cause,
    ) -> Result<(), ControlError> {
        tx.emit(&event_builder::event(
            self.now(),
            "node.drain-canceled",
            event_builder::node(node.id, &node.name),
            cause,
            "no further instance is moved away",
        ))?;
        tx.set_node_drain(node.id, None)?;
        Ok(())
    }
}
