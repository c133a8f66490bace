//! The parts of an update that change policies (restart, priority, placement) and labels.

use waifud_api::{Problem, UpdateInstance};
use waifud_store::{InstanceRow, ReadTx};
use waifud_types::Name;
use waifud_types::spec::PlacementSpec;

use crate::ControlError;
use crate::instances::problems as instance_problems;
use crate::instances::validate;

/// Checks the parts that need no database.
pub fn check(change: &UpdateInstance) -> Result<(), Problem> {
    validate::changed_labels(&change.labels)?;
    if let Some(placement) = &change.placement {
        validate::labels("spec.placement.require", &placement.require)?;
    }
    Ok(())
}

/// Changes the restart policy, the start priority and the placement.
pub fn policies(
    tx: &ReadTx<'_>,
    row: &mut InstanceRow,
    change: &UpdateInstance,
    changes: &mut Vec<String>,
) -> Result<(), ControlError> {
    if let Some(restart) = change.restart.filter(|r| *r != row.spec.restart) {
        row.spec.restart = restart;
        changes.push("restart policy changed".to_owned());
    }
    if let Some(priority) = change.priority.filter(|p| *p != row.spec.priority) {
        row.spec.priority = priority;
        changes.push("priority changed".to_owned());
    }
    if let Some(placement) = &change.placement
        && *placement != row.spec.placement
    {
        if let (Some(there), Some(wanted)) = (&row.owner.name, &placement.node)
            && row.node.is_some()
            && there != wanted
        {
            return Err(instance_problems::placed_elsewhere(&row.name, there).into());
        }
        // The instance that it has been near may be deleted meanwhile, and other changes remain possible.
        if placement.near != row.spec.placement.near {
            near(tx, placement, Some(&row.name))?;
        }
        row.spec.placement = placement.clone();
        changes.push("placement changed".to_owned());
    }
    Ok(())
}

/// Refuses a preference for the node of an instance that does not exist, or of the instance itself, if it has a name.
pub fn near(
    tx: &ReadTx<'_>,
    placement: &PlacementSpec,
    name: Option<&Name>,
) -> Result<(), ControlError> {
    let Some(near) = &placement.near else {
        return Ok(());
    };
    if name == Some(near) {
        return Err(instance_problems::near_itself(near).into());
    }
    match tx.instance_named(near.as_str())? {
        Some(row) if !row.deleting => Ok(()),
        _ => Err(instance_problems::near_unknown(near).into()),
    }
}

/// Sets and removes labels; returns whether any changed.
pub fn labels(
    row: &mut InstanceRow,
    change: &UpdateInstance,
    changes: &mut Vec<String>,
) -> Result<bool, ControlError> {
    let before = row.labels.clone();
    for (key, value) in &change.labels {
        match value {
            Some(value) => {
                row.labels.insert(key.clone(), value.clone());
            }
            None => {
                row.labels.remove(key);
            }
        }
    }
    validate::labels("labels", &row.labels)?;
    let differ = row.labels != before;
    if differ {
        changes.push("labels changed".to_owned());
    }
    Ok(differ)
}
