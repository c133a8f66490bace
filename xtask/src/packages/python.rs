//! Python programs that tests need and Debian does not have, in pinned versions, in a virtual environment below
//! `target`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo;

/// The pinned versions.
const REQUIREMENTS: &str = "crates/waifud/tests/program/https/requirements.txt";

fn environment() -> PathBuf {
    cargo::target().join("schemathesis")
}

/// Installs schemathesis unless it is there in these versions. A failure is only printed: the test then fails or is
/// skipped.
pub fn install() {
    if let Err(error) = try_to() {
        eprintln!(
            "schemathesis could not be installed, so the test that needs it cannot run: {error:#}"
        );
    }
}

fn try_to() -> Result<()> {
    let requirements = std::fs::read_to_string(cargo::repository().join(REQUIREMENTS))
        .with_context(|| format!("cannot read {REQUIREMENTS}"))?;
    let environment = environment();
    let stamp = environment.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == requirements) {
        return Ok(());
    }
    cargo::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    cargo::run(
        Command::new(environment.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--retries", "5", "--timeout", "30", "--requirement"])
            .arg(cargo::repository().join(REQUIREMENTS)),
    )?;
    std::fs::write(&stamp, requirements)
        .with_context(|| format!("cannot write {}", stamp.display()))
}
