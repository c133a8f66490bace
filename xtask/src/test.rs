//! `cargo xtask test`: what CI runs, and what anybody runs before sending a change.

use std::process::Command;

use anyhow::{Context, Result};
use waifud_images::Guest;

use crate::phases::Phases;
use crate::{cargo, image, lint, packages, root};

/// The package whose tests boot guests, and so run one after the other.
const SERIAL: &str = "waifud-tests";

#[derive(clap::Parser)]
pub struct Args {
    /// Leave out the tests that boot guests
    #[arg(long)]
    quick: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut phases = Phases::default();
    phases.run("packages", || packages::ensure("test"));
    phases.run("build", || {
        cargo::run(cargo::cargo().args(["build", "--workspace", "--all-targets"]))
    });
    phases.run("lint", || lint::run(&lint::Args::default()));
    if !args.quick {
        phases.run("image tiny", || build_image(Guest::Tiny, "tiny"));
        phases.run("image debian", || {
            build_image(Guest::DebianBookworm, "debian")
        });
        phases.run("image debian node", || {
            build_image(Guest::DebianNode, "debian-12-node")
        });
    }
    let nextest = cargo::has_subcommand("nextest");
    phases.run("tests in parallel", || parallel(nextest));
    phases.run("doc tests", || {
        cargo::run(tests(cargo::cargo().args(["test", "--workspace", "--doc"])))
    });
    if !args.quick {
        phases.run("tests with guests", || serial(nextest));
    }
    phases.finish()
}

fn build_image(guest: Guest, name: &str) -> Result<()> {
    if root::is_root() {
        return image::build(guest).map(|_| ());
    }
    let sudo = root::sudo().context("building an image needs root or sudo")?;
    cargo::run(
        Command::new(sudo)
            .arg("--preserve-env")
            .arg("--")
            .arg(std::env::current_exe()?)
            .args(["image", name]),
    )
}

fn parallel(nextest: bool) -> Result<()> {
    let mut command = cargo::cargo();
    if nextest {
        command.args([
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--exclude",
            SERIAL,
        ]);
    } else {
        command.args([
            "test",
            "--workspace",
            "--no-fail-fast",
            "--exclude",
            SERIAL,
            "--bins",
            "--lib",
            "--tests",
        ]);
    }
    cargo::run(tests(&mut command))
}

fn serial(nextest: bool) -> Result<()> {
    let mut command = cargo::cargo();
    if nextest {
        command.args([
            "nextest",
            "run",
            "--no-fail-fast",
            "--package",
            SERIAL,
            "--test-threads",
            "1",
            "--no-tests",
            "pass",
        ]);
    } else {
        command.args([
            "test",
            "--no-fail-fast",
            "--package",
            SERIAL,
            "--lib",
            "--bins",
            "--tests",
            "--",
            "--test-threads=1",
        ]);
    }
    cargo::run(tests(&mut command))
}

/// Sets a test run's environment: test programs are root where that is possible, and then, and in CI, nothing is skipped.
fn tests(command: &mut Command) -> &mut Command {
    root::for_test_programs(command);
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if ci || root::is_root() || root::sudo().is_some() {
        command.env("WAIFUD_TEST_NO_SKIP", "1");
    }
    command
}
