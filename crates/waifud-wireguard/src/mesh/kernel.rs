//! The link in the kernel. It outlives this process, so everything that counts is read from it again.
//!
//! A change is sent as the difference to what the kernel has: new addresses first, which moves them from other peers without a
//! gap, then what is to be removed. Peers and addresses that stay are not mentioned, so their packets are not lost. The kernel
//! has one endpoint for each peer; among several, this chooses ([`Endpoints`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use netlink_packet_wireguard::WireguardAttribute;

use super::{
    MeshConfig, MeshPeer, MeshPeerStatus, check_mtu,
    endpoints::{Endpoints, SILENT},
    kernel_peers::{Change, Device, Present, batches, changes},
};
use crate::{
    PrivateKey, PublicKey, WireguardError, kernel,
    node::{link::Links, userspace::failed},
};

/// A link of the kernel's WireGuard.
#[derive(Debug)]
pub struct KernelMesh {
    config: MeshConfig,
    known: BTreeMap<PublicKey, Known>,
}

/// What was observed of a peer.
#[derive(Debug)]
struct Known {
    endpoints: Endpoints,
    received: u64,
    /// The time of the last handshake by the host's clock, when this was seen, and its age at that moment. The clock may be set
    /// meanwhile.
    handshake: Option<(Duration, Instant, Duration)>,
}

impl KernelMesh {
    /// The link with this configuration. Changes nothing yet.
    pub fn new(config: MeshConfig) -> Self {
        Self {
            config,
            known: BTreeMap::new(),
        }
    }

    /// Whether this kernel has WireGuard. The kernel loads its module for this question, if that is installed.
    pub async fn is_available(&self) -> Result<bool, WireguardError> {
        let asked = kernel::is_available().await;
        asked.map_err(self.failed("asking the kernel for WireGuard"))
    }

    /// Whether the link exists.
    pub async fn exists(&self) -> Result<bool, WireguardError> {
        let links = self.links()?;
        let state = links.state(&self.config.interface).await;
        let state = state.map_err(self.failed("reading it"))?;
        Ok(state.is_some_and(|link| link.is_wireguard))
    }

    /// Makes the link exist with these peers and this MTU. Needs `CAP_NET_ADMIN`; must be called inside a tokio runtime, in the
    /// network namespace of the link. Another link of that name is replaced. Packets of peers that stay are not lost. Returns
    /// whether the link was created.
    pub async fn ensure(&mut self, peers: &[MeshPeer], mtu: u16) -> Result<bool, WireguardError> {
        check_mtu(mtu)?;
        let links = self.links()?;
        let now = Instant::now();
        let interface = &self.config.interface;
        let state = links.state(interface).await;
        let state = state.map_err(self.failed("reading it"))?;
        let mut present = match state {
            Some(link) if link.is_wireguard => {
                self.read().await?.filter(|device| self.fits(device))
            }
            _ => None,
        };
        let fresh = present.is_none();
        if fresh {
            let removed = links.remove(interface).await;
            removed.map_err(self.failed("removing the former link"))?;
            self.known.clear();
            if let Err(error) = self.create(&links, mtu).await {
                let removed = links.remove(&self.config.interface).await;
                removed.map_err(self.failed("removing an unusable link"))?;
                return Err(error);
            }
            present = self.read().await?;
        } else if state.is_some_and(|link| !link.is_up || link.mtu != u32::from(mtu)) {
            self.bring_up(&links, mtu).await?;
        }
        let present = present.map(|device| device.peers).unwrap_or_default();
        self.observe(&present, now);
        let moved = self.choose_endpoints(peers, &present, now);
        let decoy = PrivateKey::generate().public_key();
        self.send(changes(&present, peers, &moved, decoy)).await?;
        Ok(fresh)
    }

    /// The state of every peer, sorted by key; nothing if there is no link. Tries the next endpoint of silent peers.
    pub async fn peers(&mut self) -> Result<Vec<MeshPeerStatus>, WireguardError> {
        if !self.exists().await? {
            return Ok(Vec::new());
        }
        let Some(device) = self.read().await? else {
            return Ok(Vec::new());
        };
        let now = Instant::now();
        self.observe(&device.peers, now);
        let mut moved = Vec::new();
        for key in device.peers.keys() {
            if let Some(known) = self.known.get_mut(key)
                && known.endpoints.try_next(now)
                && let Some(endpoint) = known.endpoints.current()
            {
                moved.push(Change::endpoint(*key, endpoint));
            }
        }
        self.send(moved).await?;
        let statuses = device.peers.iter().map(|(key, peer)| {
            let handshake = self.known.get(key).and_then(|known| known.handshake);
            let age = handshake.map(|(_, seen, age)| age + now.saturating_duration_since(seen));
            MeshPeerStatus {
                public_key: *key,
                endpoint: peer.endpoint,
                handshake_age_s: age.map(|age| age.as_secs()),
                received_bytes: peer.received,
                sent_bytes: peer.sent,
            }
        });
        Ok(statuses.collect())
    }

    /// Removes the link. Returns whether there was one. A link of that name that is not WireGuard stays.
    pub async fn remove(&mut self) -> Result<bool, WireguardError> {
        self.known.clear();
        if !self.exists().await? {
            return Ok(false);
        }
        let removed = self.links()?.remove(&self.config.interface).await;
        removed.map_err(self.failed("removing it"))?;
        Ok(true)
    }

    async fn create(&self, links: &Links, mtu: u16) -> Result<(), WireguardError> {
        let interface = &self.config.interface;
        let added = links.add_wireguard(interface).await;
        added.map_err(self.failed("creating it"))?;
        let configured = kernel::set(vec![
            WireguardAttribute::IfName(interface.clone()),
            WireguardAttribute::PrivateKey(self.config.private_key.secret().to_bytes()),
            WireguardAttribute::ListenPort(self.config.port),
        ]);
        let configured = configured.await;
        configured.map_err(self.failed("configuring the key"))?;
        self.bring_up(links, mtu).await
    }

    /// Also opens the UDP port, which another program may have.
    async fn bring_up(&self, links: &Links, mtu: u16) -> Result<(), WireguardError> {
        match kernel::bring_up(links, &self.config.interface, mtu).await {
            Err(WireguardError::Link { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse =>
            {
                let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.config.port);
                Err(WireguardError::Bind { address, source })
            }
            other => other,
        }
    }

    fn fits(&self, device: &Device) -> bool {
        device.public_key == Some(self.config.private_key.public_key())
            && device.port == self.config.port
    }

    /// The device; `None` if the link has disappeared meanwhile.
    async fn read(&self) -> Result<Option<Device>, WireguardError> {
        match kernel::get(&self.config.interface).await {
            Ok(attributes) => Ok(Some(Device::of(attributes))),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(self.failed("reading its peers")(error)),
        }
    }

    /// Records what the kernel has heard of its peers.
    fn observe(&mut self, present: &BTreeMap<PublicKey, Present>, now: Instant) {
        self.known.retain(|key, _| present.contains_key(key));
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since_epoch = since_epoch.unwrap_or_default();
        for (key, peer) in present {
            let Some(known) = self.known.get_mut(key) else {
                continue;
            };
            if peer.received > known.received {
                known.endpoints.heard(peer.endpoint, now);
            } else {
                known.endpoints.is_at(peer.endpoint);
            }
            known.received = peer.received;
            known.note_handshake(peer, since_epoch, now);
        }
    }

    /// Decides where the peers are. Returns those whose endpoint has to be set.
    fn choose_endpoints(
        &mut self,
        peers: &[MeshPeer],
        present: &BTreeMap<PublicKey, Present>,
        now: Instant,
    ) -> BTreeMap<PublicKey, SocketAddr> {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let since_epoch = since_epoch.unwrap_or_default();
        let wanted: BTreeSet<_> = peers.iter().map(|peer| peer.public_key).collect();
        self.known.retain(|key, _| wanted.contains(key));
        let mut moved = BTreeMap::new();
        for peer in peers {
            let key = peer.public_key;
            let changed = match (self.known.get_mut(&key), present.get(&key)) {
                (Some(known), _) => {
                    let set = known.endpoints.set(&peer.endpoints, now);
                    known.endpoints.try_next(now) || set
                }
                // A former process has added it.
                (None, Some(there)) => {
                    let mut known = Known::new(&peer.endpoints, there.received, now);
                    known.note_handshake(there, since_epoch, now);
                    let is_recent = known.handshake.is_some_and(|(_, _, age)| age < SILENT);
                    if is_recent {
                        known.endpoints.heard(there.endpoint, now);
                    } else if there.endpoint.is_some() {
                        known.endpoints.is_at(there.endpoint);
                    }
                    self.known.insert(key, known);
                    there.endpoint.is_none()
                }
                (None, None) => {
                    self.known.insert(key, Known::new(&peer.endpoints, 0, now));
                    true
                }
            };
            let current = self
                .known
                .get(&key)
                .and_then(|known| known.endpoints.current());
            if let Some(endpoint) = current.filter(|_| changed) {
                moved.insert(key, endpoint);
            }
        }
        moved
    }

    async fn send(&self, changes: Vec<Change>) -> Result<(), WireguardError> {
        for peers in batches(changes) {
            let sent = kernel::set(vec![
                WireguardAttribute::IfName(self.config.interface.clone()),
                WireguardAttribute::Peers(peers),
            ]);
            sent.await.map_err(self.failed("changing its peers"))?;
        }
        Ok(())
    }

    fn links(&self) -> Result<Links, WireguardError> {
        Links::new().map_err(self.failed("opening a netlink socket"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> WireguardError + use<> {
        failed(&self.config.interface, action)
    }
}

impl Known {
    fn new(candidates: &[SocketAddr], received: u64, now: Instant) -> Self {
        Self {
            endpoints: Endpoints::new(candidates, now),
            received,
            handshake: None,
        }
    }

    /// `since_epoch` is the present time by the host's clock.
    fn note_handshake(&mut self, peer: &Present, since_epoch: Duration, now: Instant) {
        let Some(at) = peer.handshake else {
            self.handshake = None;
            return;
        };
        if self.handshake.is_none_or(|(before, _, _)| before != at) {
            self.handshake = Some((at, now, since_epoch.saturating_sub(at)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh() -> KernelMesh {
        KernelMesh::new(MeshConfig {
            interface: "wfmesh0".to_owned(),
            private_key: PrivateKey::generate(),
            port: 51820,
            mtu: 1420,
        })
    }

    fn endpoint(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 51820))
    }

    fn peer(endpoints: &[u8]) -> MeshPeer {
        MeshPeer {
            public_key: PublicKey::from([7; 32]),
            endpoints: endpoints.iter().map(|number| endpoint(*number)).collect(),
            allowed: Vec::new(),
        }
    }

    fn present(endpoint: Option<SocketAddr>, received: u64) -> BTreeMap<PublicKey, Present> {
        let there = Present {
            endpoint,
            received,
            ..Present::default()
        };
        BTreeMap::from([(PublicKey::from([7; 32]), there)])
    }

    #[test]
    fn a_peer_of_a_former_process_keeps_its_endpoint_until_it_is_silent() {
        let mut mesh = mesh();
        let start = Instant::now();
        let at_nine = present(Some(endpoint(9)), 100);
        assert!(
            mesh.choose_endpoints(&[peer(&[1, 2])], &at_nine, start)
                .is_empty()
        );
        let later = start + Duration::from_secs(16);
        mesh.observe(&at_nine, later);
        let moved = mesh.choose_endpoints(&[peer(&[1, 2])], &at_nine, later);
        assert_eq!(moved.into_values().collect::<Vec<_>>(), [endpoint(1)]);
        // It answers from there.
        let at_one = present(Some(endpoint(1)), 200);
        let later = later + Duration::from_secs(16);
        mesh.observe(&at_one, later);
        assert!(
            mesh.choose_endpoints(&[peer(&[1, 2])], &at_one, later)
                .is_empty()
        );
    }

    #[test]
    fn a_peer_of_a_former_process_without_an_endpoint_gets_one_as_does_a_new_peer() {
        for there in [present(None, 0), BTreeMap::new()] {
            let moved = mesh().choose_endpoints(&[peer(&[1])], &there, Instant::now());
            assert_eq!(moved.into_values().collect::<Vec<_>>(), [endpoint(1)]);
        }
    }

    #[test]
    fn the_age_of_a_handshake_does_not_follow_changes_of_the_hosts_clock() {
        let start = Instant::now();
        let mut known = Known::new(&[], 0, start);
        let at = |seconds| Present {
            handshake: Some(Duration::from_secs(seconds)),
            ..Present::default()
        };
        known.note_handshake(&at(1000), Duration::from_secs(1005), start);
        // The clock is set a day ahead.
        known.note_handshake(&at(1000), Duration::from_secs(87400), start);
        let (_, seen, age) = known.handshake.unwrap();
        assert_eq!((seen, age), (start, Duration::from_secs(5)));
        known.note_handshake(&at(87401), Duration::from_secs(87402), start);
        assert_eq!(known.handshake.unwrap().2, Duration::from_secs(1));
    }
}
