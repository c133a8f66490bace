//! Lists: pages with a cursor and a revision.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Revision;

/// One page of a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in a stable order.
    pub items: Vec<T>,
    /// The `?cursor=` of the next page; null on the last page.
    pub next: Option<String>,
    /// The revision that the page was read at; a watch from this revision misses no change.
    pub revision: Revision,
}

impl<T> Page<T> {
    /// Converts each item.
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(convert).collect(),
            next: self.next,
            revision: self.revision,
        }
    }
}
