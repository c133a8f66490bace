//! The Debian package: the tree and the control files of `packaging/debian`, packed by `dpkg-deb`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Contents;
use super::description::{DIR, SCRIPTS};
use crate::cargo;

/// Debian's name of this machine's architecture, for example `amd64`.
pub fn architecture() -> Result<String> {
    let text = cargo::read(Command::new("dpkg").arg("--print-architecture"))?;
    Ok(text.trim().to_owned())
}

/// Packs the tree, which contains its description, into `out` and returns the path of the package. Adds `DEBIAN` to the
/// tree.
pub fn make(contents: Contents<'_>, out: &Path) -> Result<PathBuf> {
    let Contents {
        root,
        version,
        architecture,
        quick,
    } = contents;
    let dir = root.join("DEBIAN");
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
    for name in std::iter::once("control").chain(SCRIPTS) {
        let from = root.join(DIR).join(name);
        let target = dir.join(name);
        fs::copy(&from, &target).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let package = out.join(format!("waifud_{version}_{architecture}.deb"));
    let mut command = Command::new("dpkg-deb");
    command
        .args(["--root-owner-group", "-Zgzip"])
        .arg(if quick { "-z1" } else { "-z9" })
        .arg("--build")
        .args([root, &package]);
    cargo::run(&mut command)?;
    Ok(package)
}

/// The changelog that Debian demands. Its one entry refers to CHANGELOG.md.
pub fn changelog(root: &Path, version: &str) -> Result<()> {
    let date = jiff::Zoned::now().strftime("%a, %d %b %Y %H:%M:%S %z");
    let text = format!(
        "waifud ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md beside this file.\n\n -- The waifud developers \
         <waifud@localhost>  {date}\n"
    );
    let path = root.join("usr/share/doc/waifud/changelog");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    cargo::run(Command::new("gzip").args(["-9", "-n"]).arg(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The units confine the daemons.
    #[test]
    fn every_daemon_has_a_unit_with_bounds() {
        for (daemon, user) in [
            ("waifud", Some("waifud")),
            ("waifud-metadatad", Some("waifud-metadata")),
            ("waifud-agentd", None),
        ] {
            let path = format!("packaging/systemd/{daemon}.service");
            let unit = fs::read_to_string(cargo::repository().join(path)).unwrap();
            assert!(
                unit.contains(&format!("ExecStart=/usr/sbin/{daemon}\n")),
                "{daemon}"
            );
            for line in [
                "CapabilityBoundingSet=",
                "NoNewPrivileges=yes\n",
                "ProtectSystem=",
            ] {
                assert!(unit.contains(&format!("\n{line}")), "{daemon}: {line}");
            }
            match user {
                Some(user) => {
                    assert!(unit.contains(&format!("\nUser={user}\n")), "{daemon}");
                    assert!(unit.contains("\nCapabilityBoundingSet=\n"), "{daemon}");
                }
                None => assert!(unit.contains("\nKillMode=process\n"), "{daemon}"),
            }
        }
    }
}
