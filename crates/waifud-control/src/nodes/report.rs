//! Report: what a node says becomes status and events; what is only progress stays in memory.

use std::collections::HashMap;
use std::sync::Arc;

use waifud_api::agent::{AgentReport, InstanceReport, Unmanaged};
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::status::InstanceStatus;
use waifud_types::{Digest, InstanceId, InstanceState, NodeId};

use super::hello::{matters, out_of_bounds};
use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::instances::resize;
use crate::instances::status::{Merged, merge};
use crate::nodes::problems as node_problems;
use crate::{Control, ControlError, Peer, ProgressFrame};

/// What the node said of each instance.
type Said<'a> = HashMap<InstanceId, &'a InstanceReport>;

fn said(report: &AgentReport) -> Said<'_> {
    let instances = report.instances.iter();
    instances.map(|said| (said.id, said)).collect()
}

/// What a report made of the database.
struct Taken {
    /// Images that may be needed no more.
    images: Vec<Digest>,
    /// What it cost of the node's budget.
    cost: u64,
}

impl Control {
    /// Takes a report in. Durable when it returns; a report without news writes nothing.
    pub async fn report(
        &self,
        node: NodeId,
        mut report: AgentReport,
        peer: Peer,
        request_id: &str,
    ) -> Result<(), ControlError> {
        report.check().map_err(|error| out_of_bounds(&error))?;
        let report = Arc::new(report);
        let read = Arc::clone(&report);
        let (row, instances, news) = self
            .shared
            .store
            .read(move |tx| {
                let row = tx.node(node)?.ok_or_else(node_problems::unknown_node)?;
                let instances = ours(&tx, node, &read)?;
                let news = is_news(&tx, &read, &row, &instances)?;
                Ok::<_, ControlError>((row, instances, news))
            })
            .await?;
        self.shared
            .live
            .record_contact(node, self.sign(), report.now);
        if let Some(facts) = &report.facts {
            self.shared
                .live
                .set_use(node, facts.used, facts.pools.clone());
        }
        self.take_progress(&report, &instances);
        if !news {
            return Ok(());
        }
        self.must_have_budget(node)?;
        let cause = Cause::node(
            row.name.as_str(),
            Some(peer.from()),
            Some(request_id.to_owned()),
        );
        let control = self.clone();
        let taken = self
            .shared
            .store
            .write(move |tx| control.report_in(tx, node, &report, &cause))
            .await?;
        self.shared.live.has_written(node, taken.cost);
        self.collect_images(taken.images).await;
        Ok(())
    }

    /// Keeps the steps at work in memory and shows them to whoever watches.
    fn take_progress(&self, report: &AgentReport, instances: &[InstanceRow]) {
        let reported = said(report);
        for row in instances {
            let Some(said) = reported.get(&row.id) else {
                continue;
            };
            if let Some(evidence) = &said.evidence {
                self.shared.live.set_evidence(row.id, evidence.clone());
            }
            if self.shared.live.set_step(row.id, said.step.clone())
                && self.shared.progress.receiver_count() > 0
            {
                let frame = ProgressFrame {
                    instance: row.id,
                    name: row.name.clone(),
                    step: said.step.clone(),
                };
                let _nobody_watches = self.shared.progress.send(Arc::new(frame));
            }
        }
    }

    fn report_in(
        &self,
        tx: &mut WriteTx<'_>,
        node: NodeId,
        report: &AgentReport,
        cause: &Cause,
    ) -> Result<Taken, ControlError> {
        let before = tx.newest();
        let mut cost = 1;
        let row = tx.node(node)?.ok_or_else(node_problems::unknown_node)?;
        let mut capacities_changed = self.mark_reachable(tx, &row, cause)?;
        if let Some(facts) = &report.facts {
            capacities_changed |= self.learn_facts(tx, &row, facts, cause)?;
        }
        if let Some(unmanaged) = &report.unmanaged
            && is_another_list(tx, unmanaged, &row)?
        {
            // What is there may now be placed on, its addresses being known; or an address is free.
            capacities_changed = true;
            cost += weight(unmanaged);
            tx.emit(&event_builder::event(
                self.now(),
                "node.unmanaged",
                event_builder::node(row.id, &row.name),
                cause,
                match unmanaged.len() {
                    0 => "nothing on it is in nobody's list any more".to_owned(),
                    1 => "one thing on it is in nobody's list".to_owned(),
                    many => format!("{many} things on it are in nobody's list"),
                },
            ))?;
            tx.set_node_unmanaged(node, unmanaged)?;
        }
        let reported = said(report);
        for instance in ours(tx, node, report)? {
            if let Some(said) = reported.get(&instance.id) {
                capacities_changed |= self.learn_status(tx, instance, said, cause)?;
            }
        }
        let mut images = Vec::new();
        for done in &report.destroyed {
            if !tx.confirm_tombstone(node, done.instance, done.epoch)? {
                continue;
            }
            let gone = tx
                .instance(done.instance)?
                .filter(|i| i.deleting && i.node == Some(node) && i.epoch <= done.epoch);
            if let Some(instance) = gone {
                let message = format!("{} has destroyed it", row.name);
                images.push(self.remove(tx, &instance, cause, &message)?);
                capacities_changed = true;
            }
        }
        if capacities_changed {
            self.place_waiting(tx)?;
        }
        cost += tx.newest() - before;
        Ok(Taken { images, cost })
    }

    /// Says whether room has appeared.
    fn learn_status(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        said: &InstanceReport,
        cause: &Cause,
    ) -> Result<bool, ControlError> {
        let Some(merged) = news(&row, said) else {
            return Ok(false);
        };
        for told in merged.told {
            let mut event = event_builder::event(
                self.now(),
                told.kind,
                event_builder::instance(row.id, &row.name),
                cause,
                told.message,
            )
            .generation(said.observed_generation.min(row.generation));
            event.reason = told.reason;
            tx.emit(&event)?;
        }
        tx.set_status(row.id, &merged.status)?;
        row.status = merged.status;
        resize::settle(tx, &row)
    }
}

/// What a report changes. Of an instance that is being destroyed only what keeps its node from it is news.
fn news(row: &InstanceRow, said: &InstanceReport) -> Option<Merged> {
    if !row.deleting {
        // Nothing was seen yet of a generation that there is not.
        let seen = said.observed_generation.min(row.generation);
        return merge(&row.status, said, seen);
    }
    let status = InstanceStatus {
        reason: said.reason.clone(),
        ..row.status.clone()
    };
    (status != row.status).then(|| Merged {
        status,
        told: Vec::new(),
    })
}

/// The reported instances that are this node's and of the epoch that it speaks of. What it says of one that is to be
/// destroyed counts once it knows of that.
fn ours(
    tx: &ReadTx<'_>,
    node: NodeId,
    report: &AgentReport,
) -> Result<Vec<InstanceRow>, ControlError> {
    let mut rows = Vec::with_capacity(report.instances.len());
    for said in &report.instances {
        let row = tx
            .instance(said.id)?
            .filter(|row| row.node == Some(node) && row.epoch == said.epoch)
            .filter(|row| !row.deleting || said.state == InstanceState::Deleting);
        rows.extend(row);
    }
    Ok(rows)
}

fn is_news(
    tx: &ReadTx<'_>,
    report: &AgentReport,
    row: &NodeRow,
    instances: &[InstanceRow],
) -> Result<bool, ControlError> {
    let facts = report
        .facts
        .as_ref()
        .is_some_and(|facts| matters(&row.facts, facts));
    let unmanaged = match &report.unmanaged {
        Some(list) => is_another_list(tx, list, row)?,
        None => false,
    };
    let reported = said(report);
    let statuses = instances.iter().any(|row| {
        let said = reported.get(&row.id);
        said.is_some_and(|said| news(row, said).is_some())
    });
    let mut destroyed = report.destroyed.iter();
    let confirms = destroyed.try_fold(false, |confirms, done| {
        let ordered = tx.tombstone_epoch(done.instance, row.id)?;
        Ok::<_, ControlError>(confirms || ordered.is_some())
    })?;
    Ok(!row.reachable || facts || unmanaged || statuses || confirms)
}

/// Whether a node's list of what is in nobody's list is another than before, or the first since a restore.
fn is_another_list(
    tx: &ReadTx<'_>,
    list: &[Unmanaged],
    row: &NodeRow,
) -> Result<bool, ControlError> {
    let as_long = u32::try_from(list.len()) == Ok(row.unmanaged_count);
    Ok(!row.swept || !as_long || tx.unmanaged_on(row.id)? != list)
}

/// What it costs to write such a list down: as an event for each 64 KiB.
fn weight(list: &[Unmanaged]) -> u64 {
    let bundles = list.iter().filter_map(|entry| entry.bundle.as_ref());
    let bytes: usize = bundles.map(String::len).sum();
    let bytes = bytes.saturating_add(list.len().saturating_mul(256));
    u64::try_from(bytes >> 16).unwrap_or(u64::MAX)
}
