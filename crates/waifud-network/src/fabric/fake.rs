//! A fake fabric in memory, for the agent's tests and the simulation.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use waifud_types::{FabricKind, MeshBackend, Name};

use super::{AppliedFabric, Fabric, FabricPath, FabricState, plan};
use crate::NetworkError;

/// The fake. It passes the same conformance tests as the real one.
#[derive(Debug)]
pub struct FakeFabric {
    number: u8,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Option<FabricState>,
    port_is_taken: bool,
    silent: BTreeMap<Name, Option<Duration>>,
}

impl FakeFabric {
    /// A node without a fabric, whose key is that of [`peer`](super::conformance::peer) with this number.
    pub fn new(number: u8) -> Arc<Self> {
        Arc::new(Self {
            number,
            inner: Mutex::default(),
        })
    }

    /// The state that was ensured last.
    pub fn state(&self) -> Option<FabricState> {
        self.lock().state.clone()
    }

    /// Sets whether another program has the port of the mesh.
    pub fn take_port(&self, taken: bool) {
        self.lock().port_is_taken = taken;
    }

    /// Sets the time since the last handshake with a node, which is otherwise a second.
    pub fn set_handshake(&self, node: &Name, age: Option<Duration>) {
        self.lock().silent.insert(node.clone(), age);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Fabric for FakeFabric {
    fn public_key(&self) -> String {
        super::conformance::key(self.number)
    }

    fn endpoints(&self, own: IpAddr) -> Vec<SocketAddr> {
        vec![SocketAddr::new(own, 51820)]
    }

    async fn ensure(&self, state: &FabricState) -> Result<AppliedFabric, NetworkError> {
        let mut inner = self.lock();
        let path = match state.kind {
            FabricKind::Other => return Err(super::conformance::unknown_kind()),
            FabricKind::Wireguard if inner.port_is_taken => {
                return Err(NetworkError::PortTaken { port: 51820 });
            }
            FabricKind::Wireguard => Some(FabricPath {
                interface: "wfmesh0".to_owned(),
                dedicated: true,
            }),
            FabricKind::Static => Some(FabricPath {
                interface: "eth0".to_owned(),
                dedicated: false,
            }),
            FabricKind::None => None,
        };
        let before = inner.state.replace(state.clone()).map(|state| state.kind);
        let Some(path) = path else {
            return Ok(AppliedFabric::default());
        };
        let plan = plan(state, &self.public_key(), &[]);
        let nodes = plan.peers.into_iter().map(|peer| peer.node);
        Ok(AppliedFabric {
            clients: (!plan.clients.is_empty()).then(|| path.clone()),
            paths: nodes.map(|node| (node, path.clone())).collect(),
            troubles: plan.troubles,
            backend: path.dedicated.then_some(MeshBackend::Userspace),
            fresh: path.dedicated && before != Some(state.kind),
        })
    }

    async fn handshakes(&self) -> Result<BTreeMap<Name, Option<Duration>>, NetworkError> {
        let inner = self.lock();
        let Some(state) = &inner.state else {
            return Ok(BTreeMap::new());
        };
        if state.kind != FabricKind::Wireguard {
            return Ok(BTreeMap::new());
        }
        let peers = plan(state, &self.public_key(), &[]).peers;
        let recent = Some(Duration::from_secs(1));
        let ages = peers.into_iter().map(|peer| {
            let age = inner.silent.get(&peer.node).copied().unwrap_or(recent);
            (peer.node, age)
        });
        Ok(ages.collect())
    }

    async fn remove(&self) -> Result<Vec<String>, NetworkError> {
        let was = self.lock().state.take();
        let has_parts = was.is_some_and(|state| state.kind != FabricKind::None);
        Ok(if has_parts {
            vec!["fabric".to_owned()]
        } else {
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[tokio::test]
    async fn the_fake_conforms() {
        conformance::all(FakeFabric::new(1).as_ref()).await;
    }
}
