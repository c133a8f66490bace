//! Networks: named bridges that hosts already have, beside `default`, which every node routes by itself.
//!
//! A network is a name for a bridge, the same on every node that has it. Nothing here reaches a host: waifud never
//! makes, renames or re-addresses a bridge; nodes say which ones they have and which of them can't be used.

use waifud_api::{CreateNetwork, Network, NetworkNode, Page, Problem};
use waifud_store::{NetworkRow, NodeCapacity, ReadTx, StoreError, Taken};
use waifud_types::Name;
use waifud_types::node::NodeFacts;

use crate::auth::principal::Cause;
use crate::events::event_builder;
use crate::network::problems as network_problems;
use crate::pagination::{Cursor, PageRequest};
use crate::{Control, ControlError, problems};

/// The name of an interface in Linux: `IFNAMSIZ` (16) less the closing zero.
const INTERFACE_MAX: usize = 15;
/// How the verdict on a node without the bridge begins.
const LACKS: &str = "has no bridge";
/// How many of its users a refusal names.
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
        self.shared
            .store
            .write(move |tx| {
                let capacities = tx.node_capacities()?;
                refuse_unfit(&bridge, &capacities)?;
                tx.insert_network(&name, &bridge, control.now())
                    .map_err(|error| match error {
                        StoreError::Taken(Taken::NetworkName) => {
                            network_problems::network_name_taken(&name).into()
                        }
                        StoreError::Taken(Taken::Bridge) => bridge_taken(tx, &bridge),
                        other => ControlError::from(other),
                    })?;
                tx.emit(&event_builder::event(
                    control.now(),
                    "network.created",
                    event_builder::network(&name),
                    &cause,
                    format!("the bridge {bridge} of nodes that have one"),
                ))?;
                Ok(shown(find(tx, name.as_str())?, &capacities))
            })
            .await
    }

    /// One network.
    pub async fn network(&self, name: &str) -> Result<Network, ControlError> {
        let wanted = name.to_owned();
        self.shared
            .store
            .read(move |tx| Ok(shown(find(&tx, &wanted)?, &tx.node_capacities()?)))
            .await
    }

    /// A page of networks, by name.
    pub async fn networks(&self, page: PageRequest) -> Result<Page<Network>, ControlError> {
        let limit = page.limit;
        let (rows, capacities, revision) = self
            .shared
            .store
            .read(move |tx| {
                let rows = tx.networks(page.after(), page.limit + 1)?;
                Ok::<_, ControlError>((rows, tx.node_capacities()?, tx.at(tx.newest_event()?)))
            })
            .await?;
        let (rows, next) = Cursor::cut(rows, limit, |row| row.name.as_str());
        Ok(Page {
            items: rows
                .into_iter()
                .map(|row| shown(row, &capacities))
                .collect(),
            next,
            revision,
        })
    }

    /// Forgets a network that no instance uses. Bridges stay as they are.
    pub async fn delete_network(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        let wanted = name.to_owned();
        let control = self.clone();
        self.shared
            .store
            .write(move |tx| {
                let row = find(tx, &wanted)?;
                if row.bridge.is_none() {
                    return Err(network_problems::default_network_stays().into());
                }
                if row.used_by > 0 {
                    let users = tx.network_users(&row.name, USERS_SHOWN)?;
                    return Err(
                        network_problems::network_in_use(&row.name, row.used_by, &users).into(),
                    );
                }
                tx.remove_network(&row.name)?;
                tx.emit(&event_builder::event(
                    control.now(),
                    "network.deleted",
                    event_builder::network(&row.name),
                    &cause,
                    "no instance used it; the bridge stays as it is",
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

/// As the kernel takes names (`dev_valid_name`), and such that it can be written anywhere without quoting.
fn bridge_name(text: &str) -> Result<String, Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let leads = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !leads || text.len() > INTERFACE_MAX || !text.chars().all(plain) {
        return Err(network_problems::bad_bridge(text, INTERFACE_MAX));
    }
    if text.starts_with(waifud_types::TapName::PREFIX) {
        return Err(network_problems::bridge_unfit(
            text,
            "has a name that is kept for guests' ports",
        ));
    }
    Ok(text.to_owned())
}

/// Refuses a bridge that nodes know of, and that none of them can use.
fn refuse_unfit(bridge: &str, capacities: &[NodeCapacity]) -> Result<(), Problem> {
    let nodes = || capacities.iter().map(|capacity| &capacity.node);
    if nodes().any(|node| usable(&node.facts, bridge).is_ok()) {
        return Ok(());
    }
    let unfit = nodes().find_map(|node| Some((node, node.facts.unfit_bridges.get(bridge)?)));
    match unfit {
        Some((node, why)) => Err(network_problems::bridge_unfit(
            bridge,
            &format!("of {} {why}", node.name),
        )),
        None => Ok(()),
    }
}

/// Whether guests of a node can be on the bridge; else why not, such as "has no bridge br0".
pub(crate) fn usable(facts: &NodeFacts, bridge: &str) -> Result<(), String> {
    if let Some(why) = facts.unfit_bridges.get(bridge) {
        return Err(format!("can't use {bridge}, which {why}"));
    }
    if facts.bridges.iter().any(|has| has == bridge) {
        return Ok(());
    }
    Err(format!("{LACKS} {bridge}"))
}

/// Whether a verdict on a node says that a bridge is what it lacks.
pub(crate) fn lacks_a_bridge(verdict: &str) -> bool {
    verdict.starts_with(LACKS)
}

fn shown(row: NetworkRow, capacities: &[NodeCapacity]) -> Network {
    let nodes = capacities.iter().map(|capacity| {
        let reason = match &row.bridge {
            None => None,
            Some(bridge) => usable(&capacity.node.facts, bridge).err(),
        };
        NetworkNode {
            node: capacity.node.name.clone(),
            usable: reason.is_none(),
            reason,
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
    fn a_bridge_is_named_as_the_kernel_names_interfaces() {
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
