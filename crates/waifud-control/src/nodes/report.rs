//! Reports of nodes: they become status and events; progress stays in memory.

use std::collections::HashMap;
use std::sync::Arc;

use waifud_api::agent::{AgentReport, InstanceReport, Unmanaged};
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::event::Cause;
use waifud_types::status::InstanceStatus;
use waifud_types::{Digest, Epoch, InstanceId, InstanceState, NodeId};

use super::contacts::Made;
use super::hello::{differ, out_of_bounds};
use super::newer_copies::newer_copies;
use super::older_copies;
use crate::events::event_builder::{self, EventExt};
use crate::instances::handover::is_new_release;
use crate::instances::moving::advances;
use crate::instances::status::{Merged, merge};
use crate::instances::{nics, resize};
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, Peer};

/// The reports by instance.
type ById<'a> = HashMap<InstanceId, &'a InstanceReport>;

fn by_id(report: &AgentReport) -> ById<'_> {
    let instances = report.instances.iter();
    instances.map(|report| (report.id, report)).collect()
}

/// The result of storing a report.
struct Stored {
    /// Images that may be unused now.
    images: Vec<Digest>,
    /// The cost, charged to the node's write budget.
    cost: u64,
}

impl Control {
    /// Stores a report. It is durable when this returns; a report without changes writes nothing.
    pub async fn report(
        &self,
        node: NodeId,
        mut report: AgentReport,
        peer: Peer,
        request_id: &str,
    ) -> Result<(), ControlError> {
        report.check().map_err(|error| out_of_bounds(&error))?;
        let made = Made {
            order: report.order,
            at: report.now,
        };
        if !self.contacts().has_newer(node, made) {
            let judgement = self.contacts().judge_message(node, report.boot_id);
            self.refuse_copies(node, judgement).await?;
        }
        let said_hello = self.contacts().has_said_hello(node);
        let is_newest = self.contacts().is_newest(node, made);
        let report = Arc::new(report);
        let read = Arc::clone(&report);
        let (row, instances, receiving, changed) = self
            .store()
            .read(move |tx| {
                let row = tx.node(node)?.ok_or_else(node_problems::unknown_node)?;
                // The agent does not know yet that the database was restored, and its lists are about the former one.
                if !said_hello && tx.epoch_floor()? > Epoch(0) {
                    return Err(node_problems::hello_needed().into());
                }
                let instances = reported_rows(&tx, node, &read)?;
                let changed = changes_anything(&tx, &read, &row, &instances)?;
                let receiving = receiving_rows(&tx, node, &read)?;
                Ok::<_, ControlError>((row, instances, receiving, changed))
            })
            .await?;
        // The node is in contact, whatever its clock says. A late report says nothing about the clock.
        let clock = made.at.filter(|_| is_newest);
        self.contacts()
            .record_contact(node, self.contact_time(), clock);
        if !is_newest {
            return Err(node_problems::outdated_report().into());
        }
        if let Some(facts) = &report.facts {
            self.contacts()
                .record_load(node, facts.used, facts.pools.clone());
        }
        self.record_progress(&report, &instances);
        self.record_receiving(&report, &receiving);
        if !changed {
            return Ok(());
        }
        self.require_budget(node)?;
        let cause = peer.cause_of(&row.name, request_id);
        let control = self.clone();
        let stored = self
            .store()
            .write(move |tx| {
                // A newer one may have been stored since the check above.
                if control.contacts().has_newer(node, made) {
                    return Err(node_problems::outdated_report().into());
                }
                control.report_in(tx, node, &report, &cause)
            })
            .await?;
        self.contacts().charge(node, stored.cost);
        self.images().collect(stored.images).await;
        Ok(())
    }

    /// Records the current steps in memory and sends them to followers.
    fn record_progress(&self, report: &AgentReport, instances: &[InstanceRow]) {
        let reported = by_id(report);
        for row in instances {
            let Some(of_instance) = reported.get(&row.id) else {
                continue;
            };
            self.instance_progress().record(&row.name, of_instance);
        }
    }

    fn report_in(
        &self,
        tx: &mut WriteTx<'_>,
        node: NodeId,
        report: &AgentReport,
        cause: &Cause,
    ) -> Result<Stored, ControlError> {
        let before = tx.newest();
        let mut cost = 1;
        let row = tx.node(node)?.ok_or_else(node_problems::unknown_node)?;
        let mut capacities_changed = self.mark_reachable(tx, &row, cause)?;
        if let Some(facts) = &report.facts {
            capacities_changed |= self.record_facts(tx, &row, facts, cause)?;
        }
        for released in &report.released {
            self.record_released(tx, &row, *released, cause)?;
        }
        let mut may_give_back = false;
        if let Some(list) = &report.unmanaged {
            let list = older_copies::with_releasing(tx, &row, list)?;
            if unmanaged_list_changed(tx, &list, &row)? {
                // The node's addresses are known now, or an address is free again.
                capacities_changed = true;
                may_give_back = true;
                cost += list_cost(&list);
                tx.emit(&self.event(
                    "node.unmanaged",
                    event_builder::node(row.id, &row.name),
                    cause,
                    match list.len() {
                        0 => "no unmanaged objects".to_owned(),
                        1 => "found 1 unmanaged object".to_owned(),
                        many => format!("found {many} unmanaged objects"),
                    },
                ))?;
                tx.set_node_unmanaged(node, &list)?;
            }
            self.release_older_copies(tx, &row, &list, cause)?;
        }
        may_give_back |= self.take_over_epochs(tx, &row, report, cause)?;
        if may_give_back {
            self.give_back(tx, cause)?;
        }
        let reported = by_id(report);
        for instance in reported_rows(tx, node, report)? {
            if let Some(of_instance) = reported.get(&instance.id) {
                capacities_changed |= self.record_status(tx, instance, of_instance, cause)?;
            }
        }
        let mut images = Vec::new();
        for done in &report.destroyed {
            if !tx.confirm_tombstone(node, done.instance, done.epoch)? {
                continue;
            }
            capacities_changed |= forget_unmanaged(tx, node, done.instance)?;
            if let Some(instance) = tx.instance(done.instance)? {
                let (ended, image) = self.end_part(tx, &instance, &row, done.epoch, cause)?;
                images.extend(image);
                capacities_changed |= ended;
            }
        }
        capacities_changed |= self.advance_moves_of(tx, node, report, cause)?;
        if capacities_changed {
            self.place_waiting(tx)?;
        }
        cost += tx.newest() - before;
        Ok(Stored { images, cost })
    }

    /// Stores the status of an instance; returns whether capacity was freed.
    fn record_status(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        report: &InstanceReport,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        let Some(merged) = changes(&row, report) else {
            return Ok(false);
        };
        for status_event in merged.events {
            let mut event = self
                .event(
                    status_event.kind,
                    event_builder::instance(row.id, &row.name),
                    cause,
                    status_event.message,
                )
                .generation(report.observed_generation.min(row.generation));
            event.reason = status_event.reason;
            tx.emit(&event)?;
        }
        tx.set_status(row.id, &merged.status)?;
        row.status = merged.status;
        let nics_freed = nics::free_removed(tx, &row, report)?;
        if nics_freed && nics::has_left_home(tx, &row)? {
            let event = self.event(
                "instance.updated",
                event_builder::instance(row.id, &row.name),
                cause,
                "its address on default is free",
            );
            let revision = tx.emit(&event)?;
            tx.set_home(row.id, None, row.node.as_slice(), revision)?;
        }
        Ok(resize::release_unused(tx, &row)? | nics_freed)
    }
}

/// Removes an instance that the node has destroyed from the list of unmanaged objects, before the node reports the list
/// without it: until then, a repeated request would order the same deletion again. Returns whether it was there.
fn forget_unmanaged(
    tx: &mut WriteTx<'_>,
    node: NodeId,
    instance: InstanceId,
) -> Result<bool, ControlError> {
    let mut list = tx.unmanaged_on(node)?;
    let before = list.len();
    list.retain(|entry| entry.instance != instance);
    if list.len() == before {
        return Ok(false);
    }
    tx.set_node_unmanaged(node, &list)?;
    Ok(true)
}

/// What a report changes. For an instance that is being deleted, only the reason of a delay.
fn changes(row: &InstanceRow, report: &InstanceReport) -> Option<Merged> {
    if !row.deleting {
        // The observed generation cannot be newer than the current one.
        let seen = report.observed_generation.min(row.generation);
        let own = row.spec.rescue.is_none() && seen == row.generation;
        return merge(&row.status, report, seen, own);
    }
    let status = InstanceStatus {
        reason: report.reason.clone(),
        cause: None,
        ..row.status.clone()
    };
    (status != row.status).then(|| Merged {
        status,
        events: Vec::new(),
    })
}

/// The reported instances that are on this node with the reported epoch. A report about an instance that is being deleted
/// is used only if the node knows about the deletion.
fn reported_rows(
    tx: &ReadTx<'_>,
    node: NodeId,
    report: &AgentReport,
) -> Result<Vec<InstanceRow>, ControlError> {
    let mut rows = Vec::with_capacity(report.instances.len());
    for reported in &report.instances {
        let row = tx
            .instance(reported.id)?
            .filter(|row| row.node == Some(node) && row.epoch == reported.epoch)
            .filter(|row| !row.deleting || reported.state == InstanceState::Deleting);
        rows.extend(row);
    }
    Ok(rows)
}

/// The reported instances that the node receives.
fn receiving_rows(
    tx: &ReadTx<'_>,
    node: NodeId,
    report: &AgentReport,
) -> Result<Vec<InstanceRow>, ControlError> {
    let mut rows = Vec::with_capacity(report.receiving.len());
    for receiving in &report.receiving {
        let row = tx.instance(receiving.instance)?;
        rows.extend(row.filter(|row| {
            let moving = row.moving.as_ref();
            moving.is_some_and(|moving| moving.target == node && moving.state.can_be_canceled())
        }));
    }
    Ok(rows)
}

fn changes_anything(
    tx: &ReadTx<'_>,
    report: &AgentReport,
    row: &NodeRow,
    instances: &[InstanceRow],
) -> Result<bool, ControlError> {
    let facts = report
        .facts
        .as_ref()
        .is_some_and(|facts| differ(&row.facts, facts));
    let unmanaged = match &report.unmanaged {
        Some(list) => {
            let list = older_copies::with_releasing(tx, row, list)?;
            unmanaged_list_changed(tx, &list, row)?
                || !older_copies::older_copies(tx, row, &list)?.is_empty()
        }
        None => false,
    };
    let reported = by_id(report);
    let statuses = instances.iter().any(|row| {
        let report = reported.get(&row.id);
        report.is_some_and(|report| changes(row, report).is_some())
    });
    let mut destroyed = report.destroyed.iter();
    let confirms = destroyed.try_fold(false, |confirms, done| {
        let ordered = tx.tombstone_epoch(done.instance, row.id)?;
        Ok::<_, ControlError>(confirms || ordered.is_some())
    })?;
    let mut given_up = report.released.iter();
    let releases = given_up.try_fold(false, |releases, one| {
        Ok::<_, ControlError>(releases || is_new_release(tx, row.id, *one)?)
    })?;
    let newer = !newer_copies(tx, row, report)?.is_empty() || advances(tx, row.id, report)?;
    Ok(!row.reachable || facts || unmanaged || statuses || confirms || releases || newer)
}

/// Whether the list of unmanaged objects has changed, or is the first one since a restore.
fn unmanaged_list_changed(
    tx: &ReadTx<'_>,
    list: &[Unmanaged],
    row: &NodeRow,
) -> Result<bool, ControlError> {
    let as_long = u32::try_from(list.len()) == Ok(row.unmanaged.count);
    Ok(!row.unmanaged.swept || !as_long || tx.unmanaged_on(row.id)? != list)
}

/// The cost of storing a list of unmanaged objects: one event per 64 KiB.
fn list_cost(list: &[Unmanaged]) -> u64 {
    let bundles = list.iter().filter_map(|entry| entry.bundle.as_ref());
    let bytes: usize = bundles.map(String::len).sum();
    let bytes = bytes.saturating_add(list.len().saturating_mul(256));
    u64::try_from(bytes >> 16).unwrap_or(u64::MAX)
}
