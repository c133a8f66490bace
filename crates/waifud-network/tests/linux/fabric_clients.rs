//! Clients of the mesh: wireguard-go with the configuration that `waifuctl fabric client add` prints.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::Ipv4Net;
use waifud_kit::testing::skip_if;
use waifud_network::fabric::{Fabric, FabricClient, FabricPeer, FabricState};
use waifud_network::{GuestNetwork, RemoteSubnet};
use waifud_types::fabric_client::configuration;
use waifud_types::{FabricClientPeer, FabricKind};
use waifud_wireguard::PrivateKey;

use crate::datagrams;
use crate::frames::contains;
use crate::lab::veth;
use crate::namespace::{Namespace, can_run};
use crate::nodes::{Node, Underlay, ping};
use crate::wire::{Wire, eventually};

const SUBNET: &str = "10.144.9.0/24";
/// How many clients all tests have had.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A machine in the nodes' network that runs WireGuard.
struct Client {
    namespace: Namespace,
    address: Ipv4Addr,
    key: PrivateKey,
    interface: String,
    process: Child,
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Client {
    /// Client number `index`: 192.0.2.(200 + INDEX) in the underlay, 10.144.9.INDEX in the mesh.
    fn new(index: u8, underlay: &Underlay) -> Self {
        let namespace = Namespace::new();
        let port = format!("c{index}");
        namespace.run(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(veth(("eth0", None), &port, &underlay.namespace));
        });
        underlay
            .namespace
            .ip(&format!("link set {port} master br0"));
        underlay.namespace.ip(&format!("link set {port} up"));
        namespace.ip(&format!("addr add 192.0.2.{}/24 dev eth0", 200 + index));
        namespace.ip("link set eth0 up");
        eventually("the switch forwards", || {
            let link = underlay.namespace.ip(&format!("-d link show {port}"));
            link.contains("state forwarding")
        });
        // Its control socket has the name of the interface, and is not in the namespace.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let interface = format!("wc{}x{number}", std::process::id());
        let process = namespace.run(|| {
            let mut command = Command::new("/usr/bin/wireguard-go");
            command.args(["--foreground", &interface]);
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        Self {
            namespace,
            address: [10, 144, 9, index].into(),
            key: PrivateKey::generate(),
            interface,
            process,
        }
    }

    fn peer(&self) -> FabricClient {
        FabricClient {
            address: self.address,
            public_key: self.key.public_key().to_string(),
        }
    }

    /// Applies the printed configuration, as `wg-quick` does.
    fn configure(&self, nodes: &[Node]) {
        let peers: Vec<_> = nodes.iter().map(as_printed).collect();
        let text = configuration(self.address, Some(&self.key.to_base64()), &peers);
        let of_quick = |line: &&str| line.starts_with("Address = ") || line.starts_with("MTU = ");
        let (quick, plain): (Vec<_>, Vec<_>) = text.lines().partition(of_quick);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), plain.join("\n")).unwrap();
        let interface = self.interface.as_str();
        eventually("the interface is configured", || {
            let mut wg = Command::new("/usr/bin/wg");
            wg.args(["setconf", interface, file.path().to_str().unwrap()]);
            self.namespace
                .run(|| wg.stderr(Stdio::null()).status().unwrap().success())
        });
        let value = |key: &str| {
            let mut lines = quick.iter();
            lines.find_map(|line| line.strip_prefix(key)).unwrap()
        };
        let ip = |arguments: &str| self.namespace.ip(arguments);
        ip(&format!("addr add {} dev {interface}", value("Address = ")));
        ip(&format!("link set {interface} mtu {} up", value("MTU = ")));
        for line in plain {
            for network in line
                .strip_prefix("AllowedIPs = ")
                .into_iter()
                .flat_map(|l| l.split(", "))
            {
                ip(&format!("route add {network} dev {interface}"));
            }
        }
    }

    fn reaches(&self, node: &Node) -> bool {
        ping(&self.namespace, node.guest_address(), 1) == 1
    }

    fn send(&self, from: Ipv4Addr, to: Ipv4Addr, text: &[u8]) {
        datagrams::send(&self.namespace, from, to, text);
    }
}

/// The node in the answer of waifud.
fn as_printed(node: &Node) -> FabricClientPeer {
    let peer = node.peer();
    FabricClientPeer {
        node: peer.node,
        public_key: peer.public_key,
        endpoints: peer.endpoints,
        allowed: peer.subnets,
        supports_clients: true,
    }
}

/// Applies a mesh with these clients on every node, as the agent does.
fn ensure(nodes: &[Node], clients: &[&Client]) {
    for node in nodes {
        let others = nodes.iter().filter(|other| other.index != node.index);
        let peers: Vec<FabricPeer> = others.map(Node::peer).collect();
        let fabric = FabricState {
            kind: FabricKind::Wireguard,
            subnet: node.state.subnet,
            gateway: node.state.gateway,
            bridge: node.state.bridge.clone(),
            peers: peers.clone(),
            clients: clients.iter().map(|client| client.peer()).collect(),
        };
        let mut state = node.state.clone();
        let (adapter, network) = (Arc::clone(&node.fabric), Arc::clone(&node.network));
        node.run(async move {
            let applied = adapter.ensure(&fabric).await.unwrap();
            let subnets = peers.iter().map(|peer| (&peer.node, peer.subnets[0]));
            let mut remote: Vec<_> = subnets
                .map(|(name, subnet)| (name.clone(), subnet, applied.paths.get(name)))
                .collect();
            if applied.clients.is_some() {
                let subnet: Ipv4Net = SUBNET.parse().unwrap();
                remote.push(("clients".parse().unwrap(), subnet, applied.clients.as_ref()));
            }
            state.remote_subnets = remote
                .into_iter()
                .map(|(node, subnet, path)| RemoteSubnet {
                    node,
                    subnet,
                    fabric: path.map(|path| path.interface.clone()),
                    shared: false,
                })
                .collect();
            network.ensure(&state).await.unwrap();
        });
    }
}

/// Two nodes and two clients, which are configured.
fn connected() -> Option<(Underlay, [Node; 2], [Client; 2])> {
    if !can_run() {
        return None;
    }
    let missing = ["/usr/bin/wireguard-go", "/usr/bin/wg"];
    let missing = missing.iter().find(|path| !Path::new(path).exists());
    if skip_if(missing.map(|path| format!("a client needs {path}"))) {
        return None;
    }
    let underlay = Underlay::new();
    let nodes = [1, 2].map(|index| Node::new(index, &underlay));
    let clients = [2, 3].map(|index| Client::new(index, &underlay));
    ensure(&nodes, &[&clients[0], &clients[1]]);
    for client in &clients {
        client.configure(&nodes);
    }
    Some((underlay, nodes, clients))
}

#[test]
fn a_client_reaches_guests_of_all_nodes_with_its_own_address_and_no_service_of_a_node() {
    let Some((_underlay, nodes, [client, other])) = connected() else {
        return;
    };
    for node in &nodes {
        for client in [&client, &other] {
            eventually("the guest answers", || client.reaches(node));
        }
        // Without a central node, each guest reaches the client, too.
        assert_eq!(ping(&node.guest, client.address, 1), 1);
    }
    let two = &nodes[1];
    let to = two.guest_address();
    let wire = Wire::new(&two.guest, "eth0");
    let forged = [
        (other.address, &b"as another client"[..]),
        (nodes[0].guest_address(), b"as a guest of another node"),
        (Ipv4Addr::new(10, 144, 2, 12), b"as its neighbor"),
        (two.state.gateway, b"as its gateway"),
        (Ipv4Addr::new(203, 0, 113, 9), b"as an outside address"),
        (Ipv4Addr::new(192, 0, 2, 202), b"with its outer address"),
    ];
    for (from, text) in forged {
        client
            .namespace
            .ip(&format!("addr replace {from}/32 dev lo"));
        client.send(from, to, text);
    }
    client.send(client.address, to, b"a valid one");
    let seen = wire.until("the valid one", |frame| contains(frame, b"a valid one"));
    let valid = seen.last().unwrap();
    assert_eq!(valid[26..30], client.address.octets());
    for (from, text) in forged {
        let found = seen.iter().any(|frame| contains(frame, text));
        assert!(!found, "{from} reached the guest");
    }

    let any = Ipv4Addr::UNSPECIFIED;
    let service = two.namespace.run(|| UdpSocket::bind((any, 9)).unwrap());
    service.set_nonblocking(true).unwrap();
    client.send(client.address, two.state.gateway, b"to a service");
    // A later packet has been processed, so the former one was, too.
    assert_eq!(ping(&client.namespace, two.state.gateway, 1), 1);
    assert!(service.recv(&mut [0; 64]).is_err(), "it was delivered");
}

#[test]
fn removing_a_client_ends_its_access_and_that_of_no_other() {
    let Some((_underlay, nodes, [removed, kept])) = connected() else {
        return;
    };
    for client in [&removed, &kept] {
        eventually("the guest answers", || client.reaches(&nodes[0]));
    }
    ensure(&nodes, &[&kept]);
    assert!(kept.reaches(&nodes[0]));
    assert!(!removed.reaches(&nodes[0]));
    ensure(&nodes, &[&kept, &removed]);
    eventually("the guest answers again", || removed.reaches(&nodes[0]));
}
