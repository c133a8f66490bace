//! `cargo xtask lint`: static checks of code and documentation.

mod architecture;
mod arrows;
mod circles;
mod deny;
mod files;
mod license;
pub mod metadata;
mod openapi;
mod snapshots;

use std::ffi::OsStr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::cargo;
use crate::phases::Phases;

/// One part of the lint.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    Format,
    Files,
    Snapshots,
    Architecture,
    Arrows,
    Circles,
    Deny,
    Clippy,
    Openapi,
}

#[derive(clap::Parser, Default)]
pub struct Args {
    /// Write docs/reference/openapi.json instead of comparing it
    #[arg(long)]
    bless: bool,
    /// Run only this part; can be repeated
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// waifud is built already
    #[arg(skip)]
    built: bool,
    /// Compile only in the processor time that other programs leave
    #[arg(skip)]
    background: bool,
}

impl Args {
    /// All parts, when the programs have just been built, while tests run.
    pub fn beside_tests() -> Self {
        Self {
            built: true,
            background: true,
            ..Self::default()
        }
    }

    /// The parts that read text only.
    pub fn texts() -> Self {
        Self {
            only: vec![Part::Architecture],
            ..Self::default()
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let mut phases = Phases::default();
    let mut part = |part: Part, name, work: &dyn Fn() -> Result<()>| {
        if args.only.is_empty() || args.only.contains(&part) {
            phases.always(name, work);
        }
    };
    part(Part::Format, "format", &|| {
        cargo::run(cargo::cargo().args(["fmt", "--all", "--check", "--", "--files-with-diff"]))
    });
    part(Part::Files, "files", &files::check);
    part(Part::Snapshots, "snapshots", &snapshots::check);
    part(Part::Architecture, "architecture", &architecture::check);
    part(Part::Arrows, "crate arrows", &arrows::check);
    part(Part::Circles, "circular imports", &circles::check);
    part(Part::Deny, "licenses, bans, sources", &deny::check);
    part(Part::Clippy, "clippy", &|| {
        let arguments = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        let mut cargo = if args.background {
            cargo::in_background()
        } else {
            cargo::cargo()
        };
        cargo::run(cargo.args(arguments))
    });
    part(Part::Openapi, "openapi", &|| {
        openapi::check(args.bless, args.built)
    });
    phases.finish()
}

/// The repository's files that match a pattern of git, by their path in it, with their text. Includes new files that git
/// does not ignore.
fn texts(pattern: impl AsRef<OsStr>) -> Result<Vec<(String, String)>> {
    let mut list = std::process::Command::new("git");
    list.current_dir(cargo::repository())
        .args(["ls-files", "-z", "--cached", "--others"])
        .args(["--exclude-standard", "--"])
        .arg(pattern);
    let mut texts = Vec::new();
    for name in cargo::read(&mut list)?.split_terminator('\0') {
        let path = cargo::repository().join(name);
        // The removal of a file may not be committed yet.
        if path.is_file() {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            texts.push((name.to_owned(), text));
        }
    }
    Ok(texts)
}

/// Fails with all `findings`, one per line, if there are any.
fn none_of(findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.join("\n"))
}
