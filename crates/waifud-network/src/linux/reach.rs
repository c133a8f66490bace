//! Connecting to a guest over TCP through its own port, and to no other machine.
//!
//! A spec can set any address for an instance, for example the router's, and the host's routing would lead there. So a
//! connection must meet three conditions. The host's route to the address leads directly to a link, not to a router. The
//! machine that answers ARP for the address on that link has the nic's MAC address. The bridge has learned that MAC
//! address at the guest's tap. The neighbor is resolved before the first packet is sent, so no other machine receives a
//! connection attempt. Everything is checked again once the connection is established.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::{TryStreamExt, pin_mut};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use waifud_types::{MacAddr, TapName};

use super::links::Links;
use super::{neighbors, netlink};
use crate::NetworkError;

/// A guest on this machine answers in microseconds; the kernel repeats a dropped packet after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel asks three times, a second apart (`mcast_solicit`, `retrans_time_ms`).
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);
/// The first and the longest pause between two reads of a neighbor.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// One nic of a guest of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestNic {
    /// The bridge that its tap is a port of.
    pub bridge: String,
    /// The tap.
    pub tap: TapName,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Why a guest could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The address is not proven to be the guest's, so it is not connected to. A sentence.
    #[error("{0}")]
    NotTheGuest(String),
    /// The guest answered that nothing listens at the port.
    #[error("connection refused: nothing in the guest listens on the port")]
    Refused,
    /// No answer.
    #[error("no answer: the guest is still booting, has no network, or drops packets to the port")]
    Silent,
    /// Any other error of the socket.
    #[error("cannot connect to the guest")]
    Io(#[from] io::Error),
    /// Links, routes or neighbors could not be read from the kernel.
    #[error(transparent)]
    Kernel(#[from] NetworkError),
}

/// Connects to a port of the guest, with the checks that the module describes.
///
/// # Errors
/// The address is not the guest's, or the guest does not accept the connection.
pub async fn connect(nic: &GuestNic, port: u16) -> Result<TcpStream, ReachError> {
    let handle = netlink::connect("opening a netlink socket for neighbors")?;
    let links = Links::read(&handle).await?;
    let out = on_link(&handle, nic).await?;
    let interface = links.name_of(out).ok_or_else(|| {
        not_the_guest(format!("the interface to {} no longer exists", nic.address))
    })?;
    resolve(&handle, out, nic).await?;
    check_port(&handle, &links, nic, false).await?;
    let stream = open(interface, nic.address, port).await?;
    // Unless the checked machine has answered, nothing is sent to it.
    let found = neighbor(&handle, out, nic.address).await?;
    check_mac(found.as_ref().and_then(resolved_mac), nic)?;
    check_port(&handle, &links, nic, true).await?;
    Ok(stream)
}

fn not_the_guest(text: String) -> ReachError {
    ReachError::NotTheGuest(text)
}

/// The interface whose link the address is on, according to the host's routes.
async fn on_link(handle: &Handle, nic: &GuestNic) -> Result<u32, ReachError> {
    let address = nic.address;
    let mut question = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .build();
    // A lookup has only a destination.
    question.header.protocol = rtnetlink::packet_route::route::RouteProtocol::Unspec;
    question.header.kind = RouteType::Unspec;
    question.header.table = 0;
    question.header.scope = rtnetlink::packet_route::route::RouteScope::Universe;
    let answers = handle.route().get(question).execute();
    pin_mut!(answers);
    let answer = answers.try_next().await;
    let bridge = &nic.bridge;
    let no_route = || {
        not_the_guest(format!(
            "this node has no address in the network of {address} on {bridge}, and waifud does not reach guests through routers"
        ))
    };
    // The kernel reports "Network is unreachable" as an error.
    let Ok(Some(route)) = answer else {
        return Err(no_route());
    };
    judge_route(&route, address).map_err(|why| why.map_or_else(no_route, not_the_guest))
}

/// The outgoing interface of a route to a machine on its link. Otherwise the reason, or `None` if the route uses a router.
fn judge_route(route: &RouteMessage, address: Ipv4Addr) -> Result<u32, Option<String>> {
    if route.header.kind == RouteType::Local {
        return Err(Some(format!("{address} is this node's own address")));
    }
    let mut out = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                return Err(None);
            }
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    match (route.header.kind, out) {
        (RouteType::Unicast, Some(index)) => Ok(index),
        _ => Err(None),
    }
}

/// Waits until the kernel has resolved the address, and checks that it belongs to the guest.
async fn resolve(handle: &Handle, out: u32, nic: &GuestNic) -> Result<(), ReachError> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut asked_again = false;
    let mut pause = PAUSES.0;
    neighbors::resolve(handle, out, nic.address).await?;
    loop {
        let found = neighbor(handle, out, nic.address).await?;
        match found.as_ref().and_then(resolved_mac) {
            Some(mac) if mac == nic.mac => return Ok(()),
            // The entry may be older than the guest's use of the address.
            Some(_) if !asked_again => {
                asked_again = true;
                if let Some(old) = found.filter(|n| n.header.state != NeighbourState::Permanent) {
                    // It may have expired meanwhile.
                    let _gone = handle.neighbours().del(old).execute().await;
                }
                neighbors::resolve(handle, out, nic.address).await?;
            }
            Some(other) => return check_mac(Some(other), nic),
            None => {}
        }
        let failed = neighbor(handle, out, nic.address)
            .await?
            .is_some_and(|n| n.header.state == NeighbourState::Failed);
        if failed || Instant::now() >= deadline {
            return Err(ReachError::Silent);
        }
        sleep(pause).await;
        pause = PAUSES.1.min(pause * 2);
    }
}

/// The kernel's entry for an address on a link.
async fn neighbor(
    handle: &Handle,
    out: u32,
    address: Ipv4Addr,
) -> Result<Option<NeighbourMessage>, ReachError> {
    let mut all = neighbors::list(handle).await?.into_iter();
    Ok(all.find(|n| n.header.ifindex == out && neighbors::address_of(n) == Some(address)))
}

/// The MAC address of a neighbor that is resolved.
fn resolved_mac(message: &NeighbourMessage) -> Option<MacAddr> {
    let unknown = [
        NeighbourState::Incomplete,
        NeighbourState::Failed,
        NeighbourState::None,
    ];
    if unknown.contains(&message.header.state) {
        return None;
    }
    neighbors::mac_of(message)
}

fn check_mac(found: Option<MacAddr>, nic: &GuestNic) -> Result<(), ReachError> {
    match found {
        Some(mac) if mac == nic.mac => Ok(()),
        Some(mac) => Err(not_the_guest(format!(
            "{} belongs to another machine: {mac} answers for it, but the MAC address of the instance's nic is {}",
            nic.address, nic.mac
        ))),
        None => Err(ReachError::Silent),
    }
}

/// Checks that the bridge has not learned the MAC address at a port other than the guest's tap. `known` requires that it
/// has learned it at the tap: bridges forget MAC addresses after minutes without traffic, so this is required only after
/// the guest has answered.
async fn check_port(
    handle: &Handle,
    links: &Links,
    nic: &GuestNic,
    known: bool,
) -> Result<(), ReachError> {
    let tap = links.named(nic.tap.as_str()).map(|link| link.index);
    let tap =
        tap.ok_or_else(|| not_the_guest(format!("the guest's port {} no longer exists", nic.tap)))?;
    let bridge = links.named(&nic.bridge).map(|link| link.index);
    let all = neighbors::list_bridge_entries(handle).await?;
    let ports: Vec<u32> = all
        .iter()
        .filter(|message| is_at(message, nic.mac, bridge))
        .map(|message| message.header.ifindex)
        .collect();
    if ports.iter().all(|port| *port == tap) && (!known || !ports.is_empty()) {
        return Ok(());
    }
    Err(not_the_guest(format!(
        "{} cannot be reached through the guest's port {}",
        nic.mac, nic.tap
    )))
}

/// Whether a bridge's entry is about a MAC address on that bridge.
fn is_at(message: &NeighbourMessage, mac: MacAddr, bridge: Option<u32>) -> bool {
    let on_bridge = message
        .attributes
        .iter()
        .any(|a| matches!(a, NeighbourAttribute::Controller(index) if Some(*index) == bridge));
    on_bridge && neighbors::mac_of(message) == Some(mac)
}

/// Connects through the given interface only, even if routes have changed meanwhile.
async fn open(interface: &str, address: Ipv4Addr, port: u16) -> Result<TcpStream, ReachError> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(Some(interface.as_bytes()))?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let connecting = socket.connect(SocketAddr::from((address, port)));
    let stream = match timeout_at(deadline, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                io::ErrorKind::ConnectionRefused => ReachError::Refused,
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => ReachError::Silent,
                _ => ReachError::Io(error),
            });
        }
        Err(_) => return Err(ReachError::Silent),
    };
    // Key presses are small packets that must not be delayed.
    stream.set_nodelay(true)?;
    Ok(stream)
}
