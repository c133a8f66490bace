//! The parts of an update that change policies (restart, priority, placement) and labels.

use waifud_api::{Problem, UpdateInstance};
use waifud_store::InstanceRow;

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
        row.spec.placement = placement.clone();
        changes.push("placement changed".to_owned());
    }
    Ok(())
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
