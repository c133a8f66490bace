//! The parts of an update that change wishes and labels: what an owner says about an instance, not what it is made of.

use std::collections::BTreeMap;

use waifud_api::{Problem, UpdateInstance};
use waifud_store::InstanceRow;

use crate::ControlError;
use crate::instances::problems as instance_problems;
use crate::instances::validate;

/// Checks what can be checked without the database.
pub fn check(change: &UpdateInstance) -> Result<(), Problem> {
    let set: BTreeMap<String, String> = change
        .labels
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
        .collect();
    validate::labels("labels", &set)?;
    if let Some(placement) = &change.placement {
        validate::labels("spec.placement.require", &placement.require)?;
    }
    Ok(())
}

/// What happens when it stops, when it starts among others, and where.
pub fn wishes(
    row: &mut InstanceRow,
    change: &UpdateInstance,
    said: &mut Vec<String>,
) -> Result<(), ControlError> {
    if let Some(restart) = change.restart.filter(|r| *r != row.spec.restart) {
        row.spec.restart = restart;
        said.push("another restart policy".to_owned());
    }
    if let Some(priority) = change.priority.filter(|p| *p != row.spec.priority) {
        row.spec.priority = priority;
        said.push("another priority".to_owned());
    }
    if let Some(placement) = &change.placement
        && *placement != row.spec.placement
    {
        if let (Some(there), Some(wanted)) = (&row.node_name, &placement.node)
            && row.node.is_some()
            && there != wanted
        {
            return Err(instance_problems::placed_elsewhere(&row.name, there).into());
        }
        row.spec.placement = placement.clone();
        said.push("other wishes about its node".to_owned());
    }
    Ok(())
}

/// Sets and removes labels. Says whether any changed.
pub fn labels(
    row: &mut InstanceRow,
    change: &UpdateInstance,
    said: &mut Vec<String>,
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
    let changed = row.labels != before;
    if changed {
        said.push("other labels".to_owned());
    }
    Ok(changed)
}
