//! Several nodes in one network, each with the guests' network, a fabric and a guest.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use waifud_network::fabric::{
    AppliedFabric, AppliedMesh, Fabric, FabricPeer, FabricState, MeshDevice, MeshPeer,
};
use waifud_network::linux::{LinuxFabric, LinuxNetwork, LinuxNetworkConfig};
use waifud_network::samples::state;
use waifud_network::{GuestNetwork, NetworkError, NetworkState, RemoteSubnet, gateway_of};
use waifud_types::{FabricKind, MeshBackend};
use waifud_wireguard::mesh::{self, KernelMesh, Mesh, MeshConfig};
use waifud_wireguard::{PrivateKey, WireguardError};

use crate::lab::veth;
use crate::namespace::Namespace;
use crate::wire::{PATIENCE, eventually};

pub const MESH: &str = "wfmesh0";
const PORT: u16 = 51820;

/// The link of a mesh in this process, with the real WireGuard in userspace.
pub struct InProcess {
    key: PrivateKey,
    mesh: Mutex<Option<Mesh>>,
}

impl InProcess {
    pub fn new(key: PrivateKey) -> Arc<Self> {
        Arc::new(Self {
            key,
            mesh: Mutex::default(),
        })
    }
}

/// The peers as the link takes them.
fn peers_of(peers: Vec<MeshPeer>) -> Vec<mesh::MeshPeer> {
    let peers = peers.into_iter().map(|peer| mesh::MeshPeer {
        public_key: peer.public_key.parse().unwrap(),
        endpoints: peer.endpoints,
        allowed: peer.allowed,
    });
    peers.collect()
}

fn ages_of(peers: Vec<mesh::MeshPeerStatus>) -> BTreeMap<String, Option<Duration>> {
    let ages = peers.into_iter().map(|peer| {
        let age = peer.handshake_age_s.map(Duration::from_secs);
        (peer.public_key.to_string(), age)
    });
    ages.collect()
}

/// The link of a mesh in the kernel.
pub struct InKernel {
    key: PrivateKey,
    mesh: Mutex<KernelMesh>,
}

impl InKernel {
    pub fn new(key: PrivateKey) -> Arc<Self> {
        let mesh = KernelMesh::new(MeshConfig {
            interface: MESH.to_owned(),
            private_key: key.clone(),
            port: PORT,
            mtu: 1420,
        });
        Arc::new(Self {
            key,
            mesh: Mutex::new(mesh),
        })
    }
}

#[async_trait]
impl MeshDevice for InKernel {
    fn interface(&self) -> &str {
        MESH
    }

    fn public_key(&self) -> String {
        self.key.public_key().to_string()
    }

    fn port(&self) -> u16 {
        PORT
    }

    async fn ensure(&self, peers: Vec<MeshPeer>, mtu: u16) -> Result<AppliedMesh, NetworkError> {
        let peers = peers_of(peers);
        let fresh = self.mesh.lock().await.ensure(&peers, mtu).await.unwrap();
        Ok(AppliedMesh {
            fresh,
            backend: MeshBackend::Kernel,
        })
    }

    async fn handshakes(&self) -> Result<BTreeMap<String, Option<Duration>>, NetworkError> {
        Ok(ages_of(self.mesh.lock().await.peers().await.unwrap()))
    }

    async fn remove(&self) -> Result<bool, NetworkError> {
        Ok(self.mesh.lock().await.remove().await.unwrap())
    }
}

/// The link of a mesh.
pub fn mesh_device(backend: MeshBackend, key: PrivateKey) -> Arc<dyn MeshDevice> {
    match backend {
        MeshBackend::Kernel => InKernel::new(key),
        _ => InProcess::new(key),
    }
}

#[async_trait]
impl MeshDevice for InProcess {
    fn interface(&self) -> &str {
        MESH
    }

    fn public_key(&self) -> String {
        self.key.public_key().to_string()
    }

    fn port(&self) -> u16 {
        PORT
    }

    async fn ensure(&self, peers: Vec<MeshPeer>, mtu: u16) -> Result<AppliedMesh, NetworkError> {
        let mut mesh = self.mesh.lock().await;
        let fresh = !mesh.as_ref().is_some_and(Mesh::is_running);
        if fresh {
            let config = MeshConfig {
                interface: MESH.to_owned(),
                private_key: self.key.clone(),
                port: PORT,
                mtu,
            };
            // A process that another test has just forked may still hold the socket of a mesh that was stopped.
            let end = Instant::now() + PATIENCE;
            *mesh = Some(loop {
                match Mesh::start(config.clone()).await {
                    Err(WireguardError::Bind { .. }) if Instant::now() < end => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    started => break started.unwrap(),
                }
            });
        }
        let peers = peers_of(peers);
        mesh.as_mut().unwrap().set(&peers, mtu).await.unwrap();
        Ok(AppliedMesh {
            fresh,
            backend: MeshBackend::Userspace,
        })
    }

    async fn handshakes(&self) -> Result<BTreeMap<String, Option<Duration>>, NetworkError> {
        let mesh = self.mesh.lock().await;
        let peers = mesh.as_ref().map(Mesh::peers).unwrap_or_default();
        Ok(ages_of(peers))
    }

    async fn remove(&self) -> Result<bool, NetworkError> {
        let Some(mesh) = self.mesh.lock().await.take() else {
            return Ok(false);
        };
        mesh.stop().await;
        Ok(true)
    }
}

/// The network that the nodes are in: a switch.
pub struct Underlay {
    pub namespace: Namespace,
}

impl Underlay {
    pub fn new() -> Self {
        let namespace = Namespace::new();
        namespace.ip("link add br0 type bridge mcast_snooping 0");
        namespace.ip("link set br0 up");
        Self { namespace }
    }
}

/// Node number `index`: 192.0.2.(100 + INDEX) in the underlay, guests in 10.144.INDEX.0/24.
pub struct Node {
    pub index: u8,
    pub namespace: Arc<Namespace>,
    pub network: Arc<LinuxNetwork>,
    pub fabric: Arc<LinuxFabric>,
    key: PrivateKey,
    pub state: NetworkState,
    pub guest: Namespace,
    /// Its threads are in the namespace of the node.
    runtime: Option<Runtime>,
    dir: TempDir,
}

impl Node {
    pub fn new(index: u8, underlay: &Underlay) -> Self {
        Self::with_guest_of(index, index, underlay)
    }

    /// A node whose mesh has this backend.
    pub fn with_mesh(backend: MeshBackend, index: u8, underlay: &Underlay) -> Self {
        let mut node = Self::with_guest_of(index, index, underlay);
        node.restart_agent(backend);
        node
    }

    /// Another agent takes the place of the present one, and has its key.
    pub fn restart_agent(&mut self, backend: MeshBackend) {
        let mesh = mesh_device(backend, self.key.clone());
        self.fabric = Arc::new(LinuxFabric::new(mesh, Vec::new()));
    }

    /// The guest came from node number `home` with the address 10.144.HOME.77.
    pub fn with_guest_of(home: u8, index: u8, underlay: &Underlay) -> Self {
        let namespace = Arc::new(Namespace::new());
        let runtime = namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let builder = &mut Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().unwrap()
        });
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "").unwrap();
        let network = LinuxNetwork::new(LinuxNetworkConfig {
            resolv_conf,
            ..LinuxNetworkConfig::new(dir.path().join("run"), dir.path().join("state"))
        });
        let mut state = state(1);
        state.subnet = format!("10.144.{index}.0/24").parse().unwrap();
        state.gateway = [10, 144, index, 1].into();
        state.ports[0].address = [10, 144, home, if home == index { 11 } else { 77 }].into();
        state.ports[0].mac = waifud_types::MacAddr::of_guest([0, 0, index]);
        let home: ipnet::Ipv4Net = format!("10.144.{home}.0/24").parse().unwrap();
        state.ports[0].home = (home != state.subnet).then_some(home);
        let key = PrivateKey::generate();
        let mesh = InProcess::new(key.clone());
        let node = Self {
            index,
            namespace,
            network,
            fabric: Arc::new(LinuxFabric::new(mesh, Vec::new())),
            key,
            state,
            guest: Namespace::new(),
            runtime: Some(runtime),
            dir,
        };
        node.connect(underlay);
        node.ensure_network(&AppliedFabric::default());
        node.attach_guest();
        node
    }

    pub fn address(&self) -> Ipv4Addr {
        [192, 0, 2, 100 + self.index].into()
    }

    pub fn guest_address(&self) -> Ipv4Addr {
        self.state.ports[0].address
    }

    pub fn peer(&self) -> FabricPeer {
        let port = &self.state.ports[0];
        FabricPeer {
            node: format!("node-{}", self.index).parse().unwrap(),
            subnets: vec![self.state.subnet],
            extra: port.home.map(|_| port.address.into()).into_iter().collect(),
            public_key: Some(self.fabric.public_key()),
            endpoints: vec![SocketAddr::from((self.address(), PORT))],
        }
    }

    /// Runs a future on a thread in the node's namespace.
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.runtime.as_ref().unwrap().spawn(async move {
            let _gone = answer.send(task.await);
        });
        result.recv().unwrap()
    }

    fn connect(&self, underlay: &Underlay) {
        let port = format!("n{}", self.index);
        let namespace = Namespace::of(&underlay.namespace);
        let name = port.clone();
        self.run(async move { veth(("up0", None), &name, &namespace).await });
        underlay
            .namespace
            .ip(&format!("link set {port} master br0"));
        underlay.namespace.ip(&format!("link set {port} up"));
        self.namespace
            .ip(&format!("addr add {}/24 dev up0", self.address()));
        self.namespace.ip("link set up0 up");
        self.namespace.ip("route add default via 192.0.2.1");
        eventually("the switch forwards", || {
            let link = underlay.namespace.ip(&format!("-d link show {port}"));
            link.contains("state forwarding")
        });
    }

    fn attach_guest(&self) {
        let port = self.state.ports[0].clone();
        let guest = Namespace::of(&self.guest);
        let (tap, mac) = (port.tap.clone(), port.mac);
        self.run(async move { veth((tap.as_str(), Some(mac)), "eth0", &guest).await });
        let (tap, bridge) = (&port.tap, &self.state.bridge);
        let node = &self.namespace;
        node.ip(&format!(
            "link set {tap} address fe:54:00:00:77:77 master {bridge}"
        ));
        node.ip(&format!("link set {tap} type bridge_slave isolated on"));
        node.ip(&format!("link set {tap} up"));
        self.guest.ip("link set eth0 up");
        self.guest
            .ip(&format!("addr add {}/24 dev eth0", port.address));
        let gateway = gateway_of(port.home.unwrap_or(self.state.subnet));
        self.guest.ip(&format!("route add default via {gateway}"));
        eventually("the port forwards", || {
            let link = node.ip(&format!("-d link show {tap}"));
            link.contains("state forwarding")
        });
    }

    /// Applies a fabric with these peers, and then the guests' network, as the agent does.
    pub fn ensure(&self, kind: FabricKind, peers: &[FabricPeer]) -> AppliedFabric {
        let applied = self.ensure_fabric(kind, peers).unwrap();
        self.ensure_network_of(&applied, peers);
        applied
    }

    pub fn ensure_fabric(
        &self,
        kind: FabricKind,
        peers: &[FabricPeer],
    ) -> Result<AppliedFabric, NetworkError> {
        let state = FabricState {
            kind,
            subnet: self.state.subnet,
            gateway: self.state.gateway,
            bridge: self.state.bridge.clone(),
            peers: peers.to_vec(),
            clients: Vec::new(),
        };
        let fabric = Arc::clone(&self.fabric);
        self.run(async move { fabric.ensure(&state).await })
    }

    fn ensure_network(&self, applied: &AppliedFabric) {
        self.ensure_network_of(applied, &[]);
    }

    fn ensure_network_of(&self, applied: &AppliedFabric, peers: &[FabricPeer]) {
        let mut state = self.state.clone();
        for peer in peers {
            let path = applied.paths.get(&peer.node);
            state
                .remote_subnets
                .extend(
                    peer.subnets
                        .iter()
                        .chain(&peer.extra)
                        .map(|subnet| RemoteSubnet {
                            node: peer.node.clone(),
                            subnet: *subnet,
                            fabric: path.map(|path| path.interface.clone()),
                            shared: path.is_some_and(|path| !path.dedicated),
                        }),
                );
        }
        let network = Arc::clone(&self.network);
        self.run(async move { network.ensure(&state).await.unwrap() });
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let network = Arc::clone(&self.network);
            let (done, is_done) = mpsc::channel();
            runtime.spawn(async move {
                let _best_effort = network.ensure_absent().await;
                let _gone = done.send(());
            });
            let _panicked = is_done.recv();
            runtime.shutdown_background();
        }
        let _ = &self.dir;
    }
}

/// Pings from a guest. Returns how many of `count` packets were answered.
pub fn ping(from: &Namespace, to: Ipv4Addr, count: u32) -> u32 {
    let command =
        format!("ping -n -q -c {count} -i 0.01 -W 5 {to} | grep -o '[0-9]* received' || true");
    let text = from.tool("sh", &["-c", &command]);
    let words = text.split_ascii_whitespace().next().unwrap_or("0");
    words.parse().unwrap()
}
