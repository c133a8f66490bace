//! The daemon that serves guests: their tunnel ends in this process, which answers on 169.254.169.254:80 inside it.
//!
//! It needs no capabilities, opens only a UDP port on loopback, and has no credentials for waifud. The node's agent sends it
//! documents and assignments over a unix socket.

mod config;
mod logging;
mod run;
mod state;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// The metadata service of one node: answers guests on 169.254.169.254:80, through WireGuard that ends in this process.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file; without the file, everything has its default
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

fn main() -> ExitCode {
    waifud_kit::program::run(|arguments: Arguments| {
        let config = config::Config::read(&arguments.config)?;
        logging::start(&config.log)?;
        run::run(&config)
    })
}
