//! `cargo xtask test`: what CI runs, and what contributors run before they send a change.

mod changed;
mod output;
mod programs;
mod queues;
mod slowest;
mod suites;

use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use waifud_images::Guest;

use self::changed::Selection;
use self::suites::{GUESTS, Other};
use crate::phases::Phases;
use crate::{cargo, image, lint, packages, root};

#[derive(clap::Parser)]
pub struct Args {
    /// Leave out the tests that boot guests
    #[arg(long)]
    quick: bool,
    /// Run only what the changes since --base can affect, committed or not
    #[arg(long)]
    changed: bool,
    /// With --changed: the revision to compare with
    #[arg(
        long,
        value_name = "REV",
        default_value = "origin/main",
        requires = "changed"
    )]
    base: String,
}

pub fn run(args: &Args) -> Result<()> {
    let selection = if args.changed {
        changed::selection(&args.base)?
    } else {
        Selection::everything()
    };
    let mut phases = Phases::default();
    if !selection.code {
        phases.run("lint of texts", || lint::run(&lint::Args::texts()));
        return phases.finish();
    }
    let guests = !args.quick && selection.has(GUESTS);
    let mut installed = false;
    phases.run("packages", || {
        packages::ensure("test")?;
        installed = true;
        Ok(())
    });
    // Concurrently with cargo's build: much of the time is spent waiting for mirrors.
    let preparation = installed.then(|| {
        thread::spawn(move || {
            packages::install_python();
            if guests { build_images() } else { Ok(()) }
        })
    });
    let mut programs = Vec::new();
    phases.run("build", || {
        programs = programs::build()?;
        programs.retain(|program| selection.has(&program.package));
        Ok(())
    });
    if let Some(preparation) = preparation {
        phases.always("schemathesis and images", || {
            preparation
                .join()
                .map_err(|_| anyhow!("the preparation panicked"))?
        });
    }
    if !guests {
        programs.retain(|program| program.package != GUESTS);
    }
    phases.run("lint and tests", || {
        let lint: Other<'_> = ("lint", Box::new(|| lint::run(&lint::Args::beside_tests())));
        // After the lint, because two cargos that compile wait for each other.
        let documentation: Other<'_> = ("doc tests", Box::new(doc_tests));
        suites::run(&programs, vec![lint, documentation])
    });
    phases.finish()
}

fn build_images() -> Result<()> {
    for (guest, name) in [
        (Guest::Tiny, "tiny"),
        (Guest::DebianNode, "debian-12-node"),
        (Guest::DebianBookworm, "debian"),
    ] {
        build_image(guest, name)?;
    }
    Ok(())
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

fn doc_tests() -> Result<()> {
    let mut command = cargo::in_background();
    command.args(["test", "--workspace", "--doc"]);
    root::for_test_programs(&mut command);
    no_skips(&mut command);
    cargo::run(&mut command)
}

/// Forbids skips where every test can run: as root, with sudo, and in CI.
fn no_skips(command: &mut Command) {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if ci || root::is_root() || root::sudo().is_some() {
        command.env("WAIFUD_TEST_NO_SKIP", "1");
    }
}
