//! Lists: pages with a cursor, and the revision that they show.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use waifud_types::Revision;

/// One page of a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in a stable order.
    pub items: Vec<T>,
    /// Pass as `?cursor=` for the next page; null on the last.
    pub next: Option<String>,
    /// The revision that the page was read at: watch from here to miss nothing.
    pub revision: Revision,
}
