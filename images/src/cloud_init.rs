//! cloud-init from Debian's package, unpacked for tests that run its own code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

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
    let images = crate::default_cache_dir();
    let cache = images.parent().context("no cache directory")?;
    fs::create_dir_all(cache)?;
    let wanted = format!("cloud-init-{version}");
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&wanted) {
            return Ok(entry.path());
        }
    }
    let work = tempfile::tempdir_in(cache)?;
    let (deb, found) = download(suite, work.path())?;
    ensure!(
        found.starts_with(version),
        "{suite} has cloud-init {found}, but the tests expect {version}"
    );
    let unpacked = work.path().join("unpacked");
    command("dpkg-deb", &["-x", text(&deb)?, text(&unpacked)?])?;
    let kept = cache.join(format!("cloud-init-{found}"));
    // If another test program was faster, its directory is equivalent.
    if let Err(error) = fs::rename(&unpacked, &kept) {
        ensure!(kept.exists(), "{}: {error}", kept.display());
    }
    Ok(kept)
}

/// Downloads the package with apt options that use only this suite and do not touch the machine's apt state.
fn download(suite: &str, work: &Path) -> Result<(PathBuf, String)> {
    let sources = work.join("debian.sources");
    fs::write(&sources, crate::apt_sources(suite)?)?;
    for directory in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(directory))?;
    }
    let options = [
        format!("Dir::Etc::SourceList={}", sources.display()),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", work.join("lists").display()),
        format!("Dir::Cache={}", work.join("cache").display()),
        // The cache directory may be one that no other user can enter.
        "APT::Sandbox::User=root".to_owned(),
        // A connection that stalls is replaced soon: with apt's own values, one would take the whole limit below.
        "Acquire::http::Timeout=10".to_owned(),
        "Acquire::Retries=5".to_owned(),
    ];
    for words in [
        ["update", "--error-on=any"].as_slice(),
        &["download", "cloud-init"],
    ] {
        let mut apt = Command::new("timeout");
        apt.args(["180", "apt-get", "-qq"]).current_dir(work);
        for option in &options {
            apt.args(["-o", option]);
        }
        let output = apt.args(words).output()?;
        let output_text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "apt-get {words:?} for {suite}: {output_text}"
        );
    }
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(rest) = name.strip_prefix("cloud-init_") {
            let version = rest.split(['-', '_']).next().unwrap_or_default();
            return Ok((path, version.to_owned()));
        }
    }
    anyhow::bail!("apt-get download did not produce a package")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not valid UTF-8")
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let output_text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {output_text}");
    Ok(())
}
