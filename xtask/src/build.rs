//! Builds our programs.

use std::path::PathBuf;

use anyhow::Result;

use crate::cargo;

/// The daemons that a lab runs, and waifuctl.
const PROGRAMS: [&str; 4] = ["waifud", "waifuctl", "waifud-agentd", "waifud-metadatad"];

/// Builds waifud, waifuctl, waifud-agentd and waifud-metadatad into the directory of this program.
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

/// Builds the programs for a package and returns their directory. `dev` chooses the development profile.
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
