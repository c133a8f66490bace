//! The real fabric: routes in the host's main table, and a WireGuard link for the mesh.
//!
//! Our routes have a protocol number of their own, so that they are told from all others. Each `ensure` compares them with the
//! wanted ones, so routes that others have removed or changed are repaired by the next one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use nix::sys::socket::{getsockopt, sockopt};
use rtnetlink::Handle;
use tokio::sync::Mutex;
use waifud_types::fabric::next_hop;
use waifud_types::{FabricKind, Name};

use super::links::Links;
use super::netlink;
use super::routes::{self, FabricRoute, Routes};
use crate::NetworkError;
use crate::fabric::{
    AppliedFabric, AppliedMesh, Fabric, FabricPath, FabricPeer, FabricState, MeshDevice, MeshPeer,
    Plan, conformance, plan,
};

/// What WireGuard adds to a packet: its own 32 bytes, UDP's 8 and the 40 of IPv6.
const OVERHEAD: u16 = 80;
/// The MTU of guests' nics, and the largest of the link.
const MTU_MAX: u16 = 1420;
/// The smallest MTU: every IPv4 host accepts packets of 576 bytes (RFC 791).
const MTU_MIN: u16 = 576;
/// An address of the documentation (RFC 5737), to ask the kernel for the address of the default route. Nothing is sent.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// The fabric of this host.
pub struct LinuxFabric {
    mesh: Arc<dyn MeshDevice>,
    /// Where other nodes reach this one; empty to find out.
    advertised: Vec<SocketAddr>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    handle: Option<Handle>,
    /// The nodes of the mesh by their public keys.
    nodes: BTreeMap<String, Name>,
}

impl LinuxFabric {
    /// The fabric over this link. `advertised` are the addresses at which other nodes reach this one, for example a port that
    /// the home's router forwards; without any, they are found out. Changes nothing until [`Fabric::ensure`] is called.
    pub fn new(mesh: Arc<dyn MeshDevice>, advertised: Vec<SocketAddr>) -> Self {
        Self {
            mesh,
            advertised,
            inner: Mutex::default(),
        }
    }

    async fn mesh(
        &self,
        plan: &Plan,
    ) -> Result<(AppliedMesh, BTreeMap<String, Name>), NetworkError> {
        let (mut peers, mut nodes) = (Vec::new(), BTreeMap::new());
        for peer in &plan.peers {
            let Some(key) = &peer.public_key else {
                continue;
            };
            nodes.insert(key.clone(), peer.node.clone());
            peers.push(MeshPeer {
                public_key: key.clone(),
                endpoints: peer.endpoints.clone(),
                allowed: peer.subnets.iter().chain(&peer.extra).copied().collect(),
            });
        }
        peers.extend(plan.clients.iter().map(|client| MeshPeer {
            public_key: client.public_key.clone(),
            // A client opens its tunnel itself.
            endpoints: Vec::new(),
            allowed: vec![client.address.into()],
        }));
        let endpoints = peers.iter().flat_map(|peer| &peer.endpoints);
        let applied = self.mesh.ensure(peers.clone(), mtu(endpoints)).await?;
        Ok((applied, nodes))
    }
}

impl Inner {
    fn handle(&mut self) -> Result<Handle, NetworkError> {
        if let Some(handle) = &self.handle {
            return Ok(handle.clone());
        }
        let handle = netlink::connect("opening a netlink socket for the fabric")?;
        self.handle = Some(handle.clone());
        Ok(handle)
    }
}

#[async_trait]
impl Fabric for LinuxFabric {
    fn public_key(&self) -> String {
        self.mesh.public_key()
    }

    fn endpoints(&self, own: IpAddr) -> Vec<SocketAddr> {
        if !self.advertised.is_empty() {
            return self.advertised.clone();
        }
        // waifud on this machine may be reached at an address that other nodes cannot use.
        let usable = Some(own).filter(|own| !own.is_loopback());
        let own = usable.or_else(|| source_towards(ANYWHERE).filter(|ip| !ip.is_loopback()));
        let port = self.mesh.port();
        own.into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()
    }

    async fn ensure(&self, state: &FabricState) -> Result<AppliedFabric, NetworkError> {
        let mut inner = self.inner.lock().await;
        let handle = inner.handle()?;
        if state.kind == FabricKind::Other {
            return Err(conformance::unknown_kind());
        }
        if state.kind != FabricKind::Wireguard {
            // The kernel removes the routes of a link together with it.
            inner.nodes.clear();
            self.mesh.remove().await?;
        }
        let links = Links::read(&handle).await?;
        let before = Routes::read(&handle).await?;
        let ours = [state.bridge.as_str(), self.mesh.interface()];
        let ours = ours.iter().filter_map(|name| links.named(name));
        let ours: Vec<_> = ours.map(|link| link.index).collect();
        let plan = plan(state, &self.public_key(), &before.foreign(&ours));

        let mut applied = AppliedFabric {
            troubles: plan.troubles.clone(),
            ..AppliedFabric::default()
        };
        let mut wanted = Vec::new();
        match state.kind {
            FabricKind::None | FabricKind::Other => applied.troubles.clear(),
            FabricKind::Wireguard => {
                let (mesh, nodes) = self.mesh(&plan).await?;
                inner.nodes = nodes;
                applied.fresh = mesh.fresh;
                applied.backend = Some(mesh.backend);
                let interface = self.mesh.interface();
                let links = Links::read(&handle).await?;
                let link = links.named(interface).ok_or_else(|| NetworkError::Kernel {
                    what: format!("using {interface}"),
                    message: "the link is gone".to_owned(),
                })?;
                let own = Routes::read(&handle).await?.own();
                let path = FabricPath {
                    interface: interface.to_owned(),
                    dedicated: true,
                };
                let through_mesh = |destination| FabricRoute {
                    destination,
                    interface: link.index,
                    gateway: None,
                    source: own.contains(&state.gateway).then_some(state.gateway),
                };
                for peer in &plan.peers {
                    wanted.extend(destinations(peer).map(through_mesh));
                    applied.paths.insert(peer.node.clone(), path.clone());
                }
                let clients = plan
                    .clients
                    .iter()
                    .map(|client| Ipv4Net::from(client.address));
                wanted.extend(clients.map(through_mesh));
                applied.clients = (!plan.clients.is_empty()).then_some(path);
            }
            FabricKind::Static => {
                for peer in &plan.peers {
                    match over_network(&handle, &links, peer).await? {
                        Ok((path, routes)) => {
                            applied.paths.insert(peer.node.clone(), path);
                            wanted.extend(routes);
                        }
                        Err(why) => {
                            applied.troubles.insert(peer.node.clone(), why);
                        }
                    }
                }
            }
        }
        routes::ensure_fabric(&handle, &wanted).await?;
        Ok(applied)
    }

    async fn handshakes(&self) -> Result<BTreeMap<Name, Option<Duration>>, NetworkError> {
        let nodes = self.inner.lock().await.nodes.clone();
        if nodes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let by_key = self.mesh.handshakes().await?;
        let with_name = |(key, age)| Some((nodes.get(&key)?.clone(), age));
        Ok(by_key.into_iter().filter_map(with_name).collect())
    }

    async fn remove(&self) -> Result<Vec<String>, NetworkError> {
        let mut inner = self.inner.lock().await;
        let handle = inner.handle()?;
        inner.nodes.clear();
        let mut removed = Vec::new();
        let routes = routes::ensure_fabric(&handle, &[]).await?;
        if routes > 0 {
            removed.push(format!("{routes} routes to other nodes"));
        }
        if self.mesh.remove().await? {
            removed.push(format!("mesh {}", self.mesh.interface()));
        }
        Ok(removed)
    }
}

/// Addresses that take precedence come last, because the order does not matter to the kernel: the longest prefix wins.
fn destinations(peer: &FabricPeer) -> impl Iterator<Item = Ipv4Net> {
    peer.subnets.iter().chain(&peer.extra).copied()
}

/// How a node is reached over the network that both are in: the path, and routes via the node's own address. A node behind a
/// router is left to that router, which needs the routes itself.
async fn over_network(
    handle: &Handle,
    links: &Links,
    peer: &FabricPeer,
) -> Result<Result<(FabricPath, Vec<FabricRoute>), String>, NetworkError> {
    let Some(address) = next_hop(&peer.endpoints) else {
        return Ok(Err("it has no IPv4 address".to_owned()));
    };
    let Some((index, router)) = routes::towards(handle, address).await? else {
        return Ok(Err(format!(
            "this host has no route to its address {address}"
        )));
    };
    let Some(interface) = links.name_of(index) else {
        return Ok(Err(format!("its address {address} has no interface")));
    };
    if interface == "lo" {
        return Ok(Err(format!(
            "its address {address} is one of this host itself"
        )));
    }
    let path = FabricPath {
        interface: interface.to_owned(),
        dedicated: false,
    };
    if router.is_some() {
        return Ok(Ok((path, Vec::new())));
    }
    let wanted = destinations(peer).map(|destination| FabricRoute {
        destination,
        interface: index,
        gateway: Some(address),
        source: None,
    });
    Ok(Ok((path, wanted.collect())))
}

/// The source address that the kernel chooses for packets to `to`. Nothing is sent.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let socket = connected(SocketAddr::new(to, 9))?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_unspecified()).then_some(source)
}

fn connected(to: SocketAddr) -> Option<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket)
}

/// The MTU of the link: what fits into packets to every peer.
fn mtu<'a>(endpoints: impl Iterator<Item = &'a SocketAddr>) -> u16 {
    let of_path = |to: &SocketAddr| {
        let mtu = getsockopt(&connected(*to)?, sockopt::IpMtu).ok()?;
        u16::try_from(mtu).ok()
    };
    let paths = endpoints.filter(|e| e.is_ipv4()).filter_map(of_path);
    let fits = paths.map(|mtu| mtu.saturating_sub(OVERHEAD)).min();
    fits.unwrap_or(MTU_MAX).clamp(MTU_MIN, MTU_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_towards_loopback_is_loopback_and_the_mtu_is_limited() {
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(source_towards(local), Some(local));
        // The MTU of loopback is 65536.
        assert_eq!(mtu([SocketAddr::new(local, 9)].iter()), MTU_MAX);
        assert_eq!(mtu([].iter()), MTU_MAX);
    }
}
