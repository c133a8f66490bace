//! The WireGuard link between nodes: that of the kernel where it has one, otherwise a process ([`MeshProcess`]).
//!
//! Each time, the other one is removed first, so that changing the configuration, loading the kernel's module and unloading it
//! leave no link behind. A process that runs is kept until the agent starts again: a module that is installed meanwhile
//! interrupts nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::sync::Mutex;
use waifud_network::NetworkError;
use waifud_network::fabric::{AppliedMesh, MeshDevice, MeshPeer};
use waifud_types::MeshBackend;
use waifud_wireguard::mesh::{self, KernelMesh, MeshConfig};
use waifud_wireguard::{PrivateKey, WireguardError};

use crate::config::MeshChoice;
use crate::mesh::{MTU, MeshProcess};
use crate::tunnel::read_or_create_key;

/// [`MeshDevice`] by the kernel or a process.
pub struct MeshLink {
    interface: String,
    port: u16,
    key: PrivateKey,
    choice: MeshChoice,
    process: MeshProcess,
    /// Held while anything is changed.
    state: Mutex<State>,
}

struct State {
    kernel: KernelMesh,
    /// What carries the mesh, once it was decided.
    backend: Option<MeshBackend>,
}

impl MeshLink {
    /// The link with the key in `key_file`, which is created if absent. Changes nothing yet.
    pub fn open(
        interface: String,
        port: u16,
        choice: MeshChoice,
        key_file: &Path,
        socket: &Path,
    ) -> anyhow::Result<Self> {
        let key = read_or_create_key(key_file)?;
        let kernel = KernelMesh::new(MeshConfig {
            interface: interface.clone(),
            private_key: key.clone(),
            port,
            mtu: MTU,
        });
        let process = MeshProcess::new(interface.clone(), port, key.clone(), key_file, socket);
        Ok(Self {
            interface,
            port,
            key,
            choice,
            process,
            state: Mutex::new(State {
                kernel,
                backend: None,
            }),
        })
    }

    /// Decides what carries the mesh.
    async fn decide(&self, state: &State) -> Result<MeshBackend, NetworkError> {
        if self.choice == MeshChoice::Userspace || state.backend == Some(MeshBackend::Userspace) {
            return Ok(MeshBackend::Userspace);
        }
        if state.kernel.is_available().await.map_err(self.failed())? {
            return Ok(MeshBackend::Kernel);
        }
        if self.choice == MeshChoice::Kernel {
            return Err(NetworkError::Kernel {
                what: "a WireGuard link".to_owned(),
                message: "it has no WireGuard; install its module `wireguard`, or remove `mesh_backend` from agentd.toml"
                    .to_owned(),
            });
        }
        Ok(MeshBackend::Userspace)
    }

    /// Applies the peers to the kernel's link. `None` if the kernel cannot create one, although it has WireGuard.
    async fn ensure_in_kernel(
        &self,
        state: &mut State,
        peers: &[mesh::MeshPeer],
        mtu: u16,
    ) -> Result<Option<bool>, NetworkError> {
        self.process.remove().await?;
        match state.kernel.ensure(peers, mtu).await {
            Ok(fresh) => Ok(Some(fresh)),
            Err(error @ WireguardError::Bind { .. }) => Err(self.failed()(error)),
            Err(error) => {
                let exists = state.kernel.exists().await.map_err(self.failed())?;
                if exists || self.choice == MeshChoice::Kernel {
                    return Err(self.failed()(error));
                }
                let error = waifud_kit::error::with_causes(&error);
                tracing::warn!(error, "the kernel's WireGuard failed; using a process");
                Ok(None)
            }
        }
    }

    fn failed(&self) -> impl Fn(WireguardError) -> NetworkError + use<> {
        let port = self.port;
        move |error| match error {
            WireguardError::Bind { source, .. }
                if source.kind() == std::io::ErrorKind::AddrInUse =>
            {
                NetworkError::PortTaken { port }
            }
            error => NetworkError::Kernel {
                what: "a WireGuard link".to_owned(),
                message: waifud_kit::error::with_causes(&error),
            },
        }
    }
}

#[async_trait::async_trait]
impl MeshDevice for MeshLink {
    fn interface(&self) -> &str {
        &self.interface
    }

    fn public_key(&self) -> String {
        self.key.public_key().to_string()
    }

    fn port(&self) -> u16 {
        self.port
    }

    async fn ensure(&self, peers: Vec<MeshPeer>, mtu: u16) -> Result<AppliedMesh, NetworkError> {
        let mut state = self.state.lock().await;
        // waifud does not check keys; only the node of an invalid one is left out.
        let peers = peers.into_iter().filter_map(|peer| {
            Some(mesh::MeshPeer {
                public_key: peer.public_key.parse().ok()?,
                endpoints: peer.endpoints,
                allowed: peer.allowed,
            })
        });
        let peers: Vec<_> = peers.collect();
        let mut backend = self.decide(&state).await?;
        let mut fresh = false;
        if backend == MeshBackend::Kernel {
            match self.ensure_in_kernel(&mut state, &peers, mtu).await? {
                Some(created) => fresh = created,
                None => backend = MeshBackend::Userspace,
            }
        }
        if backend == MeshBackend::Userspace {
            state.kernel.remove().await.map_err(self.failed())?;
            fresh = self.process.ensure(peers, mtu).await?;
        }
        if state.backend != Some(backend) {
            tracing::info!(%backend, "the mesh is up");
        }
        state.backend = Some(backend);
        Ok(AppliedMesh { fresh, backend })
    }

    async fn handshakes(&self) -> Result<BTreeMap<String, Option<Duration>>, NetworkError> {
        let mut state = self.state.lock().await;
        let peers = match state.backend {
            Some(MeshBackend::Kernel) => state.kernel.peers().await.map_err(self.failed())?,
            _ => self.process.peers().await?,
        };
        let ages = peers.into_iter().map(|peer| {
            let age = peer.handshake_age_s.map(Duration::from_secs);
            (peer.public_key.to_string(), age)
        });
        Ok(ages.collect())
    }

    async fn remove(&self) -> Result<bool, NetworkError> {
        let mut state = self.state.lock().await;
        state.backend = None;
        let process = self.process.remove().await?;
        let link = state.kernel.remove().await.map_err(self.failed())?;
        Ok(process || link)
    }
}
