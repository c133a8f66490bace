//! The fabric, which connects this node's guests to those of other nodes: applied from the peers that waifud has sent, and
//! watched.
//!
//! What is applied is what the guests' network uses: it accepts packets of other nodes' guests only where the fabric delivers
//! them. So the fabric is applied once before the guests' network is, also after a restart of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use waifud_api::agent::{NodeSlice, Peer};
use waifud_kit::sync::lock;
use waifud_network::NetworkError;
use waifud_network::fabric::{AppliedFabric, Fabric, FabricPeer, FabricState};
use waifud_types::status::Condition;
use waifud_types::{FabricKind, Name, Timestamp};

use crate::condition::condition;
use crate::control_link::table::Table;
use crate::network::clients::clients;
use crate::network::ports::local_addresses;
use crate::network::remote::further_addresses;

/// The time limit of one change.
const TIMEOUT: Duration = Duration::from_secs(30);
/// After this time without a handshake with a node that waifud reaches, the node has a condition. WireGuard's sessions end
/// then, too.
const HANDSHAKE_MAX: Duration = Duration::from_mins(3);
/// How many nodes a condition describes.
const SHOWN: usize = 3;

/// The fabric of this node; see the module documentation.
pub struct NodeFabric {
    adapter: Arc<dyn Fabric>,
    bridge: String,
    /// Held while the fabric is changed.
    changing: tokio::sync::Mutex<()>,
    check: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tried: bool,
    /// The addresses of this node's guests at the last attempt.
    local: BTreeSet<Ipv4Addr>,
    applied: AppliedFabric,
    kind: FabricKind,
    /// Why the last attempt failed: a reason for programs and a sentence.
    failure: Option<(&'static str, String)>,
    /// Since when each peer is reachable for waifud and has a path.
    since: BTreeMap<Name, Instant>,
}

/// What an attempt has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// The paths of nodes differ from those before.
    pub paths: bool,
    /// An interface was created.
    pub fresh: bool,
    /// Conditions may differ.
    pub conditions: bool,
}

impl NodeFabric {
    pub fn new(adapter: Arc<dyn Fabric>, bridge: String) -> Self {
        Self {
            adapter,
            bridge,
            changing: tokio::sync::Mutex::new(()),
            check: Notify::new(),
            inner: Mutex::default(),
        }
    }

    /// Requests that the fabric is applied again.
    pub fn request_check(&self) {
        self.check.notify_one();
    }

    /// Returns when a check was requested.
    pub async fn check_requested(&self) {
        self.check.notified().await;
    }

    pub fn adapter(&self) -> &dyn Fabric {
        self.adapter.as_ref()
    }

    /// What is applied.
    pub fn applied(&self) -> AppliedFabric {
        self.inner().applied.clone()
    }

    /// Requests that the fabric is applied again if the addresses of this node's guests are not those of the last attempt and other
    /// nodes have had one of them, or have one now.
    pub(crate) fn note_local_addresses(&self, local: &BTreeSet<Ipv4Addr>, peers: &[Peer]) {
        let changed: Vec<_> = {
            let inner = self.inner();
            inner.local.symmetric_difference(local).copied().collect()
        };
        let mut elsewhere = peers.iter().flat_map(|peer| &peer.extra);
        if elsewhere.any(|net| changed.iter().any(|address| net.contains(address))) {
            self.request_check();
        }
    }

    /// Whether it was tried to apply the fabric since the agent started.
    pub fn was_tried(&self) -> bool {
        self.inner().tried
    }

    /// Applies the fabric that waifud has chosen to the present peers. After a failure, what was applied before is kept.
    pub async fn apply(&self, table: &Table) -> Result<Change, NetworkError> {
        let _one_at_a_time = self.changing.lock().await;
        let Some(slice) = table.node().slice else {
            return Ok(Change::default());
        };
        let peers = table.peers();
        let local = local_addresses(&table.records());
        let state = desired(&slice, self.bridge.clone(), &peers, &local);
        let kind = state.kind;
        let ensured = timeout(TIMEOUT, self.adapter.ensure(&state)).await;
        let ensured = ensured.unwrap_or_else(|_| {
            Err(NetworkError::Kernel {
                what: "the fabric".to_owned(),
                message: format!("it took longer than {} s", TIMEOUT.as_secs()),
            })
        });
        let mut inner = self.inner();
        inner.tried = true;
        inner.kind = kind;
        inner.local = local;
        match ensured {
            Ok(applied) => {
                let change = Change {
                    paths: inner.applied.paths != applied.paths
                        || inner.applied.clients != applied.clients,
                    fresh: applied.fresh,
                    conditions: inner.failure.is_some()
                        || inner.applied.troubles != applied.troubles,
                };
                inner.failure = None;
                inner.note_reachable(&applied, &peers);
                inner.applied = applied;
                Ok(change)
            }
            Err(error) => {
                let reason = match error {
                    NetworkError::PortTaken { .. } => "port-taken",
                    _ => "failed",
                };
                inner.failure = Some((reason, waifud_kit::error::with_causes(&error)));
                Err(error)
            }
        }
    }

    /// The conditions of the fabric: what prevents it, and which nodes do not answer.
    pub async fn conditions(&self, peers: &[Peer], now: Timestamp) -> Vec<Condition> {
        let mut conditions = Vec::new();
        let (kind, failure, troubles, since) = {
            let inner = self.inner();
            (
                inner.kind,
                inner.failure.clone(),
                inner.applied.troubles.clone(),
                inner.since.clone(),
            )
        };
        if let Some((reason, message)) = failure {
            let message = format!("guests of other nodes cannot be reached: {message}");
            conditions.push(condition("fabric", false, reason, message, now));
        } else if !troubles.is_empty() {
            let all = troubles.iter().map(|(node, why)| format!("{node}: {why}"));
            let message = format!("guests of some nodes cannot be reached: {}", first(all));
            conditions.push(condition("fabric", false, "unusable-peers", message, now));
        }
        if kind != FabricKind::Wireguard {
            return conditions;
        }
        let handshakes = match timeout(TIMEOUT, self.adapter.handshakes()).await {
            Ok(Ok(handshakes)) => handshakes,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot read the handshakes of the mesh");
                return conditions;
            }
            Err(_) => return conditions,
        };
        let silent = |peer: &&Peer| {
            let waited = since.get(&peer.name).map(Instant::elapsed);
            let age = handshakes.get(&peer.name).copied().flatten();
            waited.is_some_and(|waited| waited > HANDSHAKE_MAX)
                && age.is_none_or(|age| age > HANDSHAKE_MAX)
        };
        let silent: Vec<&Peer> = peers.iter().filter(silent).collect();
        let names = |nodes: &[&Peer]| first(nodes.iter().map(|peer| peer.name.to_string()));
        let (known, unknown): (Vec<&Peer>, Vec<&Peer>) = silent
            .into_iter()
            .partition(|peer| !peer.endpoints.is_empty());
        if !known.is_empty() {
            let message = format!(
                "no WireGuard handshake for more than {} minutes with {}; does a firewall between the nodes drop UDP? \
                 See waifuctl fabric show for addresses and ports",
                HANDSHAKE_MAX.as_secs() / 60,
                names(&known)
            );
            conditions.push(condition("mesh", false, "no-handshake", message, now));
        } else if !unknown.is_empty() {
            let message = format!(
                "no address is known of {}, and it has not called; set `mesh_endpoints` in its agentd.toml",
                names(&unknown)
            );
            conditions.push(condition("mesh", false, "no-endpoint", message, now));
        }
        conditions
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    fn note_reachable(&mut self, applied: &AppliedFabric, peers: &[Peer]) {
        let now = Instant::now();
        let here = |peer: &&Peer| peer.reachable && applied.paths.contains_key(&peer.name);
        let before = if applied.fresh {
            // A mesh that has just begun has no handshakes yet.
            BTreeMap::new()
        } else {
            std::mem::take(&mut self.since)
        };
        let reachable = peers.iter().filter(here);
        self.since = reachable
            .map(|peer| {
                let since = before.get(&peer.name).copied().unwrap_or(now);
                (peer.name.clone(), since)
            })
            .collect();
    }
}

/// The first of some texts, and how many more there are.
fn first(all: impl Iterator<Item = String>) -> String {
    let all: Vec<_> = all.collect();
    let shown = all.get(..SHOWN).unwrap_or(&all).join("; ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// The desired fabric.
fn desired(
    slice: &NodeSlice,
    bridge: String,
    peers: &[Peer],
    local: &BTreeSet<Ipv4Addr>,
) -> FabricState {
    let peers = peers.iter().map(|peer| FabricPeer {
        node: peer.name.clone(),
        subnets: peer.subnets.clone(),
        extra: further_addresses(peer, local).collect(),
        public_key: peer.public_key.clone(),
        endpoints: peer.endpoints.clone(),
    });
    FabricState {
        kind: slice.fabric,
        subnet: slice.subnet,
        gateway: slice.gateway,
        bridge,
        peers: peers.collect(),
        clients: clients(slice),
    }
}

#[cfg(test)]
mod tests {
    use waifud_api::agent::{SliceObject, WatchFrame};
    use waifud_network::fabric::conformance;
    use waifud_network::fabric::fake::FakeFabric;
    use waifud_network::fake::FakeNetwork;
    use waifud_types::{Incarnation, MacAddr, NodeId};

    use super::*;
    use crate::Timing;
    use crate::control_link::table_samples::{new_table, revision, sync};
    use crate::fake::sample_settings;
    use crate::network::Network;

    fn peer(index: u8) -> Peer {
        let peer = conformance::peer(index);
        Peer {
            id: NodeId::generate(),
            name: peer.node,
            subnets: peer.subnets,
            extra: Vec::new(),
            public_key: peer.public_key,
            endpoints: peer.endpoints,
            reachable: true,
        }
    }

    fn node(fabric: FabricKind) -> SliceObject {
        SliceObject::Node(NodeSlice {
            id: "00000000-0000-7000-8000-000000000001".parse().unwrap(),
            name: "alder".parse().unwrap(),
            subnet: "10.144.1.0/24".parse().unwrap(),
            gateway: [10, 144, 1, 1].into(),
            gateway_mac: MacAddr::of_guest([0, 0, 1]),
            confirmed: Some(Incarnation(1)),
            fabric,
            redis: None,
            clients: None,
        })
    }

    /// A table of a node in a mesh with these peers.
    fn table(peers: &[Peer]) -> (tempfile::TempDir, Table) {
        let (dir, table) = new_table();
        table.begin_watch();
        let mut objects = vec![node(FabricKind::Wireguard)];
        objects.extend(peers.iter().cloned().map(SliceObject::Peer));
        for (number, object) in (1..).zip(objects) {
            let revision = revision(number);
            table.apply(WatchFrame::Put { revision, object }).unwrap();
        }
        table.apply(sync(9)).unwrap();
        (dir, table)
    }

    async fn reasons(fabric: &NodeFabric, table: &Table) -> Vec<(String, String)> {
        fabric.apply(table).await.unwrap();
        let conditions = fabric
            .conditions(&table.peers(), Timestamp::UNIX_EPOCH)
            .await;
        let shown = conditions.into_iter().map(|c| (c.reason, c.message));
        shown.collect()
    }

    #[tokio::test]
    async fn the_first_state_of_the_guests_network_has_the_paths_of_the_fabric() {
        let (dir, table) = table(&[peer(2)]);
        let guests = FakeNetwork::new();
        let path = |name: &str| dir.path().join(name);
        let settings = sample_settings(path("state"), path("run"), Timing::default());
        let network = Network::new(guests.clone(), FakeFabric::new(1), settings);
        // A state without them would cut the connections that the fabric carries while the agent restarts.
        network.apply(&table, true).await.unwrap();
        let remote = guests.state().unwrap().remote_subnets;
        assert_eq!(remote[0].fabric.as_deref(), Some("wfmesh0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ready_node_without_a_handshake_for_three_minutes_is_a_condition() {
        let adapter = FakeFabric::new(1);
        let fabric = NodeFabric::new(adapter.clone(), "waifu0".to_owned());
        let mut peers = [peer(2), peer(3), peer(4), peer(5)];
        peers[2].reachable = false;
        peers[3].endpoints.clear();
        let (_dir, table) = table(&peers);
        for peer in &peers[1..] {
            adapter.set_handshake(&peer.name, None);
        }
        assert!(reasons(&fabric, &table).await.is_empty());
        tokio::time::advance(HANDSHAKE_MAX).await;
        assert!(reasons(&fabric, &table).await.is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        let found = reasons(&fabric, &table).await;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "no-handshake");
        assert!(found[0].1.contains("with node-3;"), "{found:?}");

        // A node that has never called and whose address is unknown has a condition of its own.
        adapter.set_handshake(&peers[1].name, Some(HANDSHAKE_MAX));
        let found = reasons(&fabric, &table).await;
        assert_eq!(found[0].0, "no-endpoint", "{found:?}");
        assert!(found[0].1.contains("node-5"), "{found:?}");
        adapter.set_handshake(&peers[3].name, Some(Duration::from_secs(1)));
        assert!(reasons(&fabric, &table).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_mesh_that_begins_again_has_three_minutes_for_its_handshakes() {
        let adapter = FakeFabric::new(1);
        let fabric = NodeFabric::new(adapter.clone(), "waifu0".to_owned());
        let (_dir, table) = table(&[peer(2)]);
        assert!(reasons(&fabric, &table).await.is_empty());
        tokio::time::advance(HANDSHAKE_MAX * 2).await;
        for (number, kind) in [(10, FabricKind::Static), (11, FabricKind::Wireguard)] {
            let (revision, object) = (revision(number), node(kind));
            table.apply(WatchFrame::Put { revision, object }).unwrap();
            adapter.set_handshake(&peer(2).name, None);
            assert!(reasons(&fabric, &table).await.is_empty(), "{kind}");
        }
        tokio::time::advance(HANDSHAKE_MAX + Duration::from_secs(1)).await;
        let found = reasons(&fabric, &table).await;
        assert_eq!(found[0].0, "no-handshake", "{found:?}");
    }
}
