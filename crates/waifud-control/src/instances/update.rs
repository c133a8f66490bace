//! Update: what is absent stays as it is; every change counts the generation up.

use waifud_api::{Instance, UpdateInstance};
use waifud_store::{InstanceRow, WriteTx};
use waifud_types::InstanceState;
use waifud_types::status::StoppedBy;

use super::{IfMatch, find};
use crate::note::EventExt;
use crate::principal::Cause;
use crate::{Control, ControlError, note, problems, validate, view};

impl Control {
    /// Changes an instance's spec. New user-data keeps cloud-init's instance-id: the next boot reads it, and nothing
    /// that is done once per instance is done again.
    pub async fn update_instance(
        &self,
        name_or_id: &str,
        change: UpdateInstance,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        if let Some(text) = &change.user_data {
            validate::user_data(text)?;
        }
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        self.shared
            .store
            .write(move |tx| {
                let row = find(tx, &wanted)?;
                if_match.check(row.generation)?;
                if row.deleting {
                    return Err(problems::deleting(&row.name).into());
                }
                let row = control.update_in(tx, row, &change, &cause)?;
                Ok(view::instance(row, &control.shared.live))
            })
            .await
    }

    fn update_in(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        change: &UpdateInstance,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let before = row.spec.clone();
        let mut said = Vec::new();
        if let Some(run) = change.run.filter(|run| *run != row.spec.run) {
            row.spec.run = run;
            said.push(if run { "should run" } else { "should stop" });
        }
        if let Some(protected) = change.protected.filter(|p| *p != row.spec.protected) {
            row.spec.protected = protected;
            said.push(if protected {
                "protected"
            } else {
                "no longer protected"
            });
        }
        if let Some(text) = &change.user_data {
            row.spec.user_data = validate::user_data_facts(text);
            if row.spec.user_data != before.user_data {
                said.push("new user-data for the next boot");
            }
        }
        // What stopped by itself and stays off is started by being told to run again: a generation of its own.
        let start_again = change.run == Some(true) && row.spec == before && stays_off(&row);
        if start_again {
            said.push("should run again");
        }
        if row.spec == before && !start_again {
            return Ok(row);
        }
        row.generation = row.generation.next();
        let event = note::event(
            self.now(),
            "instance.updated",
            note::instance(row.id, &row.name),
            cause,
            said.join(", "),
        )
        .generation(row.generation);
        let revision = tx.emit(&event)?;
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        if row.spec.user_data != before.user_data
            && let Some(text) = &change.user_data
        {
            tx.set_user_data(row.id, text)?;
            if let Some(node) = row.node
                && let Some(node) = tx.node(node)?
            {
                self.put_bundle(tx, &row, &node.name, node.subnet)?;
            }
        }
        Ok(row)
    }
}

/// Whether it is off although it should run, as its node knows it.
fn stays_off(row: &InstanceRow) -> bool {
    let status = &row.status;
    status.state == InstanceState::Stopped
        && status.observed_generation == Some(row.generation)
        && matches!(
            status.stopped_by,
            Some(StoppedBy::Guest | StoppedBy::Crash | StoppedBy::Outside)
        )
}
