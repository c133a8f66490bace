//! Networks: names for bridges that nodes already have, in addition to `default`, which every node routes itself.
//!
//! A network is a name for a bridge, which has the same name on all nodes that have it. waifud never creates or changes a
//! bridge; nodes report their bridges and which of them are unsuitable.

use waifud_api::{CreateNetwork, Network, NetworkNode, Page, Problem};
use waifud_store::{NetworkRow, NodeCapacity, ReadTx, StoreError, Taken};
use waifud_types::event::Cause;
use waifud_types::node::NodeFacts;
use waifud_types::{Coded, Name, Verdict, VlanId};

use crate::events::event_builder;
use crate::network::problems as network_problems;
use crate::pagination::{self, PageRequest};
use crate::{Control, ControlError, problems};

/// The maximum length of an interface name in Linux: `IFNAMSIZ` (16) minus the terminating zero.
const INTERFACE_MAX: usize = 15;
/// The number of instances named in a refusal.
const USERS_SHOWN: u32 = 3;

impl Control {
    /// Adds a network.
    pub async fn create_network(
        &self,
        request: CreateNetwork,
        cause: Cause,
    ) -> Result<Network, ControlError> {
        let name: Name = request
            .name
            .parse()
            .map_err(|error| problems::bad_name("name", &error))?;
        let bridge = bridge_name(&request.bridge)?;
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let capacities = tx.node_capacities()?;
                refuse_unsuitable(&bridge, &capacities)?;
                tx.insert_network(&name, &bridge, control.now())
                    .map_err(|error| match error {
                        StoreError::Taken(Taken::NetworkName) => {
                            network_problems::network_name_taken(&name).into()
                        }
                        StoreError::Taken(Taken::Bridge) => bridge_taken(tx, &bridge),
                        other => ControlError::from(other),
                    })?;
                tx.emit(&control.event(
                    "network.created",
                    event_builder::network(&name),
                    &cause,
                    format!("bridge {bridge} on the nodes that have it"),
                ))?;
                Ok(shown(find(tx, name.as_str())?, &capacities))
            })
            .await
    }

    /// One network.
    pub async fn network(&self, name: &str) -> Result<Network, ControlError> {
        let wanted = name.to_owned();
        self.store()
            .read(move |tx| Ok(shown(find(&tx, &wanted)?, &tx.node_capacities()?)))
            .await
    }

    /// A page of networks, sorted by name.
    pub async fn networks(&self, page: PageRequest) -> Result<Page<Network>, ControlError> {
        let rows = |tx: &ReadTx<'_>, after: &str, limit| {
            let capacities = tx.node_capacities()?;
            let rows = tx.networks(after, limit)?.into_iter();
            Ok::<Vec<Network>, StoreError>(rows.map(|row| shown(row, &capacities)).collect())
        };
        pagination::read(self.store(), page, rows, |network| network.name.as_str()).await
    }

    /// Deletes an unused network. The bridges stay.
    pub async fn delete_network(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        let wanted = name.to_owned();
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let row = find(tx, &wanted)?;
                if row.bridge.is_none() {
                    return Err(network_problems::default_network_is_permanent().into());
                }
                if row.used_by > 0 {
                    let users = tx.network_users(&row.name, USERS_SHOWN)?;
                    return Err(
                        network_problems::network_in_use(&row.name, row.used_by, &users).into(),
                    );
                }
                tx.remove_network(&row.name)?;
                tx.emit(&control.event(
                    "network.deleted",
                    event_builder::network(&row.name),
                    &cause,
                    "deleted; the bridges stay",
                ))?;
                Ok(())
            })
            .await
    }
}

fn find(tx: &ReadTx<'_>, wanted: &str) -> Result<NetworkRow, ControlError> {
    tx.network(wanted)?
        .ok_or_else(|| problems::not_found("network", wanted).into())
}

fn bridge_taken(tx: &ReadTx<'_>, bridge: &str) -> ControlError {
    let owner = tx.bridges().ok().and_then(|all| {
        let mut all = all.into_iter();
        all.find(|(_, other)| other == bridge)
    });
    network_problems::bridge_taken(bridge, owner.map(|(name, _)| name).as_ref()).into()
}

/// Checks a bridge name: valid for the kernel (`dev_valid_name`), and usable without quoting.
fn bridge_name(text: &str) -> Result<String, Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let leads = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !leads || text.len() > INTERFACE_MAX || !text.chars().all(allowed) {
        return Err(network_problems::bad_bridge(text, INTERFACE_MAX));
    }
    if text.starts_with(waifud_types::TapName::PREFIX) {
        return Err(network_problems::unsuitable_bridge(
            text,
            "has a name that is reserved for the ports of guests",
        ));
    }
    Ok(text.to_owned())
}

/// Refuses a bridge that is unsuitable on all nodes that have it.
fn refuse_unsuitable(bridge: &str, capacities: &[NodeCapacity]) -> Result<(), Problem> {
    let nodes = || capacities.iter().map(|capacity| &capacity.node);
    if nodes().any(|node| unusable(&node.facts, bridge, None).is_none()) {
        return Ok(());
    }
    let unfit = nodes().find_map(|node| Some((node, node.facts.unfit_bridges.get(bridge)?)));
    match unfit {
        Some((node, why)) => Err(network_problems::unsuitable_bridge(
            bridge,
            &format!("of {} {why}", node.name),
        )),
        None => Ok(()),
    }
}

/// Why guests of a node cannot use the bridge, or not in that VLAN; `None` if they can.
pub(crate) fn unusable(facts: &NodeFacts, bridge: &str, vlan: Option<VlanId>) -> Option<Verdict> {
    let bridge = bridge.to_owned();
    if let Some(because) = facts.unfit_bridges.get(&bridge) {
        let because = because.clone();
        return Some(Verdict::UnsuitableBridge { bridge, because });
    }
    if !facts.bridges.contains(&bridge) {
        return Some(Verdict::NoBridge { bridge });
    }
    let is_unaware = vlan.is_some() && !facts.vlan_bridges.contains(&bridge);
    is_unaware.then_some(Verdict::BridgeWithoutVlans { bridge })
}

fn shown(row: NetworkRow, capacities: &[NodeCapacity]) -> Network {
    let nodes = capacities.iter().map(|capacity| {
        let facts = &capacity.node.facts;
        let verdict = row
            .bridge
            .as_deref()
            .and_then(|name| unusable(facts, name, None));
        NetworkNode {
            node: capacity.node.name.clone(),
            usable: verdict.is_none(),
            reason: verdict.as_ref().map(ToString::to_string),
            cause: verdict.as_ref().map(Coded::encode),
        }
    });
    Network {
        nodes: nodes.collect(),
        name: row.name,
        bridge: row.bridge,
        used_by: row.used_by,
        created_at: row.created_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_names_are_valid_interface_names() {
        for good in ["br0", "vmbr0", "br-lan", "br0.20", "waifu_lan", "a"] {
            assert!(bridge_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-br",
            "br 0",
            "br/0",
            "br\"0",
            "br0\n",
            "sixteen-letters-",
            "brücke",
            "wf-0123",
        ] {
            assert!(bridge_name(bad).is_err(), "{bad:?}");
        }
    }
}
