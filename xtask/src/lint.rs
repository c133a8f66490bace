//! `cargo xtask lint`: static checks of code and documentation.

mod architecture;
mod arrows;
mod circles;
mod deny;
mod files;
mod licence;
pub mod metadata;
mod openapi;
mod snapshots;

use anyhow::{Result, bail};
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
}

impl Args {
    /// All parts, when the programs have just been built.
    pub fn after_build() -> Self {
        Self {
            built: true,
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
    part(Part::Circles, "circles of imports", &circles::check);
    part(Part::Deny, "licences, bans, sources", &deny::check);
    part(Part::Clippy, "clippy", &|| {
        let arguments = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        cargo::run(cargo::cargo().args(arguments))
    });
    part(Part::Openapi, "openapi", &|| {
        openapi::check(args.bless, args.built)
    });
    phases.finish()
}

/// Fails with all `findings`, one per line, if there are any.
fn none_of(findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{}", findings.join("\n"))
}
