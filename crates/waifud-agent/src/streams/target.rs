//! Opens the target of a stream request, after checking it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use waifud_api::agent::AgentInstance;
use waifud_api::stream::{RefusalReason, StreamKind, StreamOrder, StreamRefusal};
use waifud_hypervisor::{ByteStream, Device, HypervisorError};
use waifud_network::gateway_of;
use waifud_network::linux::{GuestNic, ReachError};
use waifud_types::status::InstanceAddress;
use waifud_types::{Name, TapName};

use super::context::StreamServer;
use super::dial::GuestConnection;
use super::refusal::refusal;
use super::{guest_file, log};
use crate::control_link::record::DesiredState;
use crate::transfer::send;

/// The network whose addresses waifud allocates from the node's subnet.
const ROUTED: &str = "default";

/// The maximum number of addresses tried for one stream. One that does not answer takes seconds.
const CANDIDATES: usize = 3;

/// What a stream is connected to.
pub(super) enum StreamTarget {
    /// A device of the guest, for example its screen.
    Device(Box<dyn ByteStream>),
    /// A TCP connection to the guest. Each direction ends separately.
    Tcp(Box<dyn GuestConnection>),
    /// A console, which must never slow the guest down.
    Console(Box<dyn ByteStream>),
    /// The guest agent, for the supported commands only.
    GuestCommand,
    /// A log on this node.
    Log(log::Tail),
    /// A complete text.
    Bytes(Vec<u8>),
    /// A disk of an instance that this node has released.
    Disk {
        disk: send::OpenDisk,
        /// The receiver has everything before this byte.
        from: u64,
    },
}

/// Only an instance of this node and of the requested epoch is opened.
pub(super) async fn open(
    server: &StreamServer,
    request: &StreamOrder,
) -> Result<StreamTarget, StreamRefusal> {
    let not_here = || {
        refusal(
            RefusalReason::NotHere,
            "this node does not have the requested copy of the instance",
        )
    };
    if let StreamKind::Disk { index, from } = request.kind {
        let (table, pools) = (&server.table, &server.pools);
        let disk = send::open_released(table, pools, request.instance, request.epoch, index);
        return Ok(StreamTarget::Disk {
            disk: disk.await?,
            from,
        });
    }
    let view = server.table.view(request.instance).ok_or_else(not_here)?;
    let DesiredState::Keep(instance) = view.desired else {
        return Err(not_here());
    };
    if instance.epoch != request.epoch {
        return Err(not_here());
    }
    let device = |device| server.hypervisor.open_device(request.instance, device);
    match request.kind {
        StreamKind::Console => Ok(StreamTarget::Console(
            device(Device::Console).await.map_err(|e| refused(&e))?,
        )),
        StreamKind::Screen => Ok(StreamTarget::Device(
            device(Device::Screen).await.map_err(|e| refused(&e))?,
        )),
        StreamKind::ConsoleLog { lines, follow } => {
            let path = server.files.console_log(request.instance);
            log::open(path, lines, follow).await.map(StreamTarget::Log)
        }
        StreamKind::CloudInitLog { lines } => {
            guest_file::cloud_init_log(&server.hypervisor, request.instance, lines)
                .await
                .map(StreamTarget::Bytes)
        }
        StreamKind::GuestCommand => Ok(StreamTarget::GuestCommand),
        StreamKind::Disk { .. } => Err(not_here()),
        StreamKind::Ssh | StreamKind::Forward { .. } => {
            let port = port(request.kind).unwrap_or_default();
            if port == 0 {
                return Err(refusal(
                    RefusalReason::NothingListens,
                    "port 0 is not a valid port",
                ));
            }
            connect(server, &instance, port)
                .await
                .map(StreamTarget::Tcp)
        }
    }
}

/// Connects to the first of the instance's addresses that answers.
async fn connect(
    server: &StreamServer,
    instance: &AgentInstance,
    port: u16,
) -> Result<Box<dyn GuestConnection>, StreamRefusal> {
    let mut why = refusal(
        RefusalReason::NoAddress,
        "the instance has no address on this node",
    );
    for nic in candidates(server, instance) {
        let address = nic.address;
        let error = match server.dialer.dial(&nic, port).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let reason = match &error {
            // The guest itself refused, so other addresses would not help.
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
        // Users know the first address, so its error is reported.
        if why.reason == RefusalReason::NoAddress {
            why = refusal(
                reason,
                format!(
                    "port {port} of {address}: {}",
                    waifud_kit::error::with_causes(&error)
                ),
            );
        }
    }
    Err(why)
}

/// The addresses to try: the assigned address, then those observed at the instance's ports, where a guest may have
/// configured another one.
fn candidates(server: &StreamServer, instance: &AgentInstance) -> Vec<GuestNic> {
    let slice = server.table.node().slice;
    let own = slice.as_ref().map(|slice| (slice.subnet, slice.gateway));
    let home = instance.home.map(|home| (home, gateway_of(home)));
    let (subnet, gateway) = home.or(own).unzip();
    let given = own_address(instance, subnet, gateway).into_iter();
    let seen = server.reports.seen_addresses(instance.id);
    let seen = seen_address(&seen, subnet).into_iter();
    let bridge = |network: &Name| {
        if network.as_str() == ROUTED {
            return Some(server.bridge.clone());
        }
        instance.bridges.get(network).cloned()
    };
    let mut nics: Vec<GuestNic> = Vec::new();
    for (network, address) in given.chain(seen) {
        for (number, nic) in instance.spec.numbered_nics() {
            // An assigned address belongs to one nic. An observed one may belong to any nic of the network without one.
            let its = nic.network == network && nic.address.is_none_or(|own| own == address);
            let ignored = nic.network == network && nic.network.as_str() != ROUTED;
            let Some(bridge) = bridge(&network).filter(|_| its || ignored) else {
                continue;
            };
            let nic = GuestNic {
                bridge,
                tap: TapName::of(instance.id, number),
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
        HypervisorError::AgentUnresponsive(_) => RefusalReason::NoGuestAgent,
        _ => RefusalReason::Other,
    };
    refusal(reason, waifud_kit::error::with_causes(error))
}

/// The assigned address, if it can only belong to the guest. On the routed network it must be in the node's subnet and not
/// be the gateway, which is the node itself. On no network may it refer to this machine.
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
            guests_own && Some(*address) != gateway && is_single_host(*address, subnet)
        })
}

/// The first IPv4 address observed at a port of the instance. The rules there prevent other guests of this node from using
/// it, and addresses of the host are never learned.
fn seen_address(seen: &[InstanceAddress], subnet: Option<Ipv4Net>) -> Option<(Name, Ipv4Addr)> {
    seen.iter().find_map(|seen| match seen.address {
        IpAddr::V4(address) => {
            is_single_host(address, subnet).then(|| (seen.network.clone(), address))
        }
        IpAddr::V6(_) => None,
    })
}

/// Whether the address can belong to one other host: not to this machine, not multicast, unspecified or link-local.
fn is_single_host(address: Ipv4Addr, subnet: Option<Ipv4Net>) -> bool {
    let reserved = subnet.is_some_and(|net| [net.network(), net.broadcast()].contains(&address));
    !(reserved
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_link_local()
        || address.octets().starts_with(&[0]))
}

/// The guest's port, for the kinds of stream that connect to one.
const fn port(kind: StreamKind) -> Option<u16> {
    match kind {
        StreamKind::Ssh => Some(22),
        StreamKind::Forward { port } => Some(port),
        _ => None,
    }
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
