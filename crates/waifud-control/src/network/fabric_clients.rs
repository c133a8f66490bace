//! Clients of the fabric: machines that run no waifud and reach guests through the WireGuard mesh.
//!
//! Each client has an address from a network of their own, and a tunnel to each node. Nodes receive the clients with their own
//! configuration. waifud knows only public keys.

use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::Ipv4Net;
use waifud_api::agent::{MeshClient, MeshClients};
use waifud_api::{CreateFabricClient, FabricClient, FabricClientConfig, Page};
use waifud_store::{FabricClientRow, NodeRow, ReadTx, StoreError, WriteTx};
use waifud_types::event::Cause;
use waifud_types::node::feature;
use waifud_types::{FabricClientPeer, FabricKind, Name};

use crate::events::event_builder;
use crate::network::fabric_client_problems as client_problems;
use crate::network::subnet;
use crate::{Control, ControlError, problems};

/// The length of a WireGuard key in bytes.
const KEY_LENGTH: usize = 32;

impl Control {
    /// Adds a client. Nodes in contact let it in at once.
    pub async fn create_fabric_client(
        &self,
        request: CreateFabricClient,
        cause: Cause,
    ) -> Result<FabricClientConfig, ControlError> {
        let name: Name = request
            .name
            .parse()
            .map_err(|error| problems::bad_name("name", &error))?;
        let public_key = checked_key(&request.public_key)?;
        let control = self.clone();
        self.store()
            .write(move |tx| {
                require_mesh(tx)?;
                refuse_taken(tx, &name, &public_key)?;
                let row = FabricClientRow {
                    address: control.free_client_address(tx)?,
                    name,
                    public_key,
                    created_at: control.now(),
                };
                let revision = tx.emit(&control.event(
                    "fabric.client-added",
                    event_builder::waifud(control.store().incarnation()),
                    &cause,
                    format!("{} with address {}", row.name, row.address),
                ))?;
                tx.insert_fabric_client(&row, revision)?;
                configuration(tx, row)
            })
            .await
    }

    /// All clients, sorted by name, on one page.
    pub async fn fabric_clients(&self) -> Result<Page<FabricClient>, ControlError> {
        self.store()
            .read(|tx| {
                let rows = tx.fabric_clients()?.into_iter();
                let clients: Result<Vec<_>, StoreError> = rows.map(|row| shown(&tx, row)).collect();
                Ok(Page {
                    items: clients?,
                    next: None,
                    revision: tx.at(tx.newest_event()?),
                })
            })
            .await
    }

    /// What a client needs for its configuration.
    pub async fn fabric_client(&self, name: &str) -> Result<FabricClientConfig, ControlError> {
        let wanted = name.to_owned();
        self.store()
            .read(move |tx| {
                let row = find(&tx, &wanted)?;
                require_mesh(&tx)?;
                configuration(&tx, row)
            })
            .await
    }

    /// Removes a client. Nodes in contact let it in no longer; others when they return.
    pub async fn delete_fabric_client(&self, name: &str, cause: Cause) -> Result<(), ControlError> {
        let wanted = name.to_owned();
        let control = self.clone();
        self.store()
            .write(move |tx| {
                let row = find(tx, &wanted)?;
                let revision = tx.emit(&control.event(
                    "fabric.client-removed",
                    event_builder::waifud(control.store().incarnation()),
                    &cause,
                    row.name.to_string(),
                ))?;
                tx.remove_fabric_client(&row.name, revision)?;
                Ok(())
            })
            .await
    }

    /// An unused address of the clients' network, which is reserved with the first client.
    fn free_client_address(&self, tx: &mut WriteTx<'_>) -> Result<Ipv4Addr, ControlError> {
        let range = self.config().guest_range;
        let network = if let Some(network) = tx.client_subnet()? {
            network
        } else {
            let nodes = tx.nodes("", u32::MAX)?;
            let routes: Vec<Ipv4Net> = nodes.into_iter().flat_map(|n| n.facts.routes).collect();
            let network = subnet::free_subnet(range, &tx.subnets()?, &routes)
                .ok_or_else(|| client_problems::no_subnet(range))?;
            tx.set_client_subnet(network)?;
            network
        };
        let mut taken: Vec<_> = tx.fabric_clients()?.iter().map(|row| row.address).collect();
        taken.sort_unstable();
        subnet::free_address(network, &taken)
            .ok_or_else(|| client_problems::no_address(network).into())
    }
}

/// The clients as nodes receive them; `None` without a mesh, or without clients.
pub(crate) fn of_nodes(
    tx: &ReadTx<'_>,
    kind: FabricKind,
) -> Result<Option<MeshClients>, StoreError> {
    let Some(subnet) = tx
        .client_subnet()?
        .filter(|_| kind == FabricKind::Wireguard)
    else {
        return Ok(None);
    };
    let clients = tx.fabric_clients()?.into_iter();
    let clients: Vec<_> = clients
        .map(|row| MeshClient {
            name: row.name,
            address: row.address,
            public_key: row.public_key,
        })
        .collect();
    Ok((!clients.is_empty()).then_some(MeshClients { subnet, clients }))
}

/// The key in base64, of which there is one form for each key.
fn checked_key(text: &str) -> Result<String, ControlError> {
    match STANDARD.decode(text) {
        Ok(bytes) if bytes.len() == KEY_LENGTH => Ok(STANDARD.encode(bytes)),
        _ => Err(client_problems::invalid_key().into()),
    }
}

fn require_mesh(tx: &ReadTx<'_>) -> Result<(), ControlError> {
    match tx.fabric()?.kind {
        FabricKind::Wireguard => Ok(()),
        kind => Err(client_problems::no_mesh(kind).into()),
    }
}

/// Refuses a name or a key that is in use. A node with the key of a client would lose its packets to the client.
fn refuse_taken(tx: &ReadTx<'_>, name: &Name, key: &str) -> Result<(), ControlError> {
    // With this key, anyone can compute the secret of the tunnel.
    if STANDARD
        .decode(key)
        .is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    {
        return Err(client_problems::zero_key().into());
    }
    for client in tx.fabric_clients()? {
        if client.name == *name {
            return Err(client_problems::name_taken(name).into());
        }
        if client.public_key == key {
            return Err(client_problems::key_taken(&format!("client {}", client.name)).into());
        }
    }
    let nodes = tx.nodes("", u32::MAX)?;
    let has_key = |node: &NodeRow| {
        node.facts
            .mesh
            .as_ref()
            .is_some_and(|mesh| mesh.public_key == key)
    };
    match nodes.iter().find(|node| has_key(node)) {
        Some(node) => Err(client_problems::key_taken(&format!("node {}", node.name)).into()),
        None => Ok(()),
    }
}

fn find(tx: &ReadTx<'_>, wanted: &str) -> Result<FabricClientRow, ControlError> {
    let mut rows = tx.fabric_clients()?.into_iter();
    rows.find(|row| row.name.as_str() == wanted)
        .ok_or_else(|| client_problems::unknown(wanted).into())
}

fn shown(tx: &ReadTx<'_>, row: FabricClientRow) -> Result<FabricClient, StoreError> {
    Ok(FabricClient {
        newer_nodes: tx.nodes_joined_after(row.created_at)?,
        name: row.name,
        address: row.address,
        public_key: row.public_key,
        created_at: row.created_at,
    })
}

fn configuration(
    tx: &ReadTx<'_>,
    row: FabricClientRow,
) -> Result<FabricClientConfig, ControlError> {
    let nodes = tx.nodes("", u32::MAX)?.into_iter();
    let mut moved = tx.moved_addresses()?;
    let peers = nodes.map(|node| {
        let moved = moved.remove(&node.id).unwrap_or_default();
        peer(node, moved)
    });
    Ok(FabricClientConfig {
        client: shown(tx, row)?,
        peers: peers.collect(),
    })
}

/// A node as the peer of a client, with the addresses of guests that moved there.
fn peer(node: NodeRow, moved: Vec<Ipv4Addr>) -> FabricClientPeer {
    let supports_clients = node.facts.has(feature::FABRIC_CLIENTS);
    let (public_key, endpoints) = match node.facts.mesh {
        Some(mesh) => (Some(mesh.public_key), mesh.endpoints),
        None => (None, Vec::new()),
    };
    FabricClientPeer {
        node: node.name,
        public_key,
        endpoints,
        allowed: std::iter::once(node.subnet)
            .chain(moved.into_iter().map(Ipv4Net::from))
            .collect(),
        supports_clients,
    }
}
