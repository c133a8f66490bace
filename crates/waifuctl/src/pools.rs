//! Pools together with their nodes, as `pool list` and `df` print them.

use serde::Serialize;
use waifud_api::Node;
use waifud_types::Name;
use waifud_types::node::PoolFacts;

use crate::printer::table;
use crate::text::escape;

/// A pool and its node.
#[derive(Debug, Serialize)]
pub struct NodePool {
    node: Name,
    #[serde(flatten)]
    pool: PoolFacts,
}

pub fn pools_of(nodes: Vec<Node>) -> Vec<NodePool> {
    nodes
        .into_iter()
        .flat_map(|node| {
            let name = node.name;
            node.pools.into_iter().map(move |pool| NodePool {
                node: name.clone(),
                pool,
            })
        })
        .collect()
}

/// Usage in percent.
pub fn percent(pool: &PoolFacts) -> u64 {
    let size = pool.size_bytes.bytes().max(1);
    pool.used_bytes.bytes().saturating_mul(100) / size
}

pub fn shown(pools: &[NodePool]) -> String {
    let rows = pools.iter().map(|NodePool { node, pool }| {
        vec![
            node.to_string(),
            pool.name.to_string(),
            escape(pool.kind.as_str()),
            pool.size_bytes.to_string(),
            pool.used_bytes.to_string(),
            format!("{}%", percent(pool)),
            pool.promised_bytes.to_string(),
            escape(&pool.health),
        ]
    });
    let headers = [
        "NODE", "POOL", "KIND", "SIZE", "USED", "USE%", "PROMISED", "HEALTH",
    ];
    table(&headers, rows.collect())
}
