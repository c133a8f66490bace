//! `cargo xtask bench NAME`: each bench measures a performance target, in release mode.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{cargo, packages, root};

/// What a bench measures.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Bench {
    /// time to create a VM, beyond the libvirt calls that it needs
    Create,
    /// acknowledged creates per second, with 256 watching nodes
    Creates,
    /// TCP between two nodes through the mesh, beside wireguard-go
    Fabric,
    /// waifuctl list of 1,000 instances, including process start
    List,
    /// memory of each daemon with 50 paused and 5 running guests
    Memory,
    /// a disk from node to node, beside plain HTTP of the same file
    Move,
    /// metadata requests per second and p99 through the tunnel
    Metadata,
    /// a pass over 100,000 instances that wait for a node, and requests meanwhile
    Pending,
}

impl Bench {
    /// The package with the bench, which has the same name there.
    fn package(self) -> &'static str {
        match self {
            Self::Create | Self::Memory => "waifud-tests",
            Self::Creates | Self::List | Self::Pending => "waifud",
            Self::Fabric => "waifud-wireguard",
            Self::Metadata => "waifud-metadatad",
            Self::Move => "waifud-agent",
        }
    }

    /// Whether it starts the programs of this repository.
    fn needs_programs(self) -> bool {
        !matches!(self, Self::Fabric | Self::Move)
    }
}

#[derive(clap::Parser)]
pub struct Args {
    /// The bench; without it, all benches are listed
    #[arg(value_enum)]
    name: Option<Bench>,
    /// Arguments for the bench
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let Some(bench) = args.name else {
        for value in Bench::value_variants()
            .iter()
            .filter_map(Bench::to_possible_value)
        {
            let about = value.get_help().map(ToString::to_string);
            println!("{:<10} {}", value.get_name(), about.unwrap_or_default());
        }
        return Ok(());
    };
    let name = bench.to_possible_value().context("the bench has no name")?;
    let name = name.get_name();
    packages::ensure("lab")?;
    if bench.needs_programs() {
        cargo::run(cargo::cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    }
    let mut command = cargo::cargo();
    command.args(["bench", "--package", bench.package(), "--bench", name]);
    if !args.rest.is_empty() {
        command.arg("--").args(&args.rest);
    }
    root::for_test_programs(&mut command);
    // The bench prints its figures on standard output.
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("bench {name} failed with {status}");
    }
    Ok(())
}
