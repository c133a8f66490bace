//! What an instance wants of its node's network: an address, and ports of the node that lead to it.
//!
//! Checked in two parts: what the request alone can tell, and, in the transaction that writes it down, what others
//! have.

use std::net::Ipv4Addr;

use waifud_api::{CreateNic, Problem, Publish};
use waifud_store::{InstanceRow, NodeRoom, NodeRow, ReadTx, StoreError, Taken, WriteTx};
use waifud_types::spec::{InstanceSpec, NicSpec, Protocol, PublishSpec};
use waifud_types::{MacAddr, Name};

use crate::problems::network as problems;
use crate::{ControlError, subnet};

/// The network that each node routes.
pub const DEFAULT: &str = "default";

/// Published ports of one instance at most.
const PUBLISHED_MAX: usize = 256;

/// What waifud itself listens on, or may: API, peer port, mesh, metadata.
const OWN_PORTS: [(Protocol, u16); 4] = [
    (Protocol::Tcp, 7373),
    (Protocol::Tcp, 7374),
    (Protocol::Udp, 51820),
    (Protocol::Udp, 51821),
];

/// A nic as it is wished, checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WantedNic {
    /// A fixed MAC address.
    pub mac: Option<MacAddr>,
    /// A fixed address.
    pub address: Option<Ipv4Addr>,
}

/// Checks the wished nics. `mac` is the older way to say the first one's.
pub fn nic(nics: &[CreateNic], mac: Option<MacAddr>) -> Result<WantedNic, Problem> {
    let nic = match nics {
        [] => {
            return Ok(WantedNic { mac, address: None });
        }
        [nic] => nic,
        [_, ..] => return Err(crate::problems::too_many("spec.nics", 1)),
    };
    if mac.is_some() && nic.mac.is_some() {
        return Err(problems::mac_twice());
    }
    if let Some(network) = nic.network.as_deref().filter(|name| *name != DEFAULT) {
        return Err(problems::unknown_network(network));
    }
    let address = nic
        .address
        .as_deref()
        .map(|text| text.parse().map_err(|_| problems::bad_address(text)))
        .transpose()?;
    Ok(WantedNic {
        mac: nic.mac.or(mac),
        address,
    })
}

/// Checks ports to publish.
pub fn publish(wanted: &[Publish]) -> Result<Vec<PublishSpec>, Problem> {
    if wanted.len() > PUBLISHED_MAX {
        return Err(crate::problems::too_many("spec.publish", PUBLISHED_MAX));
    }
    let mut checked: Vec<PublishSpec> = Vec::with_capacity(wanted.len());
    for (index, wish) in wanted.iter().enumerate() {
        let guest_port = wish.guest_port.unwrap_or(wish.port);
        for (field, port) in [("port", wish.port), ("guest_port", guest_port)] {
            if port == 0 {
                return Err(problems::port_zero(index, field));
            }
        }
        if OWN_PORTS.contains(&(wish.protocol, wish.port)) {
            return Err(problems::port_reserved(index, wish.port));
        }
        let same = |other: &PublishSpec| (other.protocol, other.port) == (wish.protocol, wish.port);
        if checked.iter().any(same) {
            return Err(problems::port_twice(index, wish.port));
        }
        checked.push(PublishSpec {
            port: wish.port,
            guest_port,
            protocol: wish.protocol,
        });
    }
    checked.sort();
    Ok(checked)
}

/// Refuses a fixed address that no node can give, or not the one that was asked for.
pub fn check_address(spec: &InstanceSpec, rooms: &[NodeRoom]) -> Result<(), Problem> {
    let Some(address) = fixed(spec) else {
        return Ok(());
    };
    let nodes = || rooms.iter().map(|room| &room.node);
    let Some(home) = nodes().find(|node| node.subnet.contains(&address)) else {
        let subnets: Vec<_> = nodes()
            .map(|node| format!("{} has {}", node.name, node.subnet))
            .collect();
        return Err(problems::address_outside(address, &subnets));
    };
    let net = home.subnet;
    let meaning = [
        (net.network(), "names the subnet"),
        (net.broadcast(), "is the subnet's broadcast address"),
        (subnet::gateway(net), "is the gateway"),
    ];
    if let Some((_, what)) = meaning.iter().find(|(reserved, _)| *reserved == address) {
        return Err(problems::address_reserved(address, what, &home.name, net));
    }
    match &spec.placement.node {
        Some(wanted) if *wanted != home.name => Err(problems::address_elsewhere(
            address, &home.name, net, wanted,
        )),
        _ => Ok(()),
    }
}

/// The problem that a fixed address has an owner.
pub fn address_taken(tx: &ReadTx<'_>, nic: &NicSpec) -> Result<Problem, ControlError> {
    let owner = match nic.address {
        Some(address) => tx.address_owner(address)?,
        None => None,
    };
    let owner = match owner {
        Some(id) => tx.instance(id)?.map(|row| row.name),
        None => None,
    };
    Ok(problems::address_taken(nic.address, owner.as_ref()))
}

/// Refuses a fixed address that has an owner.
pub fn check_address_is_free(tx: &ReadTx<'_>, spec: &InstanceSpec) -> Result<(), ControlError> {
    for nic in &spec.nics {
        if let Some(address) = nic.address
            && tx.address_owner(address)?.is_some()
        {
            return Err(address_taken(tx, nic)?.into());
        }
    }
    Ok(())
}

/// Why a node can't take an instance into its network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// The node's part, as a verdict says it.
    pub verdict: String,
    /// What is waited for.
    pub waits_for: String,
}

/// The address that the instance gets on the node, or what stands in its way there.
pub fn fit(
    tx: &ReadTx<'_>,
    spec: &InstanceSpec,
    node: &NodeRow,
) -> Result<Result<Ipv4Addr, Obstacle>, ControlError> {
    for to in &spec.publish {
        if let Some((_, owner)) = tx.publisher(node.id, to.protocol, to.port)? {
            let port = format!("port {}/{}", to.port, to.protocol.as_str());
            return Ok(Err(Obstacle {
                verdict: format!("{port} is published by {owner}"),
                waits_for: format!("{port} of {}, which is published by {owner}", node.name),
            }));
        }
    }
    let net = node.subnet;
    if let Some(address) = fixed(spec) {
        let unclaimed = node.unclaimed.iter().flat_map(|entry| &entry.addresses);
        return Ok(if unclaimed.into_iter().any(|taken| *taken == address) {
            Err(Obstacle {
                verdict: format!("something unclaimed on it has {address}"),
                waits_for: format!("{address}, which something unclaimed on {} has", node.name),
            })
        } else if net.contains(&address) {
            Ok(address)
        } else {
            Err(Obstacle {
                verdict: format!("its subnet {net} does not hold {address}"),
                waits_for: format!("the node whose subnet holds {address}"),
            })
        });
    }
    let mut taken = tx.taken_addresses(net)?;
    // What runs there in nobody's list keeps its addresses.
    taken.extend(node.unclaimed.iter().flat_map(|entry| &entry.addresses));
    taken.sort_unstable();
    taken.dedup();
    Ok(subnet::free_address(net, &taken).ok_or_else(|| Obstacle {
        verdict: format!("no free address in {net}"),
        waits_for: format!("a free address in {net}"),
    }))
}

/// Makes these the ports of the instance's node that lead to it, once it has a node.
pub fn claim_ports(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
    ports: &[PublishSpec],
) -> Result<(), ControlError> {
    let (Some(node), Some(node_name)) = (row.node, &row.node_name) else {
        return Ok(());
    };
    for to in ports {
        if let Some((owner, name)) = tx.publisher(node, to.protocol, to.port)?
            && owner != row.id
        {
            return Err(problems::port_taken(to, node_name, Some(&name)).into());
        }
    }
    tx.set_published(row.id, node, ports)
        .map_err(|error| match (error, ports.first()) {
            (StoreError::Taken(Taken::Port), Some(to)) => {
                problems::port_taken(to, node_name, None).into()
            }
            (other, _) => ControlError::from(other),
        })
}

/// The address that was asked for; before placement only those are in a spec.
fn fixed(spec: &InstanceSpec) -> Option<Ipv4Addr> {
    let mut nics = spec.nics.iter().filter(|nic| is_default(&nic.network));
    nics.find_map(|nic| nic.address)
}

/// Whether it is the network that each node routes.
pub fn is_default(network: &Name) -> bool {
    network.as_str() == DEFAULT
}
