//! Update: what is absent stays as it is; every change counts the generation up.

use waifud_api::{Instance, UpdateInstance};
use waifud_store::{InstanceRow, WriteTx};
use waifud_types::InstanceState;
use waifud_types::status::StoppedBy;

use super::{IfMatch, amend, find, power, rescue, resize};
use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::events::event_builder::EventExt;
use crate::instances::problems as instance_problems;
use crate::instances::validate;
use crate::instances::view;
use crate::network;
use crate::{Control, ControlError};

impl Control {
    /// Changes an instance's spec and labels. New user-data keeps cloud-init's instance-id: the next boot reads it, and
    /// nothing that is done once per instance is done again, unless `re_run` asks for that. Labels are no part of the
    /// spec: its generation does not count them.
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
        amend::check(&change)?;
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        self.shared
            .store
            .write(move |tx| {
                let row = find(tx, &wanted)?;
                if_match.check(row.generation)?;
                if row.deleting {
                    return Err(instance_problems::deleting(&row.name).into());
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
        rescue::wakes(&mut row, change);
        power::apply(&mut row.spec, change, &mut said)?;
        rescue::apply(tx, &mut row, change, &mut said)?;
        resize::apply(&mut row.spec, change, &mut said)?;
        if let Some(protected) = change.protected.filter(|p| *p != row.spec.protected) {
            row.spec.protected = protected;
            let word = if protected {
                "protected"
            } else {
                "no longer protected"
            };
            said.push(word.to_owned());
        }
        if let Some(publish) = &change.publish {
            let publish = network::publish(publish)?;
            if publish != row.spec.publish {
                network::check_publish(&row.spec, &publish)?;
                network::reserve_ports(tx, &row, &publish)?;
                row.spec.publish = publish;
                said.push("other published ports".to_owned());
            }
        }
        if let Some(text) = &change.user_data {
            row.spec.user_data = validate::user_data_facts(text);
            if row.spec.user_data != before.user_data {
                said.push("new user-data for the next boot".to_owned());
            }
        }
        amend::wishes(&mut row, change, &mut said)?;
        let relabelled = amend::labels(&mut row, change, &mut said)?;
        if change.re_run {
            row.cloud_id = waifud_cloudinit::next_instance_id(row.id, &row.cloud_id);
            said.push("the next boot is a first boot".to_owned());
        }
        // What stopped by itself and stays off is started by being told to run again: a generation of its own.
        let start_again = change.run == Some(true) && row.spec == before && stays_off(&row);
        if start_again {
            said.push("should run again".to_owned());
        }
        let respecified = row.spec != before || start_again || change.re_run;
        if !respecified && !relabelled {
            return Ok(row);
        }
        if resize::differs(&before, &row.spec) {
            resize::reserve(tx, &row, &before)?;
        }
        if respecified {
            row.generation = row.generation.next();
        }
        let event = event_builder::event(
            self.now(),
            "instance.updated",
            event_builder::instance(row.id, &row.name),
            cause,
            said.join(", "),
        )
        .generation(row.generation);
        let revision = tx.emit(&event)?;
        if relabelled {
            tx.set_labels(row.id, &row.labels)?;
        }
        if !respecified {
            return Ok(row);
        }
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        let new_text = (row.spec.user_data != before.user_data)
            .then_some(change.user_data.as_ref())
            .flatten();
        if let Some(text) = new_text {
            tx.set_user_data(row.id, text)?;
        }
        if change.re_run {
            tx.set_cloud_id(row.id, &row.cloud_id)?;
        }
        if (new_text.is_some() || change.re_run || row.spec.rescue != before.rescue)
            && let Some(node) = row.node
            && let Some(node) = tx.node(node)?
        {
            self.put_bundle(tx, &row, &node.name, node.subnet)?;
        }
        let needs_else = resize::differs(&before, &row.spec)
            || row.spec.publish != before.publish
            || row.spec.placement != before.placement;
        if needs_else {
            return self.place_changed(tx, row, cause);
        }
        Ok(row)
    }
}

impl Control {
    /// What waits for a node may fit now; what has one may have freed what others wait for.
    fn place_changed(
        &self,
        tx: &mut WriteTx<'_>,
        row: InstanceRow,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        if row.node.is_some() {
            self.place_waiting(tx)?;
            return Ok(row);
        }
        let capacities = tx.node_capacities()?;
        self.place(tx, row, &capacities, cause)
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
