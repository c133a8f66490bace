//! Pages of the history.

use waifud_api::Page;
use waifud_store::{EventFilter, ReadTx};
use waifud_types::Revision;
use waifud_types::event::Event;

use super::problems;
use crate::{Control, ControlError};

impl Control {
    /// A page of events after a revision; without one, the newest events.
    pub(crate) async fn events(
        &self,
        since: Option<Revision>,
        filter: EventFilter,
        limit: u32,
    ) -> Result<Page<Event>, ControlError> {
        self.store()
            .read(move |tx| {
                let revision = tx.at(tx.newest_event()?);
                let Some(since) = since else {
                    return Ok(Page {
                        items: tx.newest_events(&filter, limit)?,
                        next: None,
                        revision,
                    });
                };
                let mut items = tx.events(resume(&tx, since)?, &filter, limit + 1)?;
                let more = items.len() > limit as usize;
                items.truncate(limit as usize);
                let next = items
                    .last()
                    .filter(|_| more)
                    .map(|event| event.revision.to_string());
                Ok(Page {
                    items,
                    next,
                    revision,
                })
            })
            .await
    }
}

/// The number to resume after, if the history is complete since then.
pub(super) fn resume(tx: &ReadTx<'_>, since: Revision) -> Result<u64, ControlError> {
    let newest = tx.at(tx.newest_event()?);
    let oldest = tx.oldest_resumable()?;
    if since.incarnation != newest.incarnation
        || since.number > newest.number
        || since.number < oldest
    {
        return Err(problems::revision_gone(tx.at(oldest)).into());
    }
    Ok(since.number)
}
