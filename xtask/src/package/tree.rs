//! The installed files and their places: programs, units, users, completions, man pages, documentation.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Programs and their directories: commands in `bin`, daemons in `sbin`.
const PROGRAMS: [(&str, &str); 4] = [
    ("waifuctl", "usr/bin"),
    ("waifud", "usr/sbin"),
    ("waifud-agentd", "usr/sbin"),
    ("waifud-metadatad", "usr/sbin"),
];

/// Files of the repository and their places.
const FILES: [(&str, &str); 12] = [
    (
        "packaging/systemd/waifud.service",
        "usr/lib/systemd/system/waifud.service",
    ),
    (
        "packaging/systemd/waifud-agentd.service",
        "usr/lib/systemd/system/waifud-agentd.service",
    ),
    (
        "packaging/systemd/waifud-metadatad.service",
        "usr/lib/systemd/system/waifud-metadatad.service",
    ),
    (
        "packaging/systemd/waifud-guests.service",
        "usr/lib/systemd/system/waifud-guests.service",
    ),
    (
        "packaging/systemd/waifud-backup.service",
        "usr/lib/systemd/system/waifud-backup.service",
    ),
    ("packaging/sysusers.conf", "usr/lib/sysusers.d/waifud.conf"),
    (
        "packaging/debian/copyright",
        "usr/share/doc/waifud/copyright",
    ),
    (
        "packaging/debian/lintian-overrides",
        "usr/share/lintian/overrides/waifud",
    ),
    ("LICENSE.md", "usr/share/doc/waifud/LICENSE.md"),
    ("README.md", "usr/share/doc/waifud/README.md"),
    ("CHANGELOG.md", "usr/share/doc/waifud/CHANGELOG.md"),
    ("SECURITY.md", "usr/share/doc/waifud/SECURITY.md"),
];

/// Shells and the places of their completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/waifuctl"),
    ("zsh", "usr/share/zsh/vendor-completions/_waifuctl"),
    ("fish", "usr/share/fish/vendor_completions.d/waifuctl.fish"),
];

/// Creates the tree below `root` with the programs in the directory `programs`.
pub fn make(root: &Path, programs: &Path) -> Result<()> {
    for (name, dir) in PROGRAMS {
        let target = root.join(dir).join(name);
        put(&programs.join(name), &target, 0o755)?;
        strip(&target)?;
    }
    let repository = cargo::repository();
    for (from, to) in FILES {
        put(&repository.join(from), &root.join(to), 0o644)?;
    }
    documentation(
        &repository.join("docs"),
        &root.join("usr/share/doc/waifud/docs"),
    )?;
    let waifuctl = programs.join("waifuctl");
    for (shell, to) in COMPLETIONS {
        let text = cargo::read(Command::new(&waifuctl).args(["completions", shell]))?;
        ensure!(
            text.contains("waifuctl"),
            "waifuctl printed no completions for {shell}"
        );
        write(&root.join(to), text.as_bytes())?;
    }
    man_pages(&waifuctl, &root.join("usr/share/man/man1"))?;
    for daemon in ["waifud", "waifud-agentd", "waifud-metadatad"] {
        let help = cargo::read(Command::new(programs.join(daemon)).arg("--help"))?;
        let page = fs::read_to_string(repository.join(format!("packaging/man/{daemon}.8")))
            .with_context(|| format!("cannot read the manual page of {daemon}"))?;
        let missing = missing(&help, &page);
        ensure!(
            missing.is_empty(),
            "packaging/man/{daemon}.8 does not mention: {}",
            missing.join(", ")
        );
        let target = root.join(format!("usr/share/man/man8/{daemon}.8"));
        write(&target, page.as_bytes())?;
        cargo::run(Command::new("gzip").args(["-9", "-n"]).arg(&target))?;
    }
    Ok(())
}

/// Commands and options in a program's help that are missing in its manual page.
fn missing(help: &str, page: &str) -> Vec<String> {
    let page = page.replace('\\', "");
    let mut section = "";
    let mut missing = Vec::new();
    for line in help.lines() {
        if !line.starts_with(' ') {
            section = line;
            continue;
        }
        let first = line.trim_start();
        let indent = line.len() - first.len();
        // Deeper indentation continues the explanation above.
        let name = match section {
            "Commands:" if indent == 2 => first.split(' ').next(),
            "Options:" if first.starts_with('-') => {
                first.split([' ', ',']).find(|word| word.starts_with("--"))
            }
            _ => None,
        };
        if let Some(name) = name.filter(|name| !page.contains(name)) {
            missing.push(name.to_owned());
        }
    }
    missing
}

/// Copies guides and references unchanged.
fn documentation(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            documentation(&entry.path(), &target)?;
        } else {
            put(&entry.path(), &target, 0o644)?;
        }
    }
    Ok(())
}

fn man_pages(waifuctl: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    cargo::read(Command::new(waifuctl).args(["reference", "man"]).arg(dir))?;
    let mut pages: Vec<_> = fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    pages.sort();
    ensure!(!pages.is_empty(), "waifuctl wrote no man pages");
    for page in &pages {
        fs::set_permissions(page, Permissions::from_mode(0o644))?;
    }
    // -n omits the name and the time, so that the output depends on the pages only.
    cargo::run(Command::new("gzip").args(["-9", "-n"]).args(&pages))
}

/// Removes the symbols that only debuggers need. They are most of a program's size.
fn strip(program: &Path) -> Result<()> {
    cargo::run(Command::new("strip").arg("--strip-unneeded").arg(program))
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &bytes)?;
    fs::set_permissions(to, Permissions::from_mode(mode))?;
    Ok(())
}

pub fn write(to: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = to.parent() {
        directory(dir)?;
    }
    fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    fs::set_permissions(to, Permissions::from_mode(0o644))?;
    Ok(())
}

/// Creates a directory with mode 0755, independent of the umask.
pub fn directory(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent() {
        directory(above)?;
    }
    fs::create_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manual_page_lacks_is_named() {
        let help = "Does things\n\nUsage: x\n\nCommands:\n  init  Sets up\n        --not-an-option in a text\n  \
                    stop-it  Stops\n\nOptions:\n      --config <FILE>  See --more\n  -h, --help  Help\n";
        assert_eq!(
            missing(help, ".B init\n.B stop\\-it\n\\-\\-config, \\-\\-help"),
            Vec::<String>::new()
        );
        assert_eq!(missing(help, "init"), ["stop-it", "--config", "--help"]);
    }
}
