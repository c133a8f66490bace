//! The node's daemon: reads its configuration, chooses adapters, and runs the agent.
//!
//! It starts even if waifud, libvirtd or metadatad are not available, logs what it waits for, and continues once they are.
//! SIGTERM and SIGINT stop it; guests, their firewall rules and DHCP keep running.

mod config;
mod host;
mod join;
mod memory;
mod power;
mod remove;
mod stop;
mod tunnel;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use waifud_agent::interfaces::{HttpLink, SystemClock};
use waifud_agent::streams::TcpDialer;
use waifud_agent::{Adapters, Agent, Membership, Settings, Timing};
use waifud_api::MetadatadClient;
use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_network::linux::{LinuxNetwork, LinuxNetworkConfig};
use waifud_storage::FilePoolConfig;
use waifud_storage::StoragePool;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_storage::reflink::ReflinkPool;
use waifud_types::{Incarnation, PoolKind};

use crate::config::Config;
use crate::join::JoinArguments;
use crate::power::NodePower;
use crate::tunnel::Tunnel;

/// Guests' packets to metadatad and to other nodes are encapsulated. This is the size that fits (`wg-quick`'s default).
const GUEST_MTU: u16 = 1420;

/// Runs the guests that waifud assigns to this node.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; if it does not exist, the defaults are used.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/waifud/agentd.toml",
        global = true
    )]
    config: PathBuf,
    /// Confirm waifud's restored database, which has this incarnation: its deletions are applied on this node again.
    #[arg(long, value_name = "INCARNATION", value_parser = parse_incarnation)]
    confirm_incarnation: Option<Incarnation>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a cluster: make this machine a node of the waifud that issued the token. Can be repeated until it succeeds.
    Join(JoinArguments),
    /// Stop every guest because the host shuts down: cleanly, the lowest priority first. No guest is started until
    /// `start-guests`. Used by a unit's `ExecStop`; the desired state stays running, so the guests start again with the
    /// host.
    StopGuests {
        /// Seconds that guests of one priority have to shut down before they are forced off.
        #[arg(long, value_name = "SECONDS", default_value_t = 90)]
        grace: u64,
    },
    /// Remove the guests' bridge, DHCP, firewall rules, routes and tunnel from this host, and restore the settings that
    /// were changed for them. Refused while guests or waifud-agentd are running. Used when the package is removed.
    RemoveNetwork,
    /// Allow guests to start: the host is up again, or its shutdown was cancelled. Used by a unit's `ExecStart`.
    StartGuests,
}

fn parse_incarnation(text: &str) -> Result<Incarnation, String> {
    let bad = || "expected eight hexadecimal digits, as shown by waifuctl node show".to_owned();
    if text.len() != 8 {
        return Err(bad());
    }
    u32::from_str_radix(text, 16)
        .map(Incarnation)
        .map_err(|_| bad())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::read(&arguments.config)?;
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new(&config.log));
    let filter = filter.context("invalid `log` filter in agentd.toml; an example is: info")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    memory::limit_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match arguments.command {
            None => run(config, arguments.confirm_incarnation).await,
            Some(Command::Join(arguments)) => join::join(&config, arguments).await,
            Some(Command::StopGuests { grace }) => {
                stop::stop_guests(&config, Duration::from_secs(grace)).await
            }
            Some(Command::RemoveNetwork) => remove::remove_network(&config).await,
            Some(Command::StartGuests) => NodePower::new(&config.run_dir).clear(),
        }
    })
}

async fn run(config: Config, confirmed: Option<Incarnation>) -> anyhow::Result<()> {
    let mut terminate =
        signal(SignalKind::terminate()).context("cannot install signal handlers")?;
    let mut interrupt =
        signal(SignalKind::interrupt()).context("cannot install signal handlers")?;
    host::ensure_traversable_dir(&config.state_dir)?;
    host::ensure_traversable_dir(&config.run_dir)?;
    let _lock = host::lock(&config.state_dir)?;
    let member = tokio::select! {
        member = join::wait(&config) => member?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let (settings, adapters, tunnel) = assemble(&config, member)?;
    let node = settings.node.clone();
    let agent = Agent::open(settings, adapters)?;
    if let Some(incarnation) = confirmed {
        if agent.confirm_incarnation(incarnation)? {
            tracing::warn!(%incarnation, "confirmed: this node executes waifud's deletions again");
        } else {
            tracing::warn!(%incarnation, "no confirmation is pending for this incarnation");
        }
    }
    tracing::info!(%node, version = env!("CARGO_PKG_VERSION"), "waifud-agentd started");
    let stop = CancellationToken::new();
    let mut work = std::pin::pin!(agent.run(stop.clone()));
    tokio::select! {
        () = &mut work => {}
        _ = terminate.recv() => tracing::info!("stopping; guests keep running"),
        _ = interrupt.recv() => tracing::info!("stopping; guests keep running"),
    }
    stop.cancel();
    work.await;
    tunnel.stop().await;
    Ok(())
}

fn libvirt(config: &Config, qemu_owner: Option<(u32, u32)>) -> LibvirtConfig {
    let mut libvirt = LibvirtConfig::new(config.state_dir.join("kvm-probe.json"));
    libvirt.uri.clone_from(&config.libvirt_uri);
    libvirt.qemu_owner = qemu_owner;
    libvirt
}

fn network(config: &Config) -> LinuxNetworkConfig {
    LinuxNetworkConfig::new(
        config.run_dir.join("network"),
        config.state_dir.join("network"),
    )
}

fn assemble(
    config: &Config,
    member: Membership,
) -> anyhow::Result<(Settings, Adapters, Arc<Tunnel>)> {
    let qemu_owner = host::owner(&config.qemu_user, Some(&config.qemu_group))?;
    if qemu_owner.is_none() {
        tracing::warn!(
            "user {} or group {} does not exist (is libvirt installed?); leaving file ownership to libvirt",
            config.qemu_user,
            config.qemu_group
        );
    }
    let image_user = host::owner(&config.image_user, None)?;
    if image_user.is_none() {
        tracing::warn!(
            "user {} does not exist; image tools run as the user of this process",
            config.image_user
        );
    }
    let mut pools: Vec<Arc<dyn StoragePool>> = Vec::new();
    for pool in &config.pools {
        if let Some(above) = pool.path.parent()
            && above.starts_with(&config.state_dir)
        {
            host::ensure_traversable_dir(above)?;
        }
        let mut settings = FilePoolConfig::new(pool.name.clone(), &pool.path);
        settings.image_user = image_user;
        settings.volume_owner = qemu_owner;
        let opened: Result<Arc<dyn StoragePool>, _> = match pool.kind {
            PoolKind::Qcow2 => Qcow2Pool::open(settings).map(|pool| Arc::new(pool) as _),
            PoolKind::Reflink => ReflinkPool::open(settings).map(|pool| Arc::new(pool) as _),
            PoolKind::Other(ref kind) => anyhow::bail!("pool {}: unknown kind {kind:?}", pool.name),
        };
        pools.push(opened.with_context(|| format!("cannot open pool {}", pool.name))?);
    }
    let libvirt = libvirt(config, qemu_owner);
    let tunnel = Arc::new(Tunnel::open(
        config.metadata_interface.clone(),
        config.wireguard_listen,
        &config.state_dir.join("wireguard.key"),
    )?);
    let network = network(config);
    host::ensure_traversable_dir(&network.run_dir)?;
    host::ensure_traversable_dir(&network.state_dir)?;
    let adapters = Adapters {
        hypervisor: LibvirtHypervisor::connect(libvirt)?,
        pools,
        network: LinuxNetwork::new(network),
        link: Arc::new(HttpLink::of(member)?),
        metadata: Arc::new(MetadatadClient::new(config.metadatad_socket.clone())),
        tunnel: tunnel.clone(),
        dialer: Arc::new(TcpDialer),
        clock: Arc::new(SystemClock),
        host: Arc::new(NodePower::new(&config.run_dir)),
    };
    let settings = Settings {
        node: config.node_name()?,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        bridge: config.bridge.clone(),
        metadata_interface: config.metadata_interface.clone(),
        mtu: GUEST_MTU,
        domain: config.domain.clone(),
        boot_alone: config.boot_alone()?,
        qemu_owner,
        timing: Timing::default(),
    };
    Ok((settings, adapters, tunnel))
}
