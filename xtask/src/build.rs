//! Building the programs.

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
