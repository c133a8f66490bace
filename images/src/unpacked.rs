//! Debian packages that are unpacked and not installed, for tests that run their programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The programs and files of packages, without those that they depend on: from the cache, or else from the archive.
///
/// # Errors
/// The archive cannot be reached or lacks one of them.
pub fn unpacked(suite: &str, packages: &[&str]) -> Result<PathBuf> {
    let cache = directory()?;
    let kept = cache.join(format!("{}-{suite}", packages.join("+")));
    if kept.exists() {
        return Ok(kept);
    }
    let work = tempfile::tempdir_in(&cache)?;
    let tree = work.path().join("unpacked");
    for deb in download(suite, packages, work.path())? {
        unpack(&deb, &tree)?;
    }
    keep(&tree, &kept)?;
    Ok(kept)
}

/// The directory of unpacked packages.
pub fn directory() -> Result<PathBuf> {
    let images = crate::default_cache_dir();
    let cache = images.parent().context("no cache directory")?;
    fs::create_dir_all(cache)?;
    Ok(cache.to_path_buf())
}

/// Unpacks a package into the directory `tree`.
pub fn unpack(deb: &Path, tree: &Path) -> Result<()> {
    command("dpkg-deb", &["-x", text(deb)?, text(tree)?])
}

/// Moves an unpacked tree to its place in the cache.
pub fn keep(tree: &Path, kept: &Path) -> Result<()> {
    // If another test program was faster, its directory is equivalent.
    if let Err(error) = fs::rename(tree, kept) {
        ensure!(kept.exists(), "{}: {error}", kept.display());
    }
    Ok(())
}

/// Downloads packages to `work`, with apt options that use only this suite and do not touch the machine's apt state.
pub fn download(suite: &str, packages: &[&str], work: &Path) -> Result<Vec<PathBuf>> {
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
    let words = [&["download"], packages].concat();
    for words in [["update", "--error-on=any"].as_slice(), &words] {
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
    let mut debs = Vec::new();
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            debs.push(path);
        }
    }
    ensure!(
        debs.len() == packages.len(),
        "apt-get download did not produce {packages:?}"
    );
    Ok(debs)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not valid UTF-8")
}

/// Runs a program.
///
/// # Errors
/// It fails, and its errors are in the error.
pub fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let output_text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {output_text}");
    Ok(())
}
