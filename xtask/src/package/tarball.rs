//! The tarball for hosts that do not run Debian: the same tree below one directory, to be copied to `/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::Contents;
use crate::cargo;

/// Packs the tree into `out` and returns the path of the tarball.
pub fn make(contents: Contents<'_>, out: &Path) -> Result<PathBuf> {
    let name = format!("waifud-{}-{}", contents.version, contents.architecture);
    let tarball = out.join(format!("{name}.tar.gz"));
    let mut command = Command::new("tar");
    command
        .arg("--create")
        .arg(if contents.quick {
            "--use-compress-program=gzip -1"
        } else {
            "--gzip"
        })
        .arg("--file")
        .arg(&tarball)
        .args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name"])
        .arg(format!("--transform=s,^[.],{name},"))
        .arg("--directory")
        .arg(contents.root)
        .arg(".");
    cargo::run(&mut command)?;
    Ok(tarball)
}
