//! cargo xtask: everything that is done to this repository. One command, one file.

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
mod test;

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
    /// From a template to a running, configured VM, on this machine
    Demo(demo::Args),
    /// Install what is missing, build, lint, and run every test
    Test(test::Args),
    /// Format, clippy, crate arrows, files, the API's description, licences and sources
    Lint(lint::Args),
    /// Build a guest image: debian [bookworm|trixie], or tiny
    Image(image::Args),
    /// A node on this machine, in namespaces of its own
    Lab(lab::Args),
    /// Measure what we promise
    Bench(bench::Args),
    /// Make the Debian package and the tarball of this version
    Package(package::Args),
    /// Install the Debian packages that a command needs
    Packages(packages::Args),
}

fn main() {
    // Labs are started with this program; then it is a guard or a PID 1, and never gets past this line.
    waifud_lab::init_if_asked();
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Lab(args) => lab::run(args),
        Command::Bench(args) => bench::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Packages(args) => packages::run(&args),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
