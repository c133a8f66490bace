//! Reading nodes.

use waifud_api::{Node, Page, Unmanaged};
use waifud_store::{NodeRow, ReadTx, StoreError};
use waifud_types::NodeId;

use crate::nodes::view;
use crate::pagination::{Cursor, PageRequest};
use crate::{Control, ControlError, problems};

impl Control {
    /// One node by name or id.
    pub async fn node(&self, name_or_id: &str) -> Result<Node, ControlError> {
        let wanted = name_or_id.to_owned();
        let found = self
            .store()
            .read(move |tx| {
                let row = find_node(&tx, &wanted)?;
                let unmanaged = unmanaged(&tx, &row)?;
                Ok::<_, ControlError>((row, unmanaged, tx.pool_promises()?))
            })
            .await?;
        let (row, unmanaged, promises) = found;
        Ok(view::node(row, unmanaged, &promises, self.contacts()))
    }

    /// A page of nodes, by name.
    pub async fn nodes(&self, page: PageRequest) -> Result<Page<Node>, ControlError> {
        let limit = page.limit;
        let (rows, promises, revision) = self
            .store()
            .read(move |tx| {
                let rows = tx.nodes(page.after(), page.limit + 1)?;
                let rows = rows.into_iter().map(|row| {
                    let unmanaged = unmanaged(&tx, &row)?;
                    Ok::<_, StoreError>((row, unmanaged))
                });
                let rows = rows.collect::<Result<Vec<_>, _>>()?;
                Ok::<_, ControlError>((rows, tx.pool_promises()?, tx.at(tx.newest_event()?)))
            })
            .await?;
        let (rows, next) = Cursor::cut(rows, limit, |(row, _)| row.name.as_str());
        let page = Page {
            items: rows,
            next,
            revision,
        };
        Ok(page.map(|(row, unmanaged)| view::node(row, unmanaged, &promises, self.contacts())))
    }
}

/// The node with the name or id, or a problem.
pub(super) fn find_node(tx: &ReadTx<'_>, wanted: &str) -> Result<NodeRow, ControlError> {
    if let Some(row) = tx.node_named(wanted)? {
        return Ok(row);
    }
    let by_id = match wanted.parse::<NodeId>() {
        Ok(id) => tx.node(id)?,
        Err(_) => None,
    };
    by_id.ok_or_else(|| problems::not_found("node", wanted).into())
}

fn unmanaged(tx: &ReadTx<'_>, row: &NodeRow) -> Result<Vec<Unmanaged>, StoreError> {
    if row.unmanaged.count == 0 {
        return Ok(Vec::new());
    }
    let entries = tx.unmanaged_on(row.id)?.into_iter();
    entries
        .map(|entry| crate::nodes::unmanaged::shown(tx, entry))
        .collect()
}
