//! The parts of `cargo metadata` that lints and tests use.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cargo;

#[derive(Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub license: Option<String>,
    /// A file next to the manifest, for packages without an expression.
    #[serde(default)]
    pub license_file: Option<PathBuf>,
    #[serde(default)]
    pub manifest_path: PathBuf,
    /// `None` for packages of this repository.
    pub source: Option<String>,
    pub dependencies: Vec<Dependency>,
    #[serde(default)]
    pub features: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
pub struct Dependency {
    pub name: String,
    /// `None` (normal), "dev" or "build".
    pub kind: Option<String>,
    pub uses_default_features: bool,
    pub features: Vec<String>,
}

/// Our own crates only.
pub fn workspace() -> Result<Metadata> {
    read(&["--no-deps"])
}

/// Our own crates and all their dependencies on this platform.
pub fn everything() -> Result<Metadata> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    read(&["--filter-platform", &platform])
}

fn read(arguments: &[&str]) -> Result<Metadata> {
    let text = cargo::read(
        cargo::cargo()
            .args(["metadata", "--format-version", "1"])
            .args(arguments),
    )?;
    serde_json::from_str(&text).context("cannot parse the output of cargo metadata")
}
