//! The daemon that faces guests: it ends their tunnel in this process and answers on 169.254.169.254:80 inside it.
//!
//! It needs no capability, opens no port but one UDP port on loopback, and holds no credential for waifud. What it
//! serves, and to whom, the node's agent tells it over a unix socket.

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
    let arguments = Arguments::parse();
    let result = config::Config::read(&arguments.config).and_then(|config| {
        logging::start(&config.log)?;
        run::run(&config)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Perhaps before logging began: straight to where it would go.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
