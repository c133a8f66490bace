//! Report: what a node says becomes status and events; what is only progress stays in memory.

use std::sync::Arc;

use waifud_api::agent::{AgentReport, InstanceReport};
use waifud_store::{InstanceRow, NodeRow, ReadTx, WriteTx};
use waifud_types::status::InstanceStatus;
use waifud_types::{Digest, InstanceState, NodeId};

use super::hello::matters;
use crate::instances::resize;
use crate::note::EventExt;
use crate::principal::Cause;
use crate::status::{Merged, merge};
use crate::{Control, ControlError, Peer, ProgressFrame, note, problems};

impl Control {
    /// Takes a report in. Durable when it returns; a report without news writes nothing.
    pub async fn report(
        &self,
        node: NodeId,
        report: AgentReport,
        peer: Peer,
        request_id: &str,
    ) -> Result<(), ControlError> {
        self.shared.live.heard_of(node, self.now(), report.now);
        if let Some(facts) = &report.facts {
            self.shared
                .live
                .set_use(node, facts.used, facts.pools.clone());
        }
        let report = Arc::new(report);
        let read = Arc::clone(&report);
        let (row, instances) = self
            .shared
            .store
            .read(move |tx| {
                let row = tx.node(node)?.ok_or_else(problems::unknown_node)?;
                let instances = ours(&tx, node, &read)?;
                Ok::<_, ControlError>((row, instances))
            })
            .await?;
        self.take_progress(&report, &instances);
        for gone in &report.destroyed {
            self.shared.live.forget(gone.instance);
        }
        if !is_news(&report, &row, &instances) {
            return Ok(());
        }
        let cause = Cause::node(
            row.name.as_str(),
            Some(peer.from()),
            Some(request_id.to_owned()),
        );
        let control = self.clone();
        let images = self
            .shared
            .store
            .write(move |tx| control.report_in(tx, node, &report, &cause))
            .await?;
        self.collect_images(images).await;
        Ok(())
    }

    /// Keeps the steps at work in memory and shows them to whoever watches.
    fn take_progress(&self, report: &AgentReport, instances: &[InstanceRow]) {
        for row in instances {
            let Some(said) = report.instances.iter().find(|said| said.id == row.id) else {
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
    ) -> Result<Vec<Digest>, ControlError> {
        let row = tx.node(node)?.ok_or_else(problems::unknown_node)?;
        let mut room = self.back_again(tx, &row, cause)?;
        if let Some(facts) = &report.facts {
            room |= self.learn_facts(tx, &row, facts, cause)?;
        }
        if let Some(unclaimed) = &report.unclaimed
            && (*unclaimed != row.unclaimed || !row.swept)
        {
            // What is there may now be placed on, its addresses being known.
            room |= !row.swept;
            tx.emit(&note::event(
                self.now(),
                "node.unclaimed",
                note::node(row.id, &row.name),
                cause,
                match unclaimed.len() {
                    0 => "nothing on it is in nobody's list any more".to_owned(),
                    1 => "one thing on it is in nobody's list".to_owned(),
                    many => format!("{many} things on it are in nobody's list"),
                },
            ))?;
            tx.set_node_unclaimed(node, unclaimed)?;
        }
        for instance in ours(tx, node, report)? {
            if let Some(said) = report.instances.iter().find(|said| said.id == instance.id) {
                room |= self.learn_status(tx, instance, said, cause)?;
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
                room = true;
            }
        }
        if room {
            self.place_waiting(tx)?;
        }
        Ok(images)
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
            let mut event = note::event(
                self.now(),
                told.kind,
                note::instance(row.id, &row.name),
                cause,
                told.message,
            )
            .generation(said.observed_generation);
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
        return merge(&row.status, said);
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

fn is_news(report: &AgentReport, row: &NodeRow, instances: &[InstanceRow]) -> bool {
    let facts = report
        .facts
        .as_ref()
        .is_some_and(|facts| matters(&row.facts, facts));
    let unclaimed = report
        .unclaimed
        .as_ref()
        .is_some_and(|list| *list != row.unclaimed || !row.swept);
    let statuses = instances.iter().any(|row| {
        report
            .instances
            .iter()
            .any(|said| said.id == row.id && news(row, said).is_some())
    });
    !row.reachable || facts || unclaimed || statuses || !report.destroyed.is_empty()
}
