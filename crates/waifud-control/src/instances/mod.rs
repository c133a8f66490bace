//! Instances: one file per operation (create, read, update, delete and so on).
//!
//! Each verb is one job of the database's writer: it is checked, decided, written and recorded as events in one transaction.

mod amend;
pub mod create;
pub(crate) mod defaults;
pub mod delete;
pub mod describe;
pub(crate) mod documents;
mod firewall;
pub(crate) mod generated_names;
pub(crate) mod handover;
pub(crate) mod idempotency;
pub(crate) mod moving;
pub(crate) mod new_spec;
pub(crate) mod nics;
mod power;
pub(crate) mod problems;
pub(crate) mod progress;
pub mod read;
pub mod recreate;
mod rescue;
pub(crate) mod resize;
pub(crate) mod status;
pub mod update;
pub(crate) mod validate;
pub(crate) mod view;
pub mod why;
mod why_cloud_init;

use waifud_store::{InstanceRow, ReadTx, WriteTx};
use waifud_types::Generation;

use crate::{Control, ControlError};

/// The instance with the name or id, or a problem.
pub(crate) fn find(tx: &ReadTx<'_>, name_or_id: &str) -> Result<InstanceRow, ControlError> {
    match tx.find_instance(name_or_id)? {
        Some(row) => Ok(row),
        None => Err(crate::problems::not_found("instance", name_or_id).into()),
    }
}

impl Control {
    /// Finds an instance and changes it in one transaction, if it meets the condition.
    async fn change_instance<T: Send + 'static>(
        &self,
        name_or_id: &str,
        if_match: IfMatch,
        change: impl FnOnce(&Self, &mut WriteTx<'_>, InstanceRow) -> Result<T, ControlError>
        + Send
        + 'static,
    ) -> Result<T, ControlError> {
        let control = self.clone();
        let wanted = name_or_id.to_owned();
        self.store()
            .write(move |tx| {
                let row = find(tx, &wanted)?;
                if_match.check(row.generation)?;
                change(&control, tx, row)
            })
            .await
    }
}

/// The condition of If-Match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum IfMatch {
    /// No condition, or `*`.
    #[default]
    Any,
    /// One of these generations.
    Generations(Vec<Generation>),
}

impl IfMatch {
    fn check(&self, found: Generation) -> Result<(), ControlError> {
        match self {
            Self::Generations(wanted) if !wanted.contains(&found) => {
                Err(problems::stale(found).into())
            }
            _ => Ok(()),
        }
    }
}
