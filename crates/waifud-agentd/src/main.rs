//! The node's daemon: reads its configuration, chooses adapters, and runs the agent.
//!
//! It starts even if waifud, libvirtd or metadatad are not available, logs what it waits for, and continues once they are.
//! SIGTERM and SIGINT stop it; guests, their firewall rules and DHCP keep running.

mod assembly;
mod config;
mod host;
mod join;
mod memory;
mod mesh;
mod mesh_link;
mod power;
mod remove;
mod stop;
mod tunnel;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use waifud_agent::{Agent, Membership};
use waifud_types::Incarnation;

use crate::config::Config;
use crate::join::JoinArguments;
use crate::mesh::MeshArguments;
use crate::power::NodePower;

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
    /// Run the WireGuard link to other nodes. Started by waifud-agentd, as a process that outlives it.
    #[command(hide = true)]
    Mesh(MeshArguments),
    /// Allow guests to start: the host is up again, or its shutdown was canceled. Used by a unit's `ExecStart`.
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

fn main() -> ExitCode {
    waifud_kit::program::run(execute)
}

fn execute(arguments: Arguments) -> anyhow::Result<()> {
    let config = match &arguments.command {
        // Its arguments are complete, and it must start whatever the file contains by then.
        Some(Command::Mesh(_)) => Config::default(),
        _ => Config::read(&arguments.config)?,
    };
    let environment = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    tracing_subscriber::fmt()
        .with_env_filter(log_filter(environment.as_deref(), &config.log)?)
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
            Some(Command::Mesh(arguments)) => mesh::run(arguments).await,
            Some(Command::RemoveNetwork) => remove::remove_network(&config).await,
            Some(Command::StartGuests) => NodePower::new(&config.run_dir).clear(),
        }
    })
}

/// The filter of the log: that of the environment, or else the configured one.
fn log_filter(environment: Option<&str>, configured: &str) -> anyhow::Result<EnvFilter> {
    if let Some(filter) = environment.and_then(|text| EnvFilter::try_new(text).ok()) {
        return Ok(filter);
    }
    EnvFilter::try_new(configured)
        .context("invalid `log` filter in agentd.toml; an example is: info")
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
    let joined = Membership::open(&config.state_dir)?.context("the membership is missing")?;
    let (settings, adapters, tunnel) = assembly::assemble(&config, member)?;
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
        () = join::replaced(&config, &joined) => {
            tracing::warn!("this machine has joined again; stopping, to be started with the new key");
        }
        _ = terminate.recv() => tracing::info!("stopping; guests keep running"),
        _ = interrupt.recv() => tracing::info!("stopping; guests keep running"),
    }
    stop.cancel();
    work.await;
    tunnel.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_log_takes_precedence_over_the_configured_filter() {
        let shown = |environment| log_filter(environment, "warn").map(|filter| filter.to_string());
        assert_eq!(shown(Some("debug")).unwrap(), "debug");
        assert_eq!(shown(None).unwrap(), "warn");
        assert_eq!(shown(Some("waifud=loud")).unwrap(), "warn");
        let error = log_filter(None, "waifud=loud").unwrap_err();
        assert!(error.to_string().contains("`log`"), "{error}");
    }
}
