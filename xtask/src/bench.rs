//! `cargo xtask bench NAME`: each bench measures a performance target, in release mode.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use crate::{cargo, packages, root};

/// A target and the cargo command that measures it.
struct Bench {
    name: &'static str,
    about: &'static str,
    /// Arguments of `cargo`. The user's arguments after `--` are appended. Empty if the bench does not exist yet.
    cargo: &'static [&'static str],
}

/// To add a bench, add a line here.
const BENCHES: &[Bench] = &[
    Bench {
        name: "create",
        about: "time to create a VM, beyond the libvirt calls that it needs",
        cargo: &["bench", "--package", "waifud-tests", "--bench", "create"],
    },
    Bench {
        name: "creates",
        about: "acknowledged creates per second, with 256 watching nodes",
        cargo: &["bench", "--package", "waifud", "--bench", "creates"],
    },
    Bench {
        name: "list",
        about: "waifuctl list of 1,000 instances, including process start",
        cargo: &["bench", "--package", "waifud", "--bench", "list"],
    },
    Bench {
        name: "memory",
        about: "memory of each daemon with 50 paused and 5 running guests",
        cargo: &["bench", "--package", "waifud-tests", "--bench", "memory"],
    },
    Bench {
        name: "metadata",
        about: "metadata requests per second and p99 through the tunnel",
        cargo: &[
            "bench",
            "--package",
            "waifud-metadatad",
            "--bench",
            "metadata",
        ],
    },
];

#[derive(clap::Parser)]
pub struct Args {
    /// The bench; without it, all benches are listed
    name: Option<String>,
    /// Arguments for the bench
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let Some(name) = &args.name else {
        for bench in BENCHES {
            println!("{:<10} {}", bench.name, bench.about);
        }
        return Ok(());
    };
    let bench = BENCHES
        .iter()
        .find(|bench| bench.name == name)
        .with_context(|| {
            let known = BENCHES.iter().fold(String::new(), |mut text, bench| {
                let _ = write!(text, " {}", bench.name);
                text
            });
            format!("unknown bench {name:?}; the benches are:{known}")
        })?;
    if bench.cargo.is_empty() {
        bail!("bench {name} does not exist yet");
    }
    packages::ensure("lab")?;
    cargo::run(cargo::cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    let mut command = cargo::cargo();
    command.args(bench.cargo);
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
