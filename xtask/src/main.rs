//! `cargo xtask`: builds, tests and measures this repository. Each command is in its own file.

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cargo;
mod demo;
mod image;
mod lab;
mod lint;
mod package;
mod packages;
mod phases;
mod root;
mod sim;
mod test;

/// Build, test and measure waifud.
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
    /// Create a VM on this machine, configure it with cloud-init, and verify the result
    Demo(demo::Args),
    /// Install missing packages, build, and run all lints and tests
    Test(test::Args),
    /// Check formatting, clippy, dependencies between crates, files, the API description, licenses and sources
    Lint(lint::Args),
    /// Build a guest image: debian [bookworm|trixie], debian-12-node, or tiny
    Image(image::Args),
    /// Run a node on this machine, in its own namespaces
    Lab(lab::Args),
    /// Measure the performance targets
    Bench(bench::Args),
    /// Simulate a cluster from a seed, or from many
    Sim(sim::Args),
    /// Build the Debian package and the tarball
    Package(package::Args),
    /// Install the Debian packages that a command needs
    Packages(packages::Args),
}

fn main() {
    // A lab starts this program as its guard and as PID 1 of its nodes. In those roles the call does not return.
    waifud_lab::init_if_asked();
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Lab(args) => lab::run(args),
        Command::Bench(args) => bench::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Packages(args) => packages::run(&args),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
