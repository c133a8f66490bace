//! Rescue as a change of the spec: boot another template's image with the instance's disks attached, and back.

use waifud_api::{Problem, UpdateInstance};
use waifud_store::{InstanceRow, WriteTx};
use waifud_types::{Reboot, RescueBegin, RescueOrder, RescueSpec};

use crate::ControlError;
use crate::instances::documents;
use crate::instances::problems as instance_problems;
use crate::instances::validate;

/// Applies a rescue request to the spec, and describes the change for the event. The node reboots the instance, or starts
/// it if it is off.
pub(super) fn apply(
    tx: &WriteTx<'_>,
    row: &mut InstanceRow,
    change: &UpdateInstance,
    changes: &mut Vec<String>,
) -> Result<(), ControlError> {
    let Some(order) = &change.rescue else {
        return Ok(());
    };
    if change.run == Some(false) {
        return Err(instance_problems::rescue_with_stop().into());
    }
    let wanted = match order {
        RescueOrder::Begin(begin) => Some(spec(tx, row, begin)?),
        RescueOrder::End => None,
    };
    if wanted == row.spec.rescue {
        return Ok(());
    }
    changes.push(wanted.as_ref().map_or_else(
        || "boot from its own disk requested".to_owned(),
        |rescue| {
            format!(
                "rescue boot from {}@{} requested, with its disks attached",
                rescue.template,
                rescue.image.short()
            )
        },
    ));
    row.spec.rescue = wanted;
    row.spec.run = true;
    row.spec.power.force_off = false;
    if change.reboot.is_none() {
        let floor = tx.epoch_floor()?.0;
        row.spec.power.order_reboot(floor, Reboot::Clean);
    }
    Ok(())
}

/// Allows a reboot in the same request for an instance that is off, since a rescue starts it.
pub(super) fn allow_reboot(row: &mut InstanceRow, change: &UpdateInstance) {
    if change.rescue.is_some() && change.reboot.is_some() {
        row.spec.run = true;
    }
}

fn spec(
    tx: &WriteTx<'_>,
    row: &InstanceRow,
    begin: &RescueBegin,
) -> Result<RescueSpec, ControlError> {
    let found = tx.template_source(&begin.template)?;
    let template =
        found.ok_or_else(|| instance_problems::rescue_unknown_template(&begin.template))?;
    if template.traits.arch != row.arch {
        return Err(instance_problems::rescue_other_arch(
            &template.name,
            &template.traits.arch,
            &row.arch,
        )
        .into());
    }
    if template.image == row.spec.image {
        return Err(instance_problems::rescue_image_identical(&template.name).into());
    }
    let ssh_keys = validate::ssh_keys(&begin.ssh_keys)
        .map_err(|problem: Problem| problem.field("rescue.ssh_keys"))?;
    Ok(RescueSpec {
        template: template.name,
        image: template.image,
        datasource: documents::datasource(template.traits.datasource, &row.spec.nics),
        firmware: template.traits.firmware,
        ssh_keys,
    })
}
