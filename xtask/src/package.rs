//! `cargo xtask package`: builds the Debian package and the tarball from one tree of files.
//!
//! ```text
//!  cargo build ──► programs ──┐
//!  waifuctl itself ──► completions, man pages ──┼─► a tree ([`tree`]) ──┬─► waifud_VERSION_ARCH.deb ([`deb`])
//!  packaging/ ──► units, users ──┘                                      └─► waifud-VERSION-ARCH.tar.gz ([`tarball`])
//! ```

mod deb;
mod description;
mod tarball;
mod tree;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{build, cargo, packages};

#[derive(clap::Parser)]
pub struct Args {
    /// Directory for the packages [default: target/package]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Package programs of the development profile, which build faster (for tests)
    #[arg(long)]
    dev: bool,
    /// Package the programs in this directory instead of building them
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Use this version instead of the workspace's, for example 0.1.0+1 (for tests of upgrades)
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
}

/// The built files.
#[derive(Clone, Debug)]
pub struct Packages {
    /// The Debian package.
    pub deb: PathBuf,
    /// The tarball.
    pub tarball: PathBuf,
}

/// What a package is made of.
#[derive(Clone, Copy)]
struct Contents<'a> {
    /// The tree of its files, as below `/`.
    root: &'a Path,
    version: &'a str,
    /// As Debian names it.
    architecture: &'a str,
    /// Whether compression is to be fast instead of good.
    quick: bool,
}

pub fn run(args: &Args) -> Result<()> {
    packages::ensure("build")?;
    let made = make(args)?;
    println!("{}\n{}", made.deb.display(), made.tarball.display());
    Ok(())
}

fn make(args: &Args) -> Result<Packages> {
    let programs = match &args.bin_dir {
        Some(dir) => dir.clone(),
        None => build::for_package(args.dev)?,
    };
    let out = match &args.out {
        Some(out) => std::path::absolute(out)?,
        None => cargo::repository().join("target/package"),
    };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let version = args
        .version
        .clone()
        .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let architecture = deb::architecture()?;
    let work = tempfile::Builder::new().prefix("tree-").tempdir_in(&out)?;
    let root = work.path().join("root");
    tree::make(&root, &programs)?;
    let contents = Contents {
        root: &root,
        version: &version,
        architecture: &architecture,
        quick: args.dev,
    };
    deb::changelog(&root, &version)?;
    description::write(contents)?;
    Ok(Packages {
        tarball: tarball::make(contents, &out)?,
        deb: deb::make(contents, &out)?,
    })
}
