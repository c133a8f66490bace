//! The fabric of the cluster.
//!
//! Until an administrator chooses one, a single node has none, and several nodes have a WireGuard mesh. Nodes receive the
//! fabric with their own configuration, and what they need of each other as peers.

use ipnet::Ipv4Net;
use waifud_api::{Fabric, FabricNode, FabricRoute, SetFabric};
use waifud_store::{NodeRow, ReadTx};
use waifud_types::FabricKind;
use waifud_types::event::Cause;
use waifud_types::fabric::next_hop;

use crate::events::event_builder;
use crate::network::problems as network_problems;
use crate::{Control, ControlError};

impl Control {
    /// The fabric, and what the nodes report for it.
    pub async fn fabric(&self) -> Result<Fabric, ControlError> {
        self.store().read(|tx| shown(&tx)).await
    }

    /// Chooses the fabric. Choosing the one in use keeps it when the default changes.
    pub async fn set_fabric(
        &self,
        request: SetFabric,
        cause: Cause,
    ) -> Result<Fabric, ControlError> {
        let kind: FabricKind = request
            .kind
            .parse()
            .map_err(|error| network_problems::unknown_fabric(&error))?;
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let before = tx.fabric()?;
                if before.configured != Some(kind) {
                    let revision = tx.emit(&control.event(
                        "fabric.changed",
                        event_builder::waifud(control.store().incarnation()),
                        &cause,
                        format!("{kind}, before: {}", before.kind),
                    ))?;
                    tx.set_fabric(kind, revision)?;
                }
                shown(tx)
            })
            .await
    }
}

fn shown(tx: &ReadTx<'_>) -> Result<Fabric, ControlError> {
    let row = tx.fabric()?;
    let nodes = tx.nodes("", u32::MAX)?;
    let moved = tx.moved_addresses()?;
    let routes = nodes.iter().flat_map(|node| {
        let moved = moved.get(&node.id).into_iter().flatten();
        let destinations = std::iter::once(node.subnet).chain(moved.copied().map(Ipv4Net::from));
        destinations.filter_map(|destination| route(node, destination))
    });
    Ok(Fabric {
        kind: row.kind,
        configured: row.configured,
        routes: routes.collect(),
        nodes: nodes.into_iter().map(node).collect(),
    })
}

fn node(row: NodeRow) -> FabricNode {
    let (public_key, endpoints) = match row.facts.mesh {
        Some(mesh) => (Some(mesh.public_key), mesh.endpoints),
        None => (None, Vec::new()),
    };
    FabricNode {
        node: row.name,
        subnet: row.subnet,
        public_key,
        endpoints,
        mesh_backend: row.facts.mesh_backend,
    }
}

fn route(row: &NodeRow, destination: Ipv4Net) -> Option<FabricRoute> {
    Some(FabricRoute {
        destination,
        via: next_hop(&row.facts.mesh.as_ref()?.endpoints)?,
        node: row.name.clone(),
    })
}
