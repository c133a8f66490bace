//! cloud-init from Debian's package, unpacked for tests that run its own code.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::unpacked::{command, directory, download, keep, unpack};

/// The Python modules that cloud-init imports.
const MODULES: &str = "requests, yaml, jinja2, configobj, jsonpatch, jsonschema, oauthlib";

/// Debian's package cloud-init, unpacked: from the cache, or else from the archive. `version` is the beginning of the
/// expected version.
///
/// # Errors
/// The Python modules that it imports are missing, the archive cannot be reached, or it has another version.
pub fn cloud_init_package(suite: &str, version: &str) -> Result<PathBuf> {
    let modules = command("/usr/bin/python3", &["-c", &format!("import {MODULES}")]);
    modules.context("Debian's Python modules are missing: apt-get install python3-requests python3-yaml python3-jinja2 python3-configobj python3-jsonpatch python3-jsonschema python3-oauthlib")?;
    let cache = directory()?;
    let wanted = format!("cloud-init-{version}");
    for entry in fs::read_dir(&cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&wanted) {
            return Ok(entry.path());
        }
    }
    let work = tempfile::tempdir_in(&cache)?;
    let debs = download(suite, &["cloud-init"], work.path())?;
    let deb = debs.first().context("no package")?;
    let name = deb.file_name().unwrap_or_default().to_string_lossy();
    let rest = name.strip_prefix("cloud-init_").unwrap_or_default();
    let found = rest.split(['-', '_']).next().unwrap_or_default();
    ensure!(
        found.starts_with(version),
        "{suite} has cloud-init {found}, but the tests expect {version}"
    );
    let tree = work.path().join("unpacked");
    unpack(deb, &tree)?;
    let kept = cache.join(format!("cloud-init-{found}"));
    keep(&tree, &kept)?;
    Ok(kept)
}
