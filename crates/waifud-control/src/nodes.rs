//! Nodes as people see them.

use waifud_api::{Node, Page};
use waifud_types::NodeId;

use crate::page::{Cursor, PageRequest};
use crate::{Control, ControlError, problems, view};

impl Control {
    /// One node by name or id.
    pub async fn node(&self, name_or_id: &str) -> Result<Node, ControlError> {
        let wanted = name_or_id.to_owned();
        let found = self
            .shared
            .store
            .read(move |tx| {
                let row = match tx.node_named(&wanted)? {
                    Some(row) => Some(row),
                    None => match wanted.parse::<NodeId>() {
                        Ok(id) => tx.node(id)?,
                        Err(_) => None,
                    },
                };
                Ok::<_, ControlError>((row, tx.pool_promises()?))
            })
            .await?;
        match found {
            (Some(row), promises) => Ok(view::node(row, &promises, &self.shared.live)),
            (None, _) => Err(problems::not_found("node", name_or_id).into()),
        }
    }

    /// A page of nodes, by name.
    pub async fn nodes(&self, page: PageRequest) -> Result<Page<Node>, ControlError> {
        let limit = page.limit;
        let (rows, promises, revision) = self
            .shared
            .store
            .read(move |tx| {
                let rows = tx.nodes(page.after(), page.limit + 1)?;
                Ok::<_, ControlError>((rows, tx.pool_promises()?, tx.at(tx.newest_event()?)))
            })
            .await?;
        let (rows, next) = Cursor::cut(rows, limit, |row| row.name.as_str());
        Ok(Page {
            items: rows
                .into_iter()
                .map(|row| view::node(row, &promises, &self.shared.live))
                .collect(),
            next,
            revision,
        })
    }
}
