//! Connecting to a guest over TCP through its own port, and to no other machine.
//!
//! An address in a spec proves nothing: an instance may be given the router's. The host's routing would lead there, with
//! the rights of whoever asks us. So a connection leaves by an interface that the address is on the link of, never by a
//! router; whoever answers ARP for the address there has to have the nic's MAC address; and the bridge has to have
//! learned that MAC address at the guest's own tap. The neighbour is resolved before the first packet is sent, so a
//! machine that is not the guest is not even knocked at, and all is looked at again once the connection is there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::{TryStreamExt, pin_mut};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout_at};
use waifud_types::{MacAddr, TapName};

use super::links::Links;
use super::{kernel, kernel_io};
use crate::NetworkError;

/// A guest on this machine answers in microseconds; a dropped packet is repeated after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel asks three times, a second apart (`mcast_solicit`, `retrans_time_ms`).
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pauses between two looks at a neighbour.
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

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The address may not be connected to: it is not proven to be the guest's. In a sentence.
    #[error("{0}")]
    NotTheGuest(String),
    /// The guest answered that nothing listens at the port.
    #[error("the guest refuses connections there: nothing listens at the port")]
    Refused,
    /// No answer at all.
    #[error("no answer: the guest is not up yet, has no network, or drops what comes to the port")]
    Silent,
    /// Something else.
    #[error("it can't be connected to")]
    Io(#[from] io::Error),
    /// The kernel can't be asked about links, routes or neighbours.
    #[error(transparent)]
    Kernel(#[from] NetworkError),
}

/// Connects to a port of the guest. See the module's text.
///
/// # Errors
/// The address is not the guest's own, or the guest does not take the connection.
pub async fn connect(nic: &GuestNic, port: u16) -> Result<TcpStream, ReachError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(kernel_io("talking to the kernel about neighbours"))?;
    // Ends with the last handle.
    tokio::spawn(connection);
    let links = Links::read(&handle).await?;
    let out = on_link(&handle, nic).await?;
    let interface = links
        .name_of(out)
        .ok_or_else(|| not_the_guest(format!("the interface to {} is gone", nic.address)))?;
    resolve(&handle, out, nic).await?;
    check_port(&handle, &links, nic, false).await?;
    let stream = open(interface, nic.address, port).await?;
    // What answered is what was looked at before; else nothing is said to it.
    let found = neighbour(&handle, out, nic.address).await?;
    check_mac(found.as_ref().and_then(mac), nic)?;
    check_port(&handle, &links, nic, true).await?;
    Ok(stream)
}

fn not_the_guest(text: String) -> ReachError {
    ReachError::NotTheGuest(text)
}

/// The interface whose link the address is on, by the host's routes.
async fn on_link(handle: &Handle, nic: &GuestNic) -> Result<u32, ReachError> {
    let address = nic.address;
    let mut question = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .build();
    // A question has only a destination.
    question.header.protocol = rtnetlink::packet_route::route::RouteProtocol::Unspec;
    question.header.kind = RouteType::Unspec;
    question.header.table = 0;
    question.header.scope = rtnetlink::packet_route::route::RouteScope::Universe;
    let answers = handle.route().get(question).execute();
    pin_mut!(answers);
    let answer = answers.try_next().await;
    let bridge = &nic.bridge;
    let no_way = || {
        not_the_guest(format!(
            "this node has no address in the network of {address} on {bridge}, and a router is not passed on the way to a guest"
        ))
    };
    // "Network is unreachable" comes as an error.
    let Ok(Some(route)) = answer else {
        return Err(no_way());
    };
    judge_route(&route, address).map_err(|why| why.map_or_else(no_way, not_the_guest))
}

/// The interface that a route leads out by to a machine on its link; else why not, or nothing when a router is in between.
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

/// Waits until the kernel knows who has the address, and checks that it is the guest.
async fn resolve(handle: &Handle, out: u32, nic: &GuestNic) -> Result<(), ReachError> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut asked_anew = false;
    let mut pause = PAUSES.0;
    ask(handle, out, nic.address).await?;
    loop {
        let found = neighbour(handle, out, nic.address).await?;
        match found.as_ref().and_then(mac) {
            Some(mac) if mac == nic.mac.bytes() => return Ok(()),
            // What was known may be from before the guest had the address.
            Some(_) if !asked_anew => {
                asked_anew = true;
                if let Some(old) = found.filter(|n| n.header.state != NeighbourState::Permanent) {
                    // Gone by itself is fine.
                    let _gone = handle.neighbours().del(old).execute().await;
                }
                ask(handle, out, nic.address).await?;
            }
            Some(other) => return check_mac(Some(other), nic),
            None => {}
        }
        let failed = neighbour(handle, out, nic.address)
            .await?
            .is_some_and(|n| n.header.state == NeighbourState::Failed);
        if failed || Instant::now() >= deadline {
            return Err(ReachError::Silent);
        }
        sleep(pause).await;
        pause = PAUSES.1.min(pause * 2);
    }
}

/// Has the kernel ask by ARP who has the address, if it does not know.
async fn ask(handle: &Handle, out: u32, address: Ipv4Addr) -> Result<(), ReachError> {
    handle
        .neighbours()
        .add(out, IpAddr::V4(address))
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace()
        .execute()
        .await
        .map_err(kernel("asking for a neighbour"))
        .map_err(ReachError::from)
}

/// What is known of an address on a link.
async fn neighbour(
    handle: &Handle,
    out: u32,
    address: Ipv4Addr,
) -> Result<Option<NeighbourMessage>, ReachError> {
    let all: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Inet)
        .execute()
        .try_collect()
        .await
        .map_err(kernel("listing neighbours"))?;
    let is_it = |message: &NeighbourMessage| {
        message.header.ifindex == out
            && message.attributes.iter().any(|a| {
                matches!(a, NeighbourAttribute::Destination(NeighbourAddress::Inet(to)) if *to == address)
            })
    };
    Ok(all.into_iter().find(is_it))
}

/// The MAC address of a neighbour that is known.
fn mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    let unknown = [
        NeighbourState::Incomplete,
        NeighbourState::Failed,
        NeighbourState::None,
    ];
    if unknown.contains(&message.header.state) {
        return None;
    }
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

fn check_mac(found: Option<[u8; 6]>, nic: &GuestNic) -> Result<(), ReachError> {
    match found {
        Some(mac) if mac == nic.mac.bytes() => Ok(()),
        Some(mac) => Err(not_the_guest(format!(
            "{} is another machine's: {} answers for it, and the instance's nic is {}",
            nic.address,
            MacAddr::new(mac),
            nic.mac
        ))),
        None => Err(ReachError::Silent),
    }
}

/// Whether the bridge knows the MAC address behind the guest's tap and not behind another port. It forgets those that
/// were silent for minutes, so `known` is asked for only once the guest has just spoken.
async fn check_port(
    handle: &Handle,
    links: &Links,
    nic: &GuestNic,
    known: bool,
) -> Result<(), ReachError> {
    let tap = links.named(nic.tap.as_str()).map(|link| link.index);
    let tap = tap.ok_or_else(|| not_the_guest(format!("the guest's port {} is gone", nic.tap)))?;
    let bridge = links.named(&nic.bridge).map(|link| link.index);
    let all: Vec<NeighbourMessage> = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Bridge)
        .execute()
        .try_collect()
        .await
        .map_err(kernel("listing what bridges have learned"))?;
    let ports: Vec<u32> = all
        .iter()
        .filter(|message| is_at(message, nic.mac, bridge))
        .map(|message| message.header.ifindex)
        .collect();
    if ports.iter().all(|port| *port == tap) && (!known || !ports.is_empty()) {
        return Ok(());
    }
    Err(not_the_guest(format!(
        "{} is not behind the guest's port {}",
        nic.mac, nic.tap
    )))
}

/// Whether an entry says where a MAC address is on a bridge.
fn is_at(message: &NeighbourMessage, mac: MacAddr, bridge: Option<u32>) -> bool {
    let mut has_mac = false;
    let mut on_bridge = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(found) => has_mac = *found == mac.bytes(),
            NeighbourAttribute::Controller(index) => on_bridge = Some(*index) == bridge,
            _ => {}
        }
    }
    has_mac && on_bridge
}

/// A connection that leaves by that interface only, whatever the routes say by then.
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
    // Key presses are small and wait for nothing.
    stream.set_nodelay(true)?;
    Ok(stream)
}
