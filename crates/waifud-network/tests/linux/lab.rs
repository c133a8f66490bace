//! A node with guests, an outside network and a metadata service.

use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rtnetlink::{LinkUnspec, LinkVeth, new_connection};
use tempfile::TempDir;
use waifud_kit::testing::kernel_module::KernelModule;
pub use waifud_network::METADATA;
use waifud_network::linux::{LinuxNetwork, LinuxNetworkConfig};
pub use waifud_network::samples::port;
use waifud_network::samples::state;
use waifud_network::{GuestNetwork, IDENTITIES, NetworkState, Port, PortCounters};
use waifud_types::{MacAddr, TapName};

use crate::frames::Mac;
use crate::namespace::{Namespace, can_run};
use crate::wire::{Wire, eventually};

pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 144, 1, 1);
pub const GATEWAY_MAC: Mac = [0x02, 0x77, 0x61, 0x69, 0x66, 0x75];
/// The node's address on its uplink, and the outside's.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

pub struct Lab {
    pub node: Namespace,
    pub outside: Namespace,
    pub metadata: Namespace,
    pub network: Arc<LinuxNetwork>,
    pub state: NetworkState,
    dir: TempDir,
}

/// A guest's end of its port.
pub struct Guest {
    pub namespace: Namespace,
    pub port: Port,
    pub wire: Wire,
}

/// Runs a test in a node's namespace; the node has `guests` ports in its state, none of them attached yet.
pub fn on_a_node<F: Future<Output = ()>>(guests: u8, test: impl FnOnce(Lab) -> F + Send) {
    if !can_run() {
        return;
    }
    let node = Namespace::new();
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            node.enter();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                test(Lab::new(guests).await).await;
            });
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The same with the network in place and guest 0 attached. A test that does not use the lab or the guest must move them
/// into its future nevertheless: dropping them stops dnsmasq and removes the guest.
pub fn with_a_guest<F: Future<Output = ()>>(guests: u8, test: impl FnOnce(Lab, Guest) -> F + Send) {
    on_a_node(guests, |lab| async move {
        lab.ensure().await;
        let guest = lab.attach(0).await;
        test(lab, guest).await;
    });
}

/// The same with the metadata service connected.
pub fn with_metadata<F: Future<Output = ()>>(
    guests: u8,
    test: impl FnOnce(Lab, Guest) -> F + Send,
) {
    on_a_node(guests, |lab| async move {
        lab.connect_metadata().await;
        lab.ensure().await;
        let guest = lab.attach(0).await;
        test(lab, guest).await;
    });
}

/// Stops the dnsmasq of a test that did not stop it.
impl Drop for Lab {
    fn drop(&mut self) {
        for pid in self.dnsmasqs().into_iter().chain(self.served()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

/// Enables or disables `br_netfilter` in the node. Docker enables it. False where it cannot be enabled; the skip is reported.
pub fn set_bridge_netfilter(node: &Namespace, enabled: bool) -> bool {
    let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    let value = if enabled { "1" } else { "0" };
    let set = node.run(|| std::fs::write(switch, value).is_ok());
    if set {
        let now = node.run(|| std::fs::read_to_string(switch).unwrap());
        assert_eq!(now.trim(), value);
    }
    // Without the module, it is disabled.
    !KernelModule::BrNetfilter.skips(set || !enabled, "bridges that call iptables")
}

/// Processes that have exactly this argument.
pub fn processes_with(argument: &str) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|b| *b == 0).any(|a| a == argument.as_bytes()))
        })
        .collect()
}

impl Lab {
    async fn new(guests: u8) -> Self {
        let node = Namespace::current();
        node.ip("link set lo up");
        // Addresses that the kernel adds after a while would affect comparisons.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let dir = tempfile::tempdir().unwrap();
        // dnsmasq's unprivileged user reads its files again while it runs.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let lab = Self {
            outside: Namespace::new(),
            metadata: Namespace::new(),
            network: LinuxNetwork::new(Self::config(&dir)),
            state: state(guests),
            node,
            dir,
        };
        lab.connect_outside().await;
        lab
    }

    fn config(dir: &TempDir) -> LinuxNetworkConfig {
        let resolv_conf = dir.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "").unwrap();
        LinuxNetworkConfig {
            resolv_conf,
            ..LinuxNetworkConfig::new(dir.path().join("run"), dir.path().join("state"))
        }
    }

    /// An adapter without state, as after a restart of its process.
    pub fn restarted(&self) -> Arc<LinuxNetwork> {
        LinuxNetwork::new(Self::config(&self.dir))
    }

    /// The same with other settings.
    pub fn restarted_with(
        &self,
        change: impl FnOnce(&mut LinuxNetworkConfig),
    ) -> Arc<LinuxNetwork> {
        let mut config = Self::config(&self.dir);
        change(&mut config);
        LinuxNetwork::new(config)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub async fn ensure(&self) {
        self.network.ensure(&self.state).await.unwrap();
    }

    /// The uplink: `up0` in the node, `eth0` outside, without another network behind it.
    async fn connect_outside(&self) {
        veth(("up0", None), "eth0", &self.outside).await;
        self.node.ip(&format!("addr add {UPLINK}/24 dev up0"));
        self.node.ip("link set up0 up");
        self.outside.ip(&format!("addr add {OUTSIDE}/24 dev eth0"));
        self.outside.ip("link set eth0 up");
        self.comes_up("up0");
        self.node.ip(&format!("route add default via {OUTSIDE}"));
    }

    /// The metadata interface: `wgw0` in the node, `eth0` in the metadata namespace, with the address and the route
    /// back to guests.
    pub async fn connect_metadata(&self) {
        veth(
            (&self.state.metadata_interface, None),
            "eth0",
            &self.metadata,
        )
        .await;
        self.metadata
            .ip(&format!("addr add {METADATA}/32 dev eth0"));
        self.metadata.ip("link set eth0 up");
        self.metadata.ip("route add 10.144.1.0/24 dev eth0");
        self.metadata
            .ip(&format!("route add {IDENTITIES} dev eth0"));
        let name = &self.state.metadata_interface;
        // A tunnel needs no neighbors. A veth pair does, and must answer ARP for the addresses behind the node.
        self.node.ip(&format!("link set {name} up"));
        self.comes_up(name);
        let file = format!("/proc/sys/net/ipv4/conf/{name}/proxy_arp");
        std::fs::write(file, "1").unwrap();
    }

    /// A link with an address at both ends: `name` in the node, `eth0` in the other namespace.
    pub async fn add_link(&self, name: &str, here: Ipv4Addr, there: &Namespace, address: Ipv4Addr) {
        veth((name, None), "eth0", there).await;
        self.node.ip(&format!("addr add {here}/24 dev {name}"));
        self.node.ip(&format!("link set {name} up"));
        there.ip(&format!("addr add {address}/24 dev eth0"));
        there.ip("link set eth0 up");
        self.comes_up(name);
    }

    /// Waits for a link's carrier, which the kernel sees a moment after both ends are up.
    fn comes_up(&self, name: &str) {
        eventually("a carrier", || {
            let link = self.node.ip(&format!("link show {name}"));
            link.contains("state UP")
        });
    }

    /// Attaches guest `index` as the hypervisor would, with the address and routes that DHCP would set.
    pub async fn attach(&self, index: usize) -> Guest {
        let port = self.state.ports[index].clone();
        let guest = self.attach_as(&port).await;
        let ip = |arguments: &str| guest.namespace.ip(arguments);
        ip(&format!("addr add {}/24 dev eth0", port.address));
        ip(&format!("route add default via {GATEWAY}"));
        guest
    }

    /// Attaches a guest at any port, without an address.
    pub async fn attach_as(&self, port: &Port) -> Guest {
        let (namespace, wire) = self
            .attach_tap(&port.tap, port.mac, &self.state.bridge, "on")
            .await;
        Guest {
            namespace,
            port: port.clone(),
            wire,
        }
    }

    /// Attaches a tap to a bridge, and returns the namespace behind it and its interface.
    pub async fn attach_tap(
        &self,
        tap: &TapName,
        mac: MacAddr,
        bridge: &str,
        isolated: &str,
    ) -> (Namespace, Wire) {
        let namespace = Namespace::new();
        veth((tap.as_str(), Some(mac)), "eth0", &namespace).await;
        namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
        });
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6"), "1").unwrap();
        // As the hypervisor does, so that no bridge adopts this MAC address: a bridge takes the lowest one of its
        // ports.
        let mac = "fe:54:00:00:77:77";
        self.node
            .ip(&format!("link set {tap} address {mac} master {bridge}"));
        self.node.ip(&format!(
            "link set {tap} type bridge_slave isolated {isolated}"
        ));
        self.node.ip(&format!("link set {tap} up"));
        namespace.ip("link set eth0 up");
        // The bridge forwards frames a moment later, once the kernel has reported the carrier.
        eventually("the port forwards", || {
            let link = self.node.ip(&format!("-d link show {tap}"));
            link.contains("state forwarding")
        });
        let wire = Wire::new(&namespace, "eth0");
        (namespace, wire)
    }

    pub async fn counters(&self, tap: &TapName) -> PortCounters {
        self.network.counters(tap).await.unwrap().unwrap()
    }

    /// Our tables as the kernel lists them, with handles and without counters.
    pub fn ruleset(&self) -> String {
        let list = |family| {
            let arguments = ["-s", "-a", "list", "table", family, "waifud"];
            self.node.tool("nft", &arguments)
        };
        list("bridge") + &list("inet")
    }

    /// The same without the elements of sets that rules fill.
    pub fn ruleset_without_elements(&self) -> String {
        let list = |family| {
            let arguments = ["-s", "-a", "-t", "list", "table", family, "waifud"];
            self.node.tool("nft", &arguments)
        };
        list("bridge") + &list("inet")
    }

    pub fn dnsmasq_pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.run_dir().join("dnsmasq.pid")).unwrap();
        text.trim().parse().unwrap()
    }

    pub fn kill_dnsmasq(&self) {
        let pid = nix::unistd::Pid::from_raw(self.dnsmasq_pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// Processes of this node that serve names to other machines.
    pub fn served(&self) -> Vec<i32> {
        let files = std::fs::read_dir(self.run_dir())
            .into_iter()
            .flatten()
            .flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        let configs = names.filter(|name| {
            name.starts_with("served-") && Path::new(name).extension() == Some("conf".as_ref())
        });
        configs
            .flat_map(|name| {
                let path = self.run_dir().join(name);
                processes_with(&format!("--conf-file={}", path.display()))
            })
            .collect()
    }

    /// Processes of this node's dnsmasq.
    pub fn dnsmasqs(&self) -> Vec<i32> {
        let config = self.run_dir().join("dnsmasq.conf");
        processes_with(&format!("--conf-file={}", config.display()))
    }
}

impl Guest {
    pub fn mac(&self) -> Mac {
        self.port.mac.bytes()
    }

    pub fn address(&self) -> Ipv4Addr {
        self.port.address
    }
}

/// A veth pair: `here` in this thread's namespace, `there` in another one. The other end gets the MAC address.
pub async fn veth(here: (&str, Option<MacAddr>), there: &str, namespace: &Namespace) {
    let (connection, handle, _) = new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let (name, mac) = here;
    // The name must be unique while both ends are in the node.
    let passing = format!("p{name}");
    let pair = LinkVeth::new(name, &passing).build();
    handle.link().add(pair).execute().await.unwrap();
    let mut moved = LinkUnspec::new_with_name(&passing);
    if let Some(mac) = mac {
        moved = moved.address(mac.bytes().to_vec());
    }
    handle.link().set(moved.build()).execute().await.unwrap();
    let moved = LinkUnspec::new_with_name(&passing).setns_by_fd(namespace.file().as_raw_fd());
    handle.link().set(moved.build()).execute().await.unwrap();
    namespace.ip(&format!("link set {passing} name {there}"));
    connection.abort();
}
