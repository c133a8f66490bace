//! Chooses the agent's settings and adapters from the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use waifud_agent::interfaces::{HttpLink, SystemClock};
use waifud_agent::streams::TcpDialer;
use waifud_agent::{Adapters, Membership, Settings, Timing};
use waifud_api::MetadatadClient;
use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_network::linux::{LinuxFabric, LinuxNetwork, LinuxNetworkConfig};
use waifud_storage::FilePoolConfig;
use waifud_storage::StoragePool;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_storage::reflink::ReflinkPool;
use waifud_types::PoolKind;

use crate::config::{Config, MeshChoice};
use crate::host;
use crate::mesh_link::MeshLink;
use crate::power::NodePower;
use crate::tunnel::Tunnel;

/// Guests' packets to metadatad and to other nodes are encapsulated. This is the size that fits (`wg-quick`'s default).
const GUEST_MTU: u16 = 1420;

/// The users of this host that own files or run tools; `None` if one does not exist.
#[derive(Clone, Copy, Debug)]
struct Owners {
    qemu: Option<(u32, u32)>,
    image_tools: Option<(u32, u32)>,
}

/// Everything that the configuration determines, before anything is opened.
#[derive(Debug)]
struct Plan {
    settings: Settings,
    pools: Vec<(PoolKind, FilePoolConfig)>,
    libvirt: LibvirtConfig,
    network: LinuxNetworkConfig,
    metadatad_socket: PathBuf,
    wireguard_listen: SocketAddr,
    wireguard_key: PathBuf,
    mesh: MeshPlan,
    peer_listen: Option<SocketAddr>,
    peer_endpoints: Vec<SocketAddr>,
}

/// The link to other nodes.
#[derive(Debug)]
struct MeshPlan {
    interface: String,
    port: u16,
    choice: MeshChoice,
    endpoints: Vec<SocketAddr>,
    key: PathBuf,
    socket: PathBuf,
}

/// The connection to libvirt.
pub fn libvirt(config: &Config, qemu_owner: Option<(u32, u32)>) -> LibvirtConfig {
    let mut libvirt = LibvirtConfig::new(config.state_dir.join("kvm-probe.json"));
    libvirt.uri.clone_from(&config.libvirt_uri);
    libvirt.qemu_owner = qemu_owner;
    libvirt
}

/// The guests' network.
pub fn network(config: &Config) -> LinuxNetworkConfig {
    LinuxNetworkConfig {
        dns_listen: config.dns.addresses(),
        ..LinuxNetworkConfig::new(
            config.run_dir.join("network"),
            config.state_dir.join("network"),
        )
    }
}

fn mesh_plan(config: &Config) -> MeshPlan {
    MeshPlan {
        interface: config.mesh_interface.clone(),
        port: config.mesh_port,
        choice: config.mesh_backend,
        endpoints: config.mesh_endpoints.clone(),
        key: config.state_dir.join("mesh.key"),
        socket: config.run_dir.join("mesh.sock"),
    }
}

/// Whether this machine has had a fabric.
pub fn has_mesh_key(config: &Config) -> bool {
    mesh_plan(config).key.exists()
}

/// What connects the guests to those of other nodes.
pub fn fabric(config: &Config) -> anyhow::Result<LinuxFabric> {
    fabric_of(mesh_plan(config))
}

fn fabric_of(plan: MeshPlan) -> anyhow::Result<LinuxFabric> {
    let mesh = MeshLink::open(
        plan.interface,
        plan.port,
        plan.choice,
        &plan.key,
        &plan.socket,
    )?;
    Ok(LinuxFabric::new(Arc::new(mesh), plan.endpoints))
}

/// Looks the configured users up. Those that do not exist are logged.
fn owners(config: &Config) -> anyhow::Result<Owners> {
    let qemu = host::owner(&config.qemu_user, Some(&config.qemu_group))?;
    if qemu.is_none() {
        tracing::warn!(
            "user {} or group {} does not exist (is libvirt installed?); leaving file ownership to libvirt",
            config.qemu_user,
            config.qemu_group
        );
    }
    let image_tools = host::owner(&config.image_user, None)?;
    if image_tools.is_none() {
        tracing::warn!(
            "user {} does not exist; image tools run as the user of this process",
            config.image_user
        );
    }
    Ok(Owners { qemu, image_tools })
}

fn plan(config: &Config, owners: Owners) -> anyhow::Result<Plan> {
    let pools = config.pools.iter().map(|pool| {
        let mut settings = FilePoolConfig::new(pool.name.clone(), &pool.path);
        settings.image_user = owners.image_tools;
        settings.volume_owner = owners.qemu;
        (pool.kind.clone(), settings)
    });
    Ok(Plan {
        settings: Settings {
            node: config.node_name()?,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            bridge: config.bridge.clone(),
            metadata_interface: config.metadata_interface.clone(),
            mtu: GUEST_MTU,
            domain: config.domain.clone(),
            boot_alone: config.boot_alone()?,
            qemu_owner: owners.qemu,
            timing: Timing::default(),
        },
        pools: pools.collect(),
        libvirt: libvirt(config, owners.qemu),
        network: network(config),
        metadatad_socket: config.metadatad_socket.clone(),
        wireguard_listen: config.wireguard_listen,
        wireguard_key: config.state_dir.join("wireguard.key"),
        mesh: mesh_plan(config),
        peer_listen: config.peer_listen()?,
        peer_endpoints: config.peer_endpoints.clone(),
    })
}

/// Opens the pools and connects the adapters.
pub fn assemble(
    config: &Config,
    member: Membership,
) -> anyhow::Result<(Settings, Adapters, Arc<Tunnel>)> {
    let plan = plan(config, owners(config)?)?;
    let mut pools: Vec<Arc<dyn StoragePool>> = Vec::new();
    for (kind, settings) in plan.pools {
        if let Some(above) = settings.path.parent()
            && above.starts_with(&config.state_dir)
        {
            host::ensure_traversable_dir(above)?;
        }
        let name = settings.name.clone();
        let opened: Result<Arc<dyn StoragePool>, _> = match kind {
            PoolKind::Qcow2 => Qcow2Pool::open(settings).map(|pool| Arc::new(pool) as _),
            PoolKind::Reflink => ReflinkPool::open(settings).map(|pool| Arc::new(pool) as _),
            PoolKind::Other(ref kind) => anyhow::bail!("pool {name}: unknown kind {kind:?}"),
        };
        pools.push(opened.with_context(|| format!("cannot open pool {name}"))?);
    }
    let tunnel = Arc::new(Tunnel::open(
        plan.settings.metadata_interface.clone(),
        plan.wireguard_listen,
        &plan.wireguard_key,
    )?);
    host::ensure_traversable_dir(&plan.network.run_dir)?;
    host::ensure_traversable_dir(&plan.network.state_dir)?;
    let peers = member.peers(plan.peer_listen, plan.peer_endpoints)?;
    let adapters = Adapters {
        hypervisor: LibvirtHypervisor::connect(plan.libvirt)?,
        pools,
        network: LinuxNetwork::new(plan.network),
        fabric: Arc::new(fabric_of(plan.mesh)?),
        link: Arc::new(HttpLink::of(member)?),
        peers: Arc::new(peers),
        metadata: Arc::new(MetadatadClient::new(plan.metadatad_socket)),
        tunnel: tunnel.clone(),
        dialer: Arc::new(TcpDialer),
        clock: Arc::new(SystemClock),
        host: Arc::new(NodePower::new(&config.run_dir)),
    };
    Ok((plan.settings, adapters, tunnel))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use waifud_kit::testing::captured_log::CapturedLog;

    /// Owners that exist nowhere, so that the result does not depend on the machine.
    const BASE: &str =
        "node = \"alder\"\nqemu_user = \"no-such-user\"\nimage_user = \"no-such-user\"\n";

    fn planned(text: &str) -> BTreeSet<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let config = Config::read(file.path()).unwrap();
        let plan = plan(&config, owners(&config).unwrap()).unwrap();
        let text = format!("{plan:#?}");
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The lines of the plan that this line of the configuration changes.
    fn changed(line: &str) -> Vec<String> {
        let key = line.split(" =").next().unwrap();
        let others = BASE.lines().filter(|base| !base.starts_with(key));
        let others: Vec<_> = others.collect();
        let plan = planned(&format!("{}\n{line}", others.join("\n")));
        plan.difference(&planned(BASE)).cloned().collect()
    }

    #[test]
    fn each_key_changes_its_setting_and_no_other() {
        for (line, expected) in [
            ("node = \"birch\"", r#""birch","#),
            ("bridge = \"br9\"", r#"bridge: "br9","#),
            (
                "metadata_interface = \"wf9\"",
                r#"metadata_interface: "wf9","#,
            ),
            ("domain = \"example.org\"", r#"domain: "example.org","#),
            ("boot_alone = \"never\"", "boot_alone: Never,"),
            ("libvirt_uri = \"test:///\"", r#"uri: "test:///","#),
            ("metadatad_socket = \"/s\"", r#"metadatad_socket: "/s","#),
            (
                "wireguard_listen = \"127.0.0.2:1\"",
                "wireguard_listen: 127.0.0.2:1,",
            ),
            ("mesh_interface = \"wf8\"", r#"interface: "wf8","#),
            ("mesh_port = 1", "port: 1,"),
            ("peer_listen = \"\"", "peer_listen: None,"),
            ("peer_listen = \"10.0.0.1:1\"", "10.0.0.1:1,"),
        ] {
            assert_eq!(changed(line), [expected], "{line}");
        }
        assert_eq!(
            changed("mesh_endpoints = [\"192.0.2.1:1\"]"),
            ["192.0.2.1:1,", "endpoints: ["]
        );
        assert_eq!(
            changed("peer_endpoints = [\"192.0.2.1:1\"]"),
            ["192.0.2.1:1,", "peer_endpoints: ["]
        );
        assert_eq!(
            changed("dns = { listen = [\"192.0.2.1\"], port = 5353 }"),
            ["192.0.2.1:5353,", "dns_listen: ["]
        );
        assert_eq!(
            changed("run_dir = \"/r\""),
            [
                r#"run_dir: "/r","#,
                r#"run_dir: "/r/network","#,
                r#"socket: "/r/mesh.sock","#,
            ]
        );
        assert_eq!(
            changed("state_dir = \"/d\""),
            [
                r#"key: "/d/mesh.key","#,
                r#"path: "/d/pools/main","#,
                r#"probe_cache: "/d/kvm-probe.json","#,
                r#"state_dir: "/d","#,
                r#"state_dir: "/d/network","#,
                r#"wireguard_key: "/d/wireguard.key","#,
            ]
        );
    }

    #[test]
    fn the_users_of_tools_and_of_qemu_are_those_of_this_host() {
        let config = |text: &str| {
            let config: Config = toml::from_str(text).unwrap();
            owners(&config).unwrap()
        };
        let owners = config(BASE);
        assert_eq!((owners.qemu, owners.image_tools), (None, None));
        let root =
            config("qemu_user = \"root\"\nqemu_group = \"root\"\nimage_user = \"no-such-user\"");
        assert_eq!((root.qemu, root.image_tools), (Some((0, 0)), None));
        let tools = config("qemu_group = \"no-such-group\"\nimage_user = \"root\"");
        assert_eq!((tools.qemu, tools.image_tools), (None, Some((0, 0))));

        let of_qemu = Owners {
            qemu: Some((7, 8)),
            image_tools: Some((9, 9)),
        };
        let config = Config {
            node: Some("alder".parse().unwrap()),
            pools: two_pools().pools,
            ..Config::default()
        };
        let plan = plan(&config, of_qemu).unwrap();
        assert_eq!(plan.settings.qemu_owner, Some((7, 8)));
        assert_eq!(plan.libvirt.qemu_owner, Some((7, 8)));
        for (_, pool) in &plan.pools {
            assert_eq!(pool.volume_owner, Some((7, 8)));
            assert_eq!(pool.image_user, Some((9, 9)));
        }
    }

    fn two_pools() -> Config {
        let text = "[[pools]]\nname = \"main\"\npath = \"/main\"\n[[pools]]\nname = \"fast\"\npath = \"/fast\"\nkind = \"reflink\"";
        toml::from_str(text).unwrap()
    }

    #[test]
    fn each_configured_pool_is_opened_with_its_kind_and_path() {
        let mut config = two_pools();
        config.node = Some("alder".parse().unwrap());
        let no_owners = Owners {
            qemu: None,
            image_tools: None,
        };
        let plan = plan(&config, no_owners).unwrap();
        let pools: Vec<_> = plan
            .pools
            .iter()
            .map(|(kind, pool)| (kind, pool.name.as_str(), pool.path.as_path()))
            .collect();
        assert_eq!(
            pools,
            [
                (&PoolKind::Qcow2, "main", Path::new("/main")),
                (&PoolKind::Reflink, "fast", Path::new("/fast")),
            ]
        );
    }

    #[test]
    fn a_user_that_does_not_exist_is_logged() {
        let log = CapturedLog::begin();
        owners(&toml::from_str(BASE).unwrap()).unwrap();
        let text = log.text();
        assert!(text.contains("user no-such-user or group"), "{text}");
        let tools = "user no-such-user does not exist; image tools run as";
        assert!(text.contains(tools), "{text}");
    }
}
