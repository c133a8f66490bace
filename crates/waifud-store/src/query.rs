//! Lists of instances: filters, and pages by name.

use rusqlite::ToSql;
use waifud_types::InstanceState;

use crate::instances::{SELECT, instance};
use crate::{InstanceRow, ReadTx, StoreError};

/// A filter for instances; all conditions must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InstanceFilter {
    /// In one of these states; if empty, in any state.
    pub states: Vec<InstanceState>,
    /// On the node with this name.
    pub node: Option<String>,
    /// Of the template with this name.
    pub template: Option<String>,
    /// With exactly this name.
    pub name: Option<String>,
    /// With these labels; a label without a value matches any value.
    pub labels: Vec<(String, Option<String>)>,
}

impl ReadTx<'_> {
    /// Matching instances by name, after `after`, at most `limit`.
    pub fn instances(
        &self,
        filter: &InstanceFilter,
        after: &str,
        limit: u32,
    ) -> Result<Vec<InstanceRow>, StoreError> {
        let mut sql = format!("{SELECT} WHERE i.name > ?");
        let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(after.to_owned())];
        let mut and = |condition: &str, given: &[&String]| {
            sql.push_str(" AND ");
            sql.push_str(condition);
            for value in given {
                values.push(Box::new((*value).clone()));
            }
        };
        if !filter.states.is_empty() {
            let any: Vec<_> = filter
                .states
                .iter()
                .map(|state| state_condition(*state))
                .collect();
            and(&format!("({})", any.join(" OR ")), &[]);
        }
        if let Some(node) = &filter.node {
            and("n.name = ?", &[node]);
        }
        if let Some(template) = &filter.template {
            and("i.template = ?", &[template]);
        }
        if let Some(name) = &filter.name {
            and("i.name = ?", &[name]);
        }
        for (key, value) in &filter.labels {
            match value {
                Some(value) => and(&has_label("= ? AND l.value = ?"), &[key, value]),
                None => and(&has_label("= ?"), &[key]),
            }
        }
        sql.push_str(" ORDER BY i.name LIMIT ?");
        values.push(Box::new(limit));
        self.all(&sql, rusqlite::params_from_iter(values), instance)
    }
}

fn has_label(condition: &str) -> String {
    format!(
        "EXISTS (SELECT 1 FROM instance_labels l WHERE l.instance = i.id AND l.key {condition})"
    )
}

/// `unknown` is never stored: it is the state of the instances of an unreachable node.
fn state_condition(state: InstanceState) -> String {
    match state {
        InstanceState::Unknown => "(n.reachable = 0 AND i.deleting = 0)".to_owned(),
        InstanceState::Deleting => "i.deleting = 1".to_owned(),
        other => format!(
            "(i.state = '{}' AND i.deleting = 0 AND coalesce(n.reachable, 1) = 1)",
            other.as_str()
        ),
    }
}
