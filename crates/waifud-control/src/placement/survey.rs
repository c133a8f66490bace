//! The capacity of all nodes, as the API shows it.

use waifud_api::{Capacity, InstanceSize, NodeFit, Survival, UnplacedInstance};
use waifud_store::{InstanceFilter, ReadTx};
use waifud_types::Coded;

use super::capacity::{Fit, Outage, Placed, fit};
use crate::instances::new_spec;
use crate::network;
use crate::{Control, ControlError};

/// Instances read at once.
const PAGE: u32 = 500;

impl Control {
    /// How many more instances of a size fit; with `survive`, also whether the running ones would still fit with that many of
    /// the largest nodes off.
    pub async fn capacity(
        &self,
        size: InstanceSize,
        survive: Option<u32>,
    ) -> Result<Capacity, ControlError> {
        let spec = new_spec::of_size(size)?;
        self.store()
            .read(move |tx| {
                let capacities = tx.node_capacities()?;
                let mut nodes = Vec::with_capacity(capacities.len());
                for capacity in &capacities {
                    let free = network::free_addresses(&tx, &capacity.node)?;
                    let Fit { more, verdict } = fit(&spec, capacity, free);
                    nodes.push(NodeFit {
                        node: capacity.node.name.clone(),
                        more,
                        reason: verdict.to_string(),
                        coded: Coded::encode(&verdict),
                    });
                }
                let survival = match survive {
                    None => None,
                    Some(count) => {
                        let count = usize::try_from(count).unwrap_or(usize::MAX);
                        let outage = Outage::of_largest(count, &capacities, tx.bridges()?);
                        Some(survival(&tx, outage)?)
                    }
                };
                Ok::<_, ControlError>(Capacity {
                    size,
                    more: nodes.iter().map(|node| node.more).sum(),
                    nodes,
                    survival,
                })
            })
            .await
    }
}

/// Reads all instances that have a node, page by page, and places those of the nodes that are assumed to be off.
fn survival(tx: &ReadTx<'_>, mut outage: Outage) -> Result<Survival, ControlError> {
    let mut after = String::new();
    loop {
        let rows = tx.instances(&InstanceFilter::default(), &after, PAGE)?;
        let Some(last) = rows.last() else {
            break;
        };
        last.name.as_str().clone_into(&mut after);
        for row in rows {
            if let Some(node) = row.node {
                outage.add(Placed {
                    name: row.name,
                    node,
                    arch: row.arch,
                    runs: row.spec.run && !row.deleting,
                    spec: row.spec,
                });
            }
        }
    }
    let survival = outage.place();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    Ok(Survival {
        off: survival.off,
        fits: survival.unplaced_count == 0,
        displaced: count(survival.moved.len() + survival.unplaced_count),
        unplaced_count: count(survival.unplaced_count),
        unplaced: survival
            .unplaced
            .into_iter()
            .map(|unplaced| UnplacedInstance {
                name: unplaced.name,
                node: unplaced.node,
                memory_bytes: unplaced.memory,
                placement: unplaced.verdicts,
            })
            .collect(),
    })
}
