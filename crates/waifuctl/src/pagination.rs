//! Reads complete lists, page by page.

use waifud_api::client::{ClientError, ListQuery};
use waifud_api::{Node, Page};

use crate::context::Context;
use crate::failure::Failure;

/// Reads all pages of a list.
pub async fn list<T>(
    mut ask: impl AsyncFnMut(&ListQuery) -> Result<Page<T>, ClientError>,
) -> Result<Page<T>, Failure> {
    let mut query = ListQuery::all();
    let mut all = ask(&query).await?;
    while let Some(cursor) = all.next.take() {
        query.cursor = Some(cursor);
        let page = ask(&query).await?;
        all.items.extend(page.items);
        all.next = page.next;
    }
    Ok(all)
}

/// Reads all nodes.
pub async fn all_nodes(context: &Context) -> Result<Vec<Node>, Failure> {
    let all = list(async |query| context.client.nodes(query).await).await?;
    Ok(all.items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_page_is_requested_once_and_in_order() {
        let mut asked = Vec::new();
        let all = list(async |query: &ListQuery| {
            asked.push(query.cursor.clone());
            let number = asked.len();
            Ok(Page {
                items: vec![number],
                next: (number < 3).then(|| format!("after {number}")),
                revision: waifud_types::Revision {
                    incarnation: waifud_types::Incarnation(7),
                    number: 9,
                },
            })
        })
        .await
        .unwrap();
        assert_eq!((all.items, all.next), (vec![1, 2, 3], None));
        let after = |number: u8| Some(format!("after {number}"));
        assert_eq!(asked, [None, after(1), after(2)]);
    }
}
