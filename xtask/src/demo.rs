//! `cargo xtask demo`: from a template to a running, configured VM.

use anyhow::{Result, bail};

use crate::{build, packages};

/// None yet.
#[derive(clap::Parser)]
pub struct Args {}

pub fn run(Args {}: Args) -> Result<()> {
    packages::ensure("demo")?;
    build::programs()?;
    bail!(
        "the demo is not built yet: it needs waifud, waifuctl, waifud-agentd and waifud-metadatad to work together"
    )
}
