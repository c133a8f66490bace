//! Copies of instances on machines that were removed from the cluster: waifud has given them up. They stay as they are until the
//! machine joins again and an operator adopts or deletes them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use waifud_kit::sync::lock;
use waifud_types::InstanceId;

/// The copies, by the name of their node, and whether their deletion was ordered.
#[derive(Default)]
pub struct Abandoned(Mutex<BTreeMap<(String, InstanceId), bool>>);

impl Abandoned {
    /// A copy is given up.
    pub fn add(&self, node: &str, id: InstanceId) {
        let mut all = lock(&self.0);
        all.entry((node.to_owned(), id)).or_default();
    }

    /// A copy is managed again, or nothing is left of it.
    pub fn remove(&self, node: &str, id: InstanceId) {
        lock(&self.0).remove(&(node.to_owned(), id));
    }

    /// The disks of a machine are lost. Returns the copies that were on it.
    pub fn take(&self, node: &str) -> Vec<InstanceId> {
        let mut all = lock(&self.0);
        let taken = all.keys().filter(|(of, _)| of == node);
        let taken: Vec<InstanceId> = taken.map(|(_, id)| *id).collect();
        all.retain(|(of, _), _| of != node);
        taken
    }

    /// An operator has ordered the deletion of a copy, or may have done so.
    pub fn order_deletion(&self, node: &str, id: InstanceId) {
        if let Some(ordered) = lock(&self.0).get_mut(&(node.to_owned(), id)) {
            *ordered = true;
        }
    }

    /// Whether the node's copy is given up.
    pub fn contains(&self, node: &str, id: InstanceId) -> bool {
        let all = lock(&self.0);
        !all.is_empty() && all.contains_key(&(node.to_owned(), id))
    }

    /// All of them, with whether the deletion was ordered.
    pub fn all(&self) -> Vec<(String, InstanceId, bool)> {
        let all = lock(&self.0);
        let all = all.iter();
        all.map(|((node, id), ordered)| (node.clone(), *id, *ordered))
            .collect()
    }
}
