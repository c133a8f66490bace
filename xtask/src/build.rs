//! Building the programs.

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo;

/// What a lab runs, and the command that people use.
const PROGRAMS: [&str; 4] = ["waifud", "waifuctl", "waifud-agentd", "waifud-metadatad"];

/// Builds waifud, waifuctl, waifud-agentd and waifud-metadatad beside this program.
///
/// # Errors
/// They do not compile.
pub fn programs() -> Result<()> {
    let mut command = cargo::cargo();
    command.args(["build", "--bins"]);
    for program in PROGRAMS {
        command.args(["--package", program]);
    }
    cargo::run(&mut command)
}

/// Builds the programs for a package and returns their directory: optimised, or as they are developed.
///
/// # Errors
/// They do not compile.
pub fn for_package(dev: bool) -> Result<PathBuf> {
    let mut command = cargo::cargo();
    command.args(["build", "--bins"]);
    if !dev {
        command.arg("--release");
    }
    for program in PROGRAMS {
        command.args(["--package", program]);
    }
    cargo::run(&mut command)?;
    Ok(cargo::target().join(if dev { "debug" } else { "release" }))
}
