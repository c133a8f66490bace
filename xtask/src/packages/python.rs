//! Python programs that tests run and Debian does not have: in a virtual environment below `target`, in pinned versions.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo;

/// What is installed, with every version.
const REQUIREMENTS: &str = "crates/waifud/tests/https/requirements.txt";

fn environment() -> PathBuf {
    cargo::target().join("schemathesis")
}

/// Installs schemathesis unless these versions are there. Where that fails, says so: its test fails or is skipped then.
pub fn install() {
    if let Err(error) = try_to() {
        eprintln!(
            "schemathesis could not be installed, so the test that needs it can't run: {error:#}"
        );
    }
}

fn try_to() -> Result<()> {
    let wanted = std::fs::read_to_string(cargo::repository().join(REQUIREMENTS))
        .with_context(|| format!("cannot read {REQUIREMENTS}"))?;
    let environment = environment();
    let stamp = environment.join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
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
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}
