//! `cargo xtask sim`: builds and runs the simulation of a cluster.

use anyhow::{Context, Result, bail};

use crate::cargo;

#[derive(clap::Parser)]
pub struct Args {
    /// Run this seed; with --seeds, the first one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this many seeds, and stop after the first that fails
    #[arg(long)]
    seeds: Option<u64>,
    /// The number of steps of each run
    #[arg(long, default_value_t = 60)]
    steps: u64,
    /// Plant a bug that the simulation should find
    #[arg(long)]
    bug: Option<String>,
    /// Arguments for waifud-sim; `-- --help` lists them
    #[arg(last = true)]
    rest: Vec<String>,
}

/// How many steps are run by a debug build. For more, the optimized build is worth its compilation.
const DEBUG_STEPS_MAX: u64 = 20_000;

/// # Errors
/// An invariant does not hold, or the simulation does not compile.
pub fn run(args: &Args) -> Result<()> {
    let mut command = cargo::cargo();
    command.args(["run", "--quiet", "--package", "waifud-sim"]);
    if args.seeds.unwrap_or(1).saturating_mul(args.steps) > DEBUG_STEPS_MAX {
        command.args(["--profile", "sim"]);
    }
    command.arg("--");
    command.args(["--seed", &args.seed.to_string()]);
    command.args(["--steps", &args.steps.to_string()]);
    if let Some(seeds) = args.seeds {
        command.args(["--seeds", &seeds.to_string()]);
    }
    if let Some(bug) = &args.bug {
        command.args(["--bug", bug]);
    }
    command.args(&args.rest);
    // The simulation prints its findings on standard output.
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the simulation failed with {status}");
    }
    Ok(())
}
