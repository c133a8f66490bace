//! The configuration file. Every key has a default. Unknown keys are refused, because they are probably misspelled.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use waifud_agent::BootAlone;
use waifud_types::{Name, PoolKind};

/// Each address has a process of its own.
const DNS_ADDRESSES_MAX: usize = 16;

/// `agentd.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node's name. The default is the first label of the host name.
    pub node: Option<Name>,
    /// The libvirt connection URI.
    pub libvirt_uri: String,
    /// Durable state.
    pub state_dir: PathBuf,
    /// State that may be lost at a reboot.
    pub run_dir: PathBuf,
    /// Storage pools. The default is one named `main` below `state_dir`.
    pub pools: Vec<PoolConfig>,
    /// The control socket of metadatad.
    pub metadatad_socket: PathBuf,
    /// The guests' bridge.
    pub bridge: String,
    /// The interface of the tunnel to metadatad.
    pub metadata_interface: String,
    /// The listening address of this node's end of the tunnel; must be a loopback address.
    pub wireguard_listen: SocketAddr,
    /// The interface of the WireGuard mesh to other nodes.
    pub mesh_interface: String,
    /// The UDP port of the mesh, on all addresses.
    pub mesh_port: u16,
    /// Which WireGuard carries the mesh.
    pub mesh_backend: MeshChoice,
    /// Where other nodes reach the mesh of this one. The default is this node's address in its connection to waifud, and the
    /// port of the mesh.
    pub mesh_endpoints: Vec<SocketAddr>,
    /// Where this node listens for other nodes; empty to copy all disks through waifud.
    pub peer_listen: String,
    /// Where other nodes reach that port. The default is this node's address in its connection to waifud.
    pub peer_endpoints: Vec<SocketAddr>,
    /// The guests' DNS domain.
    pub domain: String,
    /// Where other machines resolve guests' names.
    pub dns: DnsConfig,
    /// The user that image tools run as.
    pub image_user: String,
    /// The user that QEMU runs as (`user` in libvirt's qemu.conf).
    pub qemu_user: String,
    /// The group that QEMU runs as (`group` in libvirt's qemu.conf).
    pub qemu_group: String,
    /// Whether guests are started before waifud has answered: `start`, `never`, or `wait:SECONDSs`.
    pub boot_alone: String,
    /// The log filter in the syntax of `tracing`. `RUST_LOG` overrides it.
    pub log: String,
}

/// Which WireGuard carries the mesh to other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshChoice {
    /// The kernel's where it has one, otherwise a process.
    Auto,
    /// The kernel's.
    Kernel,
    /// A process.
    Userspace,
}

/// Where other machines resolve guests' names.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// Addresses of this node; empty for none.
    pub listen: Vec<Ipv4Addr>,
    /// The port, UDP and TCP.
    pub port: u16,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            port: waifud_types::dns::PORT,
        }
    }
}

impl DnsConfig {
    /// The addresses with the port.
    pub fn addresses(&self) -> Vec<SocketAddrV4> {
        let mut addresses: Vec<_> = self
            .listen
            .iter()
            .map(|ip| SocketAddrV4::new(*ip, self.port))
            .collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    fn check(&self) -> anyhow::Result<()> {
        let invalid = self
            .listen
            .iter()
            .find(|ip| ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast());
        if let Some(ip) = invalid {
            bail!(
                "invalid dns.listen {ip}: list the addresses of this node at which other machines resolve guests' names, for \
                 example 192.168.1.10"
            );
        }
        if self.listen.len() > DNS_ADDRESSES_MAX {
            bail!(
                "dns.listen has {} addresses; at most {DNS_ADDRESSES_MAX} are possible",
                self.listen.len()
            );
        }
        if self.port == 0 {
            bail!("dns.port must not be 0");
        }
        Ok(())
    }
}

/// A storage pool.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Unique on the node.
    pub name: Name,
    /// How volumes are stored.
    #[serde(default = "default_kind")]
    pub kind: PoolKind,
    /// The directory of the pool.
    pub path: PathBuf,
}

fn default_kind() -> PoolKind {
    PoolKind::Qcow2
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            libvirt_uri: "qemu:///system".to_owned(),
            state_dir: "/var/lib/waifud-agent".into(),
            run_dir: "/run/waifud-agent".into(),
            pools: Vec::new(),
            metadatad_socket: "/run/waifud-metadata/control.sock".into(),
            bridge: "waifu0".to_owned(),
            metadata_interface: "wfmeta0".to_owned(),
            wireguard_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 51822)),
            mesh_interface: "wfmesh0".to_owned(),
            mesh_port: 51820,
            mesh_backend: MeshChoice::Auto,
            mesh_endpoints: Vec::new(),
            peer_listen: "[::]:7374".to_owned(),
            peer_endpoints: Vec::new(),
            domain: waifud_types::dns::DOMAIN.to_owned(),
            dns: DnsConfig::default(),
            image_user: "waifud-image".to_owned(),
            qemu_user: "libvirt-qemu".to_owned(),
            qemu_group: "libvirt-qemu".to_owned(),
            boot_alone: "start".to_owned(),
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads the file. A file that does not exist counts as empty.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let config = waifud_kit::config::load(path)?.unwrap_or_else(|| {
            tracing::info!("{} does not exist; using the defaults", path.display());
            Self::default()
        });
        config
            .completed()
            .with_context(|| format!("invalid configuration file {}", path.display()))
    }

    /// Adds the default pool and checks values that depend on each other.
    fn completed(self) -> anyhow::Result<Self> {
        let mut config = self;
        if config.pools.is_empty() {
            config.pools.push(PoolConfig {
                name: "main".parse()?,
                kind: PoolKind::Qcow2,
                path: config.state_dir.join("pools/main"),
            });
        }
        let mut names: Vec<&Name> = config.pools.iter().map(|pool| &pool.name).collect();
        names.sort();
        let mut pairs = names.windows(2);
        if let Some([name, _]) = pairs.find(|pair| pair.first() == pair.last()) {
            bail!("two pools are called {name}; give each [[pools]] a name of its own");
        }
        for pool in &config.pools {
            if let PoolKind::Other(kind) = &pool.kind {
                bail!(
                    "pool {}: unknown kind {kind:?}; use qcow2 or reflink",
                    pool.name
                );
            }
        }
        if !config.wireguard_listen.ip().is_loopback() {
            bail!("wireguard_listen must be a loopback address");
        }
        config.peer_listen()?;
        config.boot_alone()?;
        config.dns.check()?;
        Ok(config)
    }

    /// Where this node listens for other nodes; `None` if it does not.
    pub fn peer_listen(&self) -> anyhow::Result<Option<SocketAddr>> {
        let text = self.peer_listen.as_str();
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<SocketAddr>() {
            Ok(listen) if listen.port() != 0 => Ok(Some(listen)),
            _ => bail!(
                "invalid peer_listen {text:?}: expected an address and a port, for example [::]:7374, or nothing"
            ),
        }
    }

    /// Whether guests are started before waifud has answered.
    pub fn boot_alone(&self) -> anyhow::Result<BootAlone> {
        let text = self.boot_alone.as_str();
        let seconds = |text: &str| text.strip_suffix('s')?.parse().ok();
        match text {
            "start" => Ok(BootAlone::Start),
            "never" => Ok(BootAlone::Never),
            _ => match text.strip_prefix("wait:").and_then(seconds) {
                Some(wait) => Ok(BootAlone::Wait(Duration::from_secs(wait))),
                None => bail!(
                    "invalid boot_alone {text:?}: expected start, never or wait:DURATION, for example wait:120s"
                ),
            },
        }
    }

    /// The node's name: as configured, or the host name's first label.
    pub fn node_name(&self) -> anyhow::Result<Name> {
        if let Some(name) = &self.node {
            return Ok(name.clone());
        }
        let host = nix::unistd::gethostname().context("cannot read the host name")?;
        let host = host.to_string_lossy().to_ascii_lowercase();
        let label = host.split('.').next().unwrap_or_default();
        label
            .parse()
            .context("the host name is not a valid node name; set `node` in agentd.toml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        let config: Config = waifud_kit::config::parse(Path::new("agentd.toml"), text)?;
        config.completed()
    }

    #[test]
    fn an_empty_file_means_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.pools.len(), 1);
        assert_eq!(
            config.pools[0].path,
            Path::new("/var/lib/waifud-agent/pools/main")
        );
        assert_eq!(config.boot_alone().unwrap(), BootAlone::Start);
    }

    #[test]
    fn invalid_keys_and_values_are_refused() {
        let texts = [
            ("nodes = \"alder\"", "nodes"),
            (
                "node = \"Not A Label\"",
                "node: invalid name \"Not A Label\"",
            ),
            ("boot_alone = \"maybe\"", "invalid boot_alone \"maybe\""),
            ("boot_alone = \"wait:2h\"", "invalid boot_alone \"wait:2h\""),
            ("peer_listen = \"7374\"", "invalid peer_listen \"7374\""),
            (
                "peer_listen = \"0.0.0.0:0\"",
                "invalid peer_listen \"0.0.0.0:0\"",
            ),
            (
                "wireguard_listen = \"0.0.0.0:51822\"",
                "wireguard_listen must be a loopback address",
            ),
            (
                "[[pools]]\nname = \"a\"\npath = \"/a\"\nkind = \"zfs\"",
                "pool a: unknown kind \"zfs\"; use qcow2 or reflink",
            ),
            (
                "[[pools]]\nname = \"a\"\npath = \"/a\"\n[[pools]]\nname = \"a\"\npath = \"/b\"",
                "two pools are called a",
            ),
            (
                "[dns]\nlisten = [\"0.0.0.0\"]",
                "invalid dns.listen 0.0.0.0",
            ),
            ("[dns]\nlisten = [\"alder\"]", "listen"),
            (
                "mesh_backend = \"module\"",
                "expected one of `auto`, `kernel`, `userspace`",
            ),
            ("[dns]\nport = 0", "dns.port must not be 0"),
            ("[dns]\nports = 53", "ports"),
            ("[[pools]]\nname = \"a\"", "path"),
            ("[[pools]]\npath = \"/a\"", "name"),
            ("[[pools]]\nname = \"a\"\npath = \"/a\"\nsize = 1", "size"),
        ];
        waifud_kit::config_page::refused(parse, &texts);
    }

    #[test]
    fn a_configured_pool_replaces_the_default_one_and_has_kind_qcow2() {
        let config = parse("[[pools]]\nname = \"fast\"\npath = \"/srv/fast\"").unwrap();
        assert_eq!(config.pools.len(), 1);
        let pool = &config.pools[0];
        assert_eq!(pool.name.as_str(), "fast");
        assert_eq!(pool.kind, PoolKind::Qcow2);
        assert_eq!(pool.path, Path::new("/srv/fast"));
    }

    #[test]
    fn a_node_may_wait_before_it_starts_its_guests_alone() {
        let config = parse("boot_alone = \"wait:120s\"").unwrap();
        assert_eq!(
            config.boot_alone().unwrap(),
            BootAlone::Wait(Duration::from_mins(2))
        );
    }

    #[test]
    fn a_missing_file_means_defaults_and_an_unreadable_one_is_an_error() {
        assert!(Config::read(Path::new("/nonexistent/agentd.toml")).is_ok());
        assert!(Config::read(Path::new("/")).is_err());
    }

    /// The example in the documentation contains every key with its default.
    #[test]
    fn the_page_on_configuration_shows_every_key_with_its_default() {
        let page = include_str!("../../../docs/reference/config.md");
        let example = waifud_kit::config_page::documented::<Config>(page, "agentd.toml");
        let mut default = parse("").unwrap();
        default.node = Some("alder".parse().unwrap());
        let shown = parse(&example).unwrap();
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));
        let section = page
            .split("\n## ")
            .find(|text| text.starts_with("agentd.toml\n"))
            .unwrap();
        let pools = toml::from_str::<PoolConfig>("no-key = 1").unwrap_err();
        let (_, keys) = pools.message().split_once("expected one of ").unwrap();
        let dns = toml::from_str::<DnsConfig>("no-key = 1").unwrap_err();
        let (_, of_dns) = dns.message().split_once("expected ").unwrap();
        for key in keys.split(", ").chain(of_dns.split(" or ")) {
            assert!(section.contains(&format!("\n| {key} |")), "{key}");
        }
    }
}
