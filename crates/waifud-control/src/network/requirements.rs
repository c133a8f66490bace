//! The network requirements of an instance: addresses and published ports.
//!
//! They are checked in two steps: without the database, and in the transaction that stores them, against other instances.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use waifud_api::{Problem, Publish};
use waifud_store::{InstanceRow, NodeCapacity, NodeRow, ReadTx, StoreError, Taken, WriteTx};
use waifud_types::spec::{InstanceSpec, NicSpec, Protocol, PublishSpec};
use waifud_types::{InstanceId, Verdict, WaitReason};

use super::default_network::is_default;
use super::keep_address::{self, Kept};
use crate::ControlError;
use crate::network::problems as network_problems;
use crate::network::subnet;
use crate::problems;

/// The maximum number of networks named in a refusal.
const NETWORKS_NAMED: u32 = 10;

/// The maximum number of published ports of one instance.
const PUBLISHED_MAX: usize = 256;

/// The ports that waifud uses: API, peer port, mesh, metadata.
const OWN_PORTS: [(Protocol, u16); 4] = [
    (Protocol::Tcp, 7373),
    (Protocol::Tcp, 7374),
    (Protocol::Udp, 51820),
    (Protocol::Udp, 51821),
];

/// Checks ports to publish.
pub fn publish(wanted: &[Publish]) -> Result<Vec<PublishSpec>, Problem> {
    if wanted.len() > PUBLISHED_MAX {
        return Err(problems::too_many("spec.publish", PUBLISHED_MAX));
    }
    let mut checked: Vec<PublishSpec> = Vec::with_capacity(wanted.len());
    for (index, port_request) in wanted.iter().enumerate() {
        let guest_port = port_request.guest_port.unwrap_or(port_request.port);
        for (field, port) in [("port", port_request.port), ("guest_port", guest_port)] {
            if port == 0 {
                return Err(network_problems::port_zero(index, field));
            }
        }
        if OWN_PORTS.contains(&(port_request.protocol, port_request.port)) {
            return Err(network_problems::port_reserved(index, port_request.port));
        }
        let same = |other: &PublishSpec| {
            (other.protocol, other.port) == (port_request.protocol, port_request.port)
        };
        if checked.iter().any(same) {
            return Err(network_problems::duplicate_port(index, port_request.port));
        }
        checked.push(PublishSpec {
            port: port_request.port,
            guest_port,
            protocol: port_request.protocol,
        });
    }
    checked.sort();
    Ok(checked)
}

/// Refuses published ports for an instance whose first nic is not on `default`, since its answers bypass the node.
pub fn check_publish(spec: &InstanceSpec, publish: &[PublishSpec]) -> Result<(), Problem> {
    match spec.nics.first() {
        Some(nic) if !publish.is_empty() && !is_default(&nic.network) => Err(
            network_problems::publish_needs_default_network(&nic.network),
        ),
        _ => Ok(()),
    }
}

/// Refuses nics on unknown networks, and addresses that an instance cannot have.
pub fn check(
    tx: &ReadTx<'_>,
    spec: &InstanceSpec,
    capacities: &[NodeCapacity],
    guest_range: Ipv4Net,
) -> Result<(), ControlError> {
    check_from(tx, spec, 0, capacities, guest_range)
}

/// Like [`check`], for the nics from position `first` on. The others have been checked when they were added.
pub fn check_from(
    tx: &ReadTx<'_>,
    spec: &InstanceSpec,
    first: usize,
    capacities: &[NodeCapacity],
    guest_range: Ipv4Net,
) -> Result<(), ControlError> {
    for (index, nic) in spec.nics.iter().enumerate().skip(first) {
        if !tx.is_network(nic.network.as_str())? {
            let known = tx.networks("", NETWORKS_NAMED)?;
            let known: Vec<_> = known.into_iter().map(|row| row.name).collect();
            return Err(
                network_problems::unknown_network(index, nic.network.as_str(), &known).into(),
            );
        }
        let overlaps = |net: &&IpNet| match net {
            IpNet::V4(net) => subnet::overlap(*net, guest_range),
            IpNet::V6(_) => false,
        };
        if let Some(net) = nic.allow_addresses.iter().find(overlaps) {
            return Err(network_problems::allowed_in_guest_range(index, *net, guest_range).into());
        }
        if let Some(address) = nic.address
            && !is_default(&nic.network)
            && guest_range.contains(&address)
        {
            return Err(
                network_problems::address_in_guest_range(index, address, guest_range).into(),
            );
        }
    }
    check_publish(spec, &spec.publish)?;
    super::firewall::check_nics(spec)?;
    if fixed(spec).is_some_and(|(index, _)| index >= first) {
        check_address(spec, capacities)?;
    }
    super::address_owners::check(tx, spec, first)
}

/// The number of the lease of the nic at this position. It is that of the nic, which does not change when others are removed.
pub fn lease_number(position: usize, nic: &NicSpec) -> u32 {
    u32::try_from(nic.number().unwrap_or(position)).unwrap_or(u32::MAX)
}

/// Assigns an address to the instance's nic on `default`, if it has one.
pub fn set_default_address(
    tx: &mut WriteTx<'_>,
    instance: InstanceId,
    spec: &mut InstanceSpec,
    address: Ipv4Addr,
) -> Result<(), StoreError> {
    for (position, nic) in spec.nics.iter_mut().enumerate() {
        if is_default(&nic.network) {
            nic.address = Some(address);
            tx.set_lease_address(instance, lease_number(position, nic), address)?;
        }
    }
    Ok(())
}

/// Refuses a fixed address on `default` that is not in the subnet of a node, or not of the requested node.
fn check_address(spec: &InstanceSpec, capacities: &[NodeCapacity]) -> Result<(), Problem> {
    let Some((index, address)) = fixed(spec) else {
        return Ok(());
    };
    let nodes = || capacities.iter().map(|capacity| &capacity.node);
    let Some(home) = nodes().find(|node| node.subnet.contains(&address)) else {
        let subnets: Vec<_> = nodes()
            .map(|node| format!("{} has {}", node.name, node.subnet))
            .collect();
        return Err(network_problems::address_outside(index, address, &subnets));
    };
    let net = home.subnet;
    let reserved = [
        (net.network(), "is the subnet's network address"),
        (net.broadcast(), "is the subnet's broadcast address"),
        (subnet::gateway(net), "is the gateway"),
    ];
    if let Some((_, what)) = reserved.iter().find(|(other, _)| *other == address) {
        return Err(network_problems::address_reserved(
            index, address, what, &home.name, net,
        ));
    }
    match &spec.placement.node {
        Some(wanted) if *wanted != home.name => Err(network_problems::address_on_other_node(
            index, address, &home.name, net, wanted,
        )),
        _ => Ok(()),
    }
}

/// The problem of a fixed address that another instance has.
pub fn address_taken(
    tx: &ReadTx<'_>,
    index: usize,
    nic: &NicSpec,
) -> Result<Problem, ControlError> {
    let owner = match nic.address {
        Some(address) => tx.address_owner(address)?,
        None => None,
    };
    let owner = match owner {
        Some(id) => tx.instance(id)?.map(|row| row.name),
        None => None,
    };
    Ok(network_problems::address_taken(
        index,
        nic.address,
        owner.as_ref(),
    ))
}

/// Refuses a fixed address that another instance has.
pub fn check_address_is_free(tx: &ReadTx<'_>, spec: &InstanceSpec) -> Result<(), ControlError> {
    for (index, nic) in spec.nics.iter().enumerate() {
        if let Some(address) = nic.address
            && tx.address_owner(address)?.is_some()
        {
            return Err(address_taken(tx, index, nic)?.into());
        }
    }
    Ok(())
}

/// Why an instance does not fit into the network of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// The verdict on the node.
    pub verdict: Verdict,
    /// What the instance waits for.
    pub waits_for: WaitReason,
}

/// The address for the instance on `default` of the node, if it has a nic there, or the obstacle.
pub fn fit(
    tx: &ReadTx<'_>,
    spec: &InstanceSpec,
    node: &NodeRow,
) -> Result<Result<Option<Ipv4Addr>, Obstacle>, ControlError> {
    for to in &spec.publish {
        if let Some((_, owner)) = tx.instance_on_port(node.id, to.protocol, to.port)? {
            return Ok(Err(Obstacle {
                verdict: Verdict::PortTaken {
                    port: to.port,
                    protocol: to.protocol,
                    instance: owner.clone(),
                },
                waits_for: WaitReason::PortTaken {
                    port: to.port,
                    protocol: to.protocol,
                    node: node.name.clone(),
                    instance: owner,
                },
            }));
        }
    }
    let net = node.subnet;
    if !spec.nics.iter().any(|nic| is_default(&nic.network)) {
        return Ok(Ok(None));
    }
    let fixed = fixed(spec).map(|(_, address)| address);
    let kept = match fixed {
        Some(address) if !net.contains(&address) => keep_address::fits(tx, address, node)?,
        _ => Kept::NotLost,
    };
    if kept == Kept::Yes {
        return Ok(Ok(fixed));
    }
    if let Some(address) = fixed.filter(|_| kept == Kept::NotLost) {
        return Ok(if node.unmanaged.addresses.contains(&address) {
            Err(Obstacle {
                verdict: Verdict::AddressUnmanaged { address },
                waits_for: WaitReason::AddressUnmanaged {
                    address,
                    node: node.name.clone(),
                },
            })
        } else if net.contains(&address) {
            Ok(Some(address))
        } else {
            Err(Obstacle {
                verdict: Verdict::AddressElsewhere {
                    address,
                    subnet: net,
                },
                waits_for: WaitReason::AddressElsewhere { address },
            })
        });
    }
    let mut taken = tx.taken_addresses(net)?;
    // Unmanaged instances on the node keep their addresses.
    taken.extend(&node.unmanaged.addresses);
    taken.sort_unstable();
    taken.dedup();
    let free = subnet::free_address(net, &taken);
    Ok(free.map(Some).ok_or(Obstacle {
        verdict: Verdict::NoFreeAddress { subnet: net },
        waits_for: WaitReason::NoFreeAddress { subnet: net },
    }))
}

/// The number of free addresses on `default` of the node.
pub fn free_addresses(tx: &ReadTx<'_>, node: &NodeRow) -> Result<u64, StoreError> {
    let mut taken = tx.taken_addresses(node.subnet)?;
    taken.extend(&node.unmanaged.addresses);
    taken.sort_unstable();
    let free = subnet::free_addresses(node.subnet, &taken).count();
    Ok(u64::try_from(free).unwrap_or(u64::MAX))
}

/// Reserves the published ports on the instance's node, if it has one.
pub fn reserve_ports(
    tx: &mut WriteTx<'_>,
    row: &InstanceRow,
    ports: &[PublishSpec],
) -> Result<(), ControlError> {
    let (Some(node), Some(node_name)) = (row.node, &row.owner.name) else {
        return Ok(());
    };
    for to in ports {
        if let Some((owner, name)) = tx.instance_on_port(node, to.protocol, to.port)?
            && owner != row.id
        {
            return Err(network_problems::port_taken(to, node_name, Some(&name)).into());
        }
    }
    tx.set_published(row.id, node, ports)
        .map_err(|error| match (error, ports.first()) {
            (StoreError::Taken(Taken::Port), Some(to)) => {
                network_problems::port_taken(to, node_name, None).into()
            }
            (other, _) => ControlError::from(other),
        })
}

/// The requested address on `default` and its nic. Before placement, a spec contains only requested addresses.
fn fixed(spec: &InstanceSpec) -> Option<(usize, Ipv4Addr)> {
    let mut nics = spec.nics.iter().enumerate();
    nics.find_map(|(index, nic)| Some((index, nic.address.filter(|_| is_default(&nic.network))?)))
}
