//! Calls of dpkg and apt.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use waifud_lab::wait;

use crate::{cargo, root};

const ASK: Duration = Duration::from_mins(2);

/// Installed packages and their versions.
///
/// # Errors
/// dpkg-query does not exist or fails.
pub fn installed() -> Result<BTreeMap<String, String>> {
    let mut query = Command::new("dpkg-query");
    query.args([
        "--show",
        "--showformat",
        "${db:Status-Status} ${Package} ${Version}\n",
    ]);
    let text = wait::run(&mut query, ASK)
        .context("cannot list the installed packages; this command supports Debian only")?;
    Ok(parse_installed(&text))
}

fn parse_installed(text: &str) -> BTreeMap<String, String> {
    let fields = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter_map(|fields| match fields.as_slice() {
            ["installed", name, version] => Some(((*name).to_owned(), (*version).to_owned())),
            _ => None,
        })
        .collect()
}

/// apt-get, through sudo if needed. It waits for other apt processes, and reads its sources from `sources` if given.
fn apt_get(sources: Option<&Path>) -> Command {
    let mut command = match root::sudo() {
        Some(sudo) if !root::is_root() => {
            let mut command = Command::new(sudo);
            command.args(["--", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        }
        _ => {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        }
    };
    command.args(["--option", "DPkg::Lock::Timeout=300"]);
    command.args(source_options(sources));
    command
}

/// Options that make apt programs read `sources`, a directory that includes the machine's own sources.
fn source_options(sources: Option<&Path>) -> Vec<String> {
    sources.map_or(Vec::new(), |dir| {
        vec![
            "--option".into(),
            "Dir::Etc::SourceList=/dev/null".into(),
            "--option".into(),
            format!("Dir::Etc::SourceParts={}", dir.display()),
        ]
    })
}

/// `apt-get update`.
pub fn update(sources: Option<&Path>) -> Result<()> {
    cargo::run(apt_get(sources).args(["--quiet", "update"]))
}

/// `apt-get install`.
pub fn install(words: &[String], sources: Option<&Path>) -> Result<()> {
    let mut command = apt_get(sources);
    command
        .args(["--quiet", "install", "--yes", "--no-install-recommends"])
        .args(words);
    cargo::run(&mut command)
}

/// Whether `apt-get install` would succeed, and its output if not.
pub fn simulate(words: &[String], sources: Option<&Path>) -> Result<Result<(), String>> {
    let mut command = Command::new("apt-get");
    command.args(source_options(sources));
    command
        .args(["--simulate", "install", "--no-install-recommends"])
        .args(words)
        .env("LC_ALL", "C");
    let output = wait::output(&mut command, ASK)?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let text = [output.stdout, output.stderr].concat();
    Ok(Err(String::from_utf8_lossy(&text).trim().to_owned()))
}

/// The packages of `names` that `suite` has.
pub fn in_suite(names: &[&str], suite: &str, sources: Option<&Path>) -> Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command
        .args(source_options(sources))
        .arg("madison")
        .args(names);
    Ok(parse_madison(&wait::run(&mut command, ASK)?, suite))
}

/// Parses lines like `qemu-utils | 1:10.0.2+ds-2~bpo12+1 | http://… bookworm-backports/main amd64 Packages`.
fn parse_madison(text: &str, suite: &str) -> Vec<String> {
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split('|').map(str::trim).collect();
            let (name, place) = (fields.first()?, fields.get(2)?);
            place
                .split_whitespace()
                .any(|word| word.starts_with(&format!("{suite}/")))
                .then(|| (*name).to_owned())
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fully_installed_packages_count() {
        let text = "installed gcc 4:12.2.0-3\nconfig-files redis 5\nnot-installed qemu \nhalf-configured x 1\n";
        assert_eq!(
            parse_installed(text).into_keys().collect::<Vec<_>>(),
            ["gcc"]
        );
    }

    #[test]
    fn suites_are_read_from_the_third_column() {
        let text = " qemu-utils | 1:10.0.2+ds-2~bpo12+1 | http://m bookworm-backports/main amd64 Packages\n\
                    qemu-utils | 1:7.2 | http://m bookworm/main amd64 Packages\n\
                    seabios | 1.16 | http://m bookworm/main amd64 Packages\n";
        assert_eq!(parse_madison(text, "bookworm-backports"), ["qemu-utils"]);
        assert_eq!(parse_madison(text, "bookworm"), ["qemu-utils", "seabios"]);
    }
}
