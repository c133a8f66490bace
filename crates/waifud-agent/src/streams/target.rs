//! What an order leads to, if it may.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use waifud_api::agent::AgentInstance;
use waifud_api::stream::{RefusalReason, StreamKind, StreamOrder, StreamRefusal};
use waifud_hypervisor::{ByteStream, Device, HypervisorError};
use waifud_network::linux::{GuestNic, ReachError};
use waifud_types::status::InstanceAddress;
use waifud_types::{Name, TapName};

use super::{GuestConnection, guest_file, log, port, refusal};
use crate::control_link::record::DesiredState;
use crate::shared::Shared;

/// The network whose addresses are waifud's to give, out of the node's subnet.
const ROUTED: &str = "default";

/// Addresses that are tried for one stream at most: a silent one takes seconds.
const CANDIDATES: usize = 3;

/// Where a stream's bytes come from.
pub(super) enum Source {
    /// Both ways.
    Wire(Box<dyn ByteStream>),
    /// A TCP connection to the guest: both ways, each with an end of its own.
    Guest(Box<dyn GuestConnection>),
    /// A console: both ways, and never a brake for the guest.
    Console(Box<dyn ByteStream>),
    /// The guest agent, through commands that this node knows.
    GuestCommand,
    /// A log on this node.
    Log(log::Tail),
    /// All there is.
    Bytes(Vec<u8>),
}

/// Opens it. Only an instance of this node, of that epoch, and what is its own.
pub(super) async fn open(shared: &Shared, order: &StreamOrder) -> Result<Source, StreamRefusal> {
    let not_here = || {
        refusal(
            RefusalReason::NotHere,
            "the node has no such copy of the instance",
        )
    };
    let view = shared.table.view(order.instance).ok_or_else(not_here)?;
    let DesiredState::Keep(instance) = view.wish else {
        return Err(not_here());
    };
    if instance.epoch != order.epoch {
        return Err(not_here());
    }
    let device = |device| shared.hypervisor.open_device(order.instance, device);
    match order.kind {
        StreamKind::Console => Ok(Source::Console(
            device(Device::Console).await.map_err(|e| refused(&e))?,
        )),
        StreamKind::Screen => Ok(Source::Wire(
            device(Device::Screen).await.map_err(|e| refused(&e))?,
        )),
        StreamKind::ConsoleLog { lines, follow } => {
            let path = shared.files.console_log(order.instance);
            log::open(path, lines, follow).await.map(Source::Log)
        }
        StreamKind::CloudInitLog { lines } => {
            guest_file::cloud_init_log(&shared.hypervisor, order.instance, lines)
                .await
                .map(Source::Bytes)
        }
        StreamKind::GuestCommand => Ok(Source::GuestCommand),
        StreamKind::Ssh | StreamKind::Forward { .. } => {
            let port = port(order.kind).unwrap_or_default();
            if port == 0 {
                return Err(refusal(RefusalReason::NothingListens, "port 0 is no port"));
            }
            connect(shared, &instance, port).await.map(Source::Guest)
        }
    }
}

/// Connects to the first of the instance's addresses that leads to it.
async fn connect(
    shared: &Shared,
    instance: &AgentInstance,
    port: u16,
) -> Result<Box<dyn GuestConnection>, StreamRefusal> {
    let mut why = refusal(
        RefusalReason::NoAddress,
        "the instance has no address of its own here",
    );
    for nic in candidates(shared, instance) {
        let address = nic.address;
        let error = match shared.dialer.dial(&nic, port).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let reason = match &error {
            // It is the guest's own, so there is nothing better to try.
            ReachError::Refused => {
                return Err(refusal(
                    RefusalReason::NothingListens,
                    format!("port {port} of {address}: {error}"),
                ));
            }
            ReachError::Silent => RefusalReason::NoAnswer,
            ReachError::NotTheGuest(_) => RefusalReason::NotTheGuest,
            ReachError::Io(_) | ReachError::Kernel(_) => RefusalReason::Other,
        };
        // The first one is the one that people know of.
        if why.reason == RefusalReason::NoAddress {
            why = refusal(
                reason,
                format!("port {port} of {address}: {}", crate::with_cause(&error)),
            );
        }
    }
    Err(why)
}

/// What may be connected to: the address that the instance was given, then those that were learned at its ports, where a
/// guest may have taken another one by itself.
fn candidates(shared: &Shared, instance: &AgentInstance) -> Vec<GuestNic> {
    let slice = shared.table.node().slice;
    let subnet = slice.as_ref().map(|slice| slice.subnet);
    let gateway = slice.as_ref().map(|slice| slice.gateway);
    let given = own_address(instance, subnet, gateway).into_iter();
    let seen = shared.reports.seen_addresses(instance.id);
    let seen = seen_address(&seen, subnet).into_iter();
    let bridge = |network: &Name| {
        if network.as_str() == ROUTED {
            return Some(shared.settings.bridge.clone());
        }
        instance.bridges.get(network).cloned()
    };
    let mut nics: Vec<GuestNic> = Vec::new();
    for (network, address) in given.chain(seen) {
        for (index, nic) in instance.spec.nics.iter().enumerate() {
            // A given address is one nic's; a learned one is that of any nic on the network without another.
            let its = nic.network == network && nic.address.is_none_or(|own| own == address);
            let ignored = nic.network == network && nic.network.as_str() != ROUTED;
            let Some(bridge) = bridge(&network).filter(|_| its || ignored) else {
                continue;
            };
            let nic = GuestNic {
                bridge,
                tap: TapName::of(instance.id, index),
                mac: nic.mac,
                address,
            };
            if !nics.contains(&nic) {
                nics.push(nic);
            }
        }
    }
    nics.truncate(CANDIDATES);
    nics
}

fn refused(error: &HypervisorError) -> StreamRefusal {
    let reason = match error {
        HypervisorError::NotFound(_) | HypervisorError::NotRunning(_) => RefusalReason::NotRunning,
        HypervisorError::AgentSilent(_) => RefusalReason::NoGuestAgent,
        _ => RefusalReason::Other,
    };
    refusal(reason, crate::with_cause(error))
}

/// The address that the instance was given, if it can be nobody else's: on the routed network it lies in the node's
/// subnet and is not the gateway, which is the node itself; on none is it one that means this machine.
fn own_address(
    instance: &AgentInstance,
    subnet: Option<Ipv4Net>,
    gateway: Option<Ipv4Addr>,
) -> Option<(Name, Ipv4Addr)> {
    let nics = instance.spec.nics.iter();
    nics.filter_map(|nic| Some((nic.network.clone(), nic.address?)))
        .find(|(network, address)| {
            let guests_own =
                network.as_str() != ROUTED || subnet.is_some_and(|net| net.contains(address));
            guests_own && Some(*address) != gateway && is_a_hosts(*address, subnet)
        })
}

/// The first IPv4 address that was learned at a port of the instance: the rules there let nobody else of this node have
/// it, and none of the host's own is ever learned.
fn seen_address(seen: &[InstanceAddress], subnet: Option<Ipv4Net>) -> Option<(Name, Ipv4Addr)> {
    seen.iter().find_map(|seen| match seen.address {
        IpAddr::V4(address) => is_a_hosts(address, subnet).then(|| (seen.network.clone(), address)),
        IpAddr::V6(_) => None,
    })
}

/// Whether the address can be one other host's: not this machine, not many, not nobody, not the link itself.
fn is_a_hosts(address: Ipv4Addr, subnet: Option<Ipv4Net>) -> bool {
    let whole = subnet.is_some_and(|net| [net.network(), net.broadcast()].contains(&address));
    !(whole
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local()
        || address.octets().starts_with(&[0]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::sample_instance;

    fn with(address: Option<&str>, network: &str) -> Option<Ipv4Addr> {
        let mut instance = sample_instance("web");
        let nic = instance.spec.nics.first_mut().unwrap();
        nic.network = network.parse().unwrap();
        nic.address = address.map(|text| text.parse().unwrap());
        let own = own_address(
            &instance,
            Some("10.144.1.0/24".parse().unwrap()),
            Some("10.144.1.1".parse().unwrap()),
        );
        own.map(|(_, address)| address)
    }

    #[test]
    fn only_the_instances_own_address_is_connected_to() {
        assert!(with(Some("10.144.1.12"), "default").is_some());
        assert!(with(Some("192.168.1.40"), "lan").is_some());
        for bad in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "10.144.1.1",
            "10.144.1.0",
            "10.144.1.255",
        ] {
            for network in ["default", "lan"] {
                assert_eq!(with(Some(bad), network), None, "{bad} on {network}");
            }
        }
        assert_eq!(with(Some("192.168.1.40"), "default"), None, "not ours");
        assert_eq!(with(None, "default"), None);
    }
}
