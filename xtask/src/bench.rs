//! `cargo xtask bench NAME`: each bench measures one promise, in release mode.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use crate::{cargo, packages, root};

/// One promise and what measures it.
struct Bench {
    name: &'static str,
    about: &'static str,
    /// Arguments of `cargo` that run it; what people add after `--` is appended. Empty: not built yet.
    cargo: &'static [&'static str],
}

/// Add a line here; `cargo xtask bench NAME` does the rest.
const BENCHES: &[Bench] = &[
    Bench {
        name: "create",
        about: "our share of creating a VM, beyond the same libvirt calls",
        cargo: &["bench", "--package", "waifud-tests", "--bench", "create"],
    },
    Bench {
        name: "creates",
        about: "creates acknowledged per second, with 256 nodes that watch",
        cargo: &["bench", "--package", "waifud", "--bench", "creates"],
    },
    Bench {
        name: "list",
        about: "waifuctl list of 1,000 instances, as a whole process",
        cargo: &["bench", "--package", "waifud", "--bench", "list"],
    },
    Bench {
        name: "memory",
        about: "memory of each daemon with 50 guests that are paused and 5 that run",
        cargo: &["bench", "--package", "waifud-tests", "--bench", "memory"],
    },
    Bench {
        name: "metadata",
        about: "requests per second and p99 through the tunnel",
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
    /// Which; all are listed when absent
    name: Option<String>,
    /// Passed on to the bench
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
            format!("there is no bench {name:?}, only{known}")
        })?;
    if bench.cargo.is_empty() {
        bail!("bench {name} is not built yet");
    }
    packages::ensure("lab")?;
    cargo::run(cargo::cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    let mut command = cargo::cargo();
    command.args(bench.cargo);
    if !args.rest.is_empty() {
        command.arg("--").args(&args.rest);
    }
    root::for_test_programs(&mut command);
    // Its figures are what the caller wants on standard output.
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("bench {name} failed with {status}");
    }
    Ok(())
}
