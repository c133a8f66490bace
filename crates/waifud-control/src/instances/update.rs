//! Update: absent fields stay unchanged, and each change of the spec increments the generation.

use waifud_api::{Instance, UpdateInstance};
use waifud_store::{InstanceRow, WriteTx};
use waifud_types::event::Cause;
use waifud_types::status::StoppedBy;
use waifud_types::{Digest, InstanceState};

use super::{IfMatch, amend, firewall, power, rescue, resize};
use crate::instances::problems as instance_problems;
use crate::instances::validate::{self, CheckedUserData};
use crate::network;
use crate::{Control, ControlError};

fn rescue_image(row: &InstanceRow) -> Option<Digest> {
    row.spec.rescue.as_ref().map(|rescue| rescue.image)
}

impl Control {
    /// Changes an instance's spec and labels. New user-data keeps cloud-init's instance-id, so the next boot reads it
    /// without repeating per-instance steps, unless `re_run` is set. Labels are not part of the spec and do not change its
    /// generation.
    pub async fn update_instance(
        &self,
        name_or_id: &str,
        change: UpdateInstance,
        if_match: IfMatch,
        cause: Cause,
    ) -> Result<Instance, ControlError> {
        let user_data = change.user_data.clone().map(validate::user_data);
        let user_data = user_data.transpose()?;
        amend::check(&change)?;
        let (updated, former) = self
            .change_instance(name_or_id, if_match, move |control, tx, row| {
                if row.deleting {
                    return Err(instance_problems::deleting(&row.name).into());
                }
                let before = rescue_image(&row);
                let row = control.update_in(tx, row, &change, user_data.as_ref(), &cause)?;
                let former = before.filter(|image| rescue_image(&row) != Some(*image));
                Ok((control.instance_view(row), former))
            })
            .await?;
        // An ended rescue may have been the last user of its image.
        self.images().collect(former).await;
        Ok(updated)
    }

    fn update_in(
        &self,
        tx: &mut WriteTx<'_>,
        mut row: InstanceRow,
        change: &UpdateInstance,
        user_data: Option<&CheckedUserData>,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        let before = row.spec.clone();
        let mut changes = Vec::new();
        rescue::allow_reboot(&mut row, change);
        let floor = tx.epoch_floor()?.0;
        power::apply(&row.name, &mut row.spec, floor, change, &mut changes)?;
        rescue::apply(tx, &mut row, change, &mut changes)?;
        resize::apply(&mut row.spec, change, &mut changes)?;
        if let Some(protected) = change.protected.filter(|p| *p != row.spec.protected) {
            row.spec.protected = protected;
            let word = if protected {
                "protected"
            } else {
                "protection removed"
            };
            changes.push(word.to_owned());
        }
        if let Some(publish) = &change.publish {
            let publish = network::publish(publish)?;
            if publish != row.spec.publish {
                network::check_publish(&row.spec, &publish)?;
                network::reserve_ports(tx, &row, &publish)?;
                row.spec.publish = publish;
                changes.push("published ports changed".to_owned());
            }
        }
        if let Some(wanted) = &change.firewall {
            firewall::apply(tx, &mut row, wanted, &mut changes)?;
        }
        if let Some(checked) = user_data {
            row.spec.user_data.clone_from(&checked.facts);
            if row.spec.user_data != before.user_data {
                changes.push("user-data changed, effective at the next boot".to_owned());
            }
        }
        amend::policies(tx, &mut row, change, &mut changes)?;
        let labels_changed = amend::labels(&mut row, change, &mut changes)?;
        if change.re_run {
            row.cloud_id = waifud_cloudinit::next_instance_id(row.id, &row.cloud_id);
            changes.push("the next boot repeats the first-boot steps".to_owned());
        }
        // An instance whose guest powered itself off is started by a new generation, although its spec already says run.
        let start_again = change.run == Some(true) && row.spec == before && stays_off(&row);
        if start_again {
            changes.push("start requested again".to_owned());
        }
        let spec_changed = row.spec != before || start_again || change.re_run;
        if !spec_changed && !labels_changed {
            return Ok(row);
        }
        if resize::differs(&before, &row.spec)
            || row.spec.publish != before.publish
            || row.spec.rescue != before.rescue
            || row.spec.placement.node != before.placement.node
        {
            super::moving::require_not_moving(&row)?;
        }
        if row.spec.publish != before.publish {
            super::handover::require_not_releasing(tx, &row)?;
        }
        if resize::differs(&before, &row.spec) {
            resize::reserve(tx, &row, &before)?;
        }
        if spec_changed {
            row.generation = row.generation.next();
        }
        let event = self.instance_event("instance.updated", &row, cause, changes.join(", "));
        let revision = tx.emit(&event)?;
        if labels_changed {
            tx.set_labels(row.id, &row.labels)?;
        }
        if !spec_changed {
            return Ok(row);
        }
        tx.set_spec(row.id, &row.spec, row.generation, revision)?;
        let new_user_data = (row.spec.user_data != before.user_data)
            .then_some(user_data)
            .flatten();
        if let Some(checked) = new_user_data {
            tx.set_user_data(row.id, &checked.text)?;
        }
        if change.re_run {
            tx.set_cloud_id(row.id, &row.cloud_id)?;
        }
        if (new_user_data.is_some() || change.re_run || row.spec.rescue != before.rescue)
            && let Some(node) = row.node
            && let Some(node) = tx.node(node)?
        {
            self.put_bundle(tx, &row, &node)?;
        }
        let affects_placement = resize::differs(&before, &row.spec)
            || row.spec.publish != before.publish
            || row.spec.placement != before.placement
            || row.spec.firewall.is_open() != before.firewall.is_open();
        if affects_placement {
            return self.place_changed(tx, row, cause);
        }
        Ok(row)
    }
}

impl Control {
    /// Places the instance if it waits for a node; otherwise retries others, for which it may have freed something.
    pub(super) fn place_changed(
        &self,
        tx: &mut WriteTx<'_>,
        row: InstanceRow,
        cause: &Cause,
    ) -> Result<InstanceRow, ControlError> {
        if row.node.is_some() {
            self.place_waiting(tx)?;
            return Ok(row);
        }
        if row.lost_node.is_some() {
            // Only a request to recreate it gives it new disks.
            return Ok(row);
        }
        let capacities = tx.node_capacities()?;
        self.place(tx, row, &capacities, cause)
    }
}

/// Whether the instance is off although it should run, and its node knows the current generation.
fn stays_off(row: &InstanceRow) -> bool {
    let status = &row.status;
    status.state == InstanceState::Stopped
        && status.observed_generation == Some(row.generation)
        && matches!(
            status.stopped_by,
            Some(StoppedBy::Guest | StoppedBy::Crash | StoppedBy::Outside)
        )
}
