//! Clients of the fabric: peers of the mesh that are not nodes, and the network that their packets may come from.

use waifud_api::agent::NodeSlice;
use waifud_network::RemoteSubnet;
use waifud_network::fabric::{AppliedFabric, FabricClient};
use waifud_types::Name;

/// Stands for the clients in messages about their network. Names of nodes are labels, too, but none is wrong here.
const CLIENTS: &str = "fabric-clients";

/// The clients that the mesh lets in.
pub(super) fn clients(slice: &NodeSlice) -> Vec<FabricClient> {
    let clients = slice.clients.iter().flat_map(|all| &all.clients);
    clients
        .map(|client| FabricClient {
            address: client.address,
            public_key: client.public_key.clone(),
        })
        .collect()
}

/// The network of the clients, from which packets may arrive where the fabric lets clients in. Which addresses are in use,
/// and by which key, the mesh decides.
pub(super) fn client_subnet(slice: &NodeSlice, fabric: &AppliedFabric) -> Option<RemoteSubnet> {
    let path = fabric.clients.as_ref()?;
    Some(RemoteSubnet {
        node: CLIENTS.parse::<Name>().ok()?,
        subnet: slice.clients.as_ref()?.subnet,
        fabric: Some(path.interface.clone()),
        shared: !path.dedicated,
    })
}
