//! `waifuctl network list`

use jiff::Timestamp;
use waifud_api::Network;

use super::{bridge, usable};
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::printer::table;
use crate::text::age;

/// Prints all networks.
pub async fn run(context: &Context) -> Result<(), Failure> {
    let page = pagination::list(async |query| context.client.networks(query).await).await?;
    context.printer.print(&page, || {
        let now = Timestamp::now();
        let rows = page.items.iter().map(|network| row(network, now));
        table(
            &["NAME", "BRIDGE", "NODES", "USED BY", "AGE"],
            rows.collect(),
        )
    })
}

fn row(network: &Network, now: Timestamp) -> Vec<String> {
    vec![
        network.name.to_string(),
        bridge(network),
        usable(network),
        network.used_by.to_string(),
        network
            .created_at
            .map_or_else(|| "-".to_owned(), |at| age(at, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::lan;
    use super::*;

    #[test]
    fn a_row_names_the_nodes_that_have_the_bridge() {
        let network = lan(&[
            ("alder", None),
            ("birch", Some("has no bridge br0")),
            ("cedar", None),
        ]);
        let row = row(&network, Timestamp::UNIX_EPOCH);
        assert_eq!(row, ["lan", "br0", "alder,cedar", "2", "-"]);
    }
}
