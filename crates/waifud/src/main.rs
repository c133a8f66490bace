//! The control server: reads its configuration, serves HTTPS and the unix socket, and runs until it receives a signal.

mod addresses;
mod backup;
mod backup_settings;
mod config;
mod confirm;
mod connections;
mod duration;
mod https;
mod init;
mod redis;
mod serve;
mod sockets;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// The control server of waifud.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// The configuration file [default: /etc/waifud/waifud.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print the OpenAPI 3.1 document of the HTTP API
    Openapi,
    /// Set up this machine: configuration files, systemd units, and its own agent as a node
    #[command(
        after_help = "Examples:\n  sudo waifud init\n  sudo waifud init --listen 0.0.0.0:7373 --advertise https://alder.lan:7373 --pool /srv/guests --yes"
    )]
    Init(init::InitArguments),
    /// Write waifud's database and CA to a file; waifud may be running
    Backup(backup::BackupArguments),
    /// Replace waifud's state with a backup; waifud must be stopped
    Restore(backup::RestoreArguments),
}

fn main() -> ExitCode {
    waifud_kit::program::run(|arguments| run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(Command::Openapi) = arguments.command {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{:#}", waifud_control::http::openapi()?)?;
        return Ok(());
    }
    if let Some(Command::Init(arguments)) = &arguments.command {
        return init::init(arguments);
    }
    let config = Config::load(arguments.config.as_deref())?;
    match &arguments.command {
        Some(Command::Backup(backup)) => {
            return backup::backup(&config, arguments.config.as_deref(), backup);
        }
        Some(Command::Restore(arguments)) => return backup::restore(&config, arguments),
        Some(Command::Openapi | Command::Init(_)) | None => {}
    }
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| anyhow::anyhow!("invalid value for log, {:?}: {error}", config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve::serve(config))
}
