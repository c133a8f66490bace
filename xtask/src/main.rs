//! cargo xtask: everything that is done to this repository. One command, one file.

use clap::{Parser, Subcommand};

mod lab;
mod root;

/// Everything that is done to this repository.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    disable_version_flag = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A node on this machine, in namespaces of its own
    Lab(lab::Args),
}

fn main() {
    // Labs are started with this program; then it is a guard or a PID 1, and never gets past this line.
    waifud_lab::init_if_asked();
    let result = match Cli::parse().command {
        Command::Lab(args) => lab::run(args),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
