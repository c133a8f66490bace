//! Whole lists, however many pages waifud gives them in.

use waifud_api::client::{ClientError, ListQuery};
use waifud_api::{Node, Page};

use crate::context::Context;
use crate::failure::Failure;

/// Every page of a list as one.
pub async fn list<T>(
    mut ask: impl AsyncFnMut(&ListQuery) -> Result<Page<T>, ClientError>,
) -> Result<Page<T>, Failure> {
    let mut query = ListQuery::all();
    let mut whole = ask(&query).await?;
    while let Some(cursor) = whole.next.take() {
        query.cursor = Some(cursor);
        let page = ask(&query).await?;
        whole.items.extend(page.items);
        whole.next = page.next;
    }
    Ok(whole)
}

/// Every node.
pub async fn all_nodes(context: &Context) -> Result<Vec<Node>, Failure> {
    let whole = list(async |query| context.client.nodes(query).await).await?;
    Ok(whole.items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_page_is_asked_for_once_and_in_order() {
        let mut asked = Vec::new();
        let whole = list(async |query: &ListQuery| {
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
        assert_eq!((whole.items, whole.next), (vec![1, 2, 3], None));
        let after = |number: u8| Some(format!("after {number}"));
        assert_eq!(asked, [None, after(1), after(2)]);
    }
}
