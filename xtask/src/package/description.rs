//! The description of the package in the tree itself: its files and Debian's control files. With it, waifud makes the same
//! package from an installation, for new nodes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::Contents;
use crate::cargo;

/// Its directory.
pub const DIR: &str = "usr/share/waifud/package";
/// The scripts of the Debian package.
pub const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Adds the description to a tree that is otherwise complete.
pub fn write(contents: Contents<'_>) -> Result<()> {
    let Contents {
        root,
        version,
        architecture,
        ..
    } = contents;
    let from = cargo::repository().join("packaging/debian");
    let dir = root.join(DIR);
    super::tree::directory(&dir)?;
    for script in SCRIPTS {
        let target = dir.join(script);
        fs::copy(from.join(script), &target).with_context(|| format!("cannot copy {script}"))?;
        fs::set_permissions(&target, Permissions::from_mode(0o755))?;
    }
    let kib = size(root)?.div_ceil(1024);
    let control = fs::read_to_string(from.join("control")).context("cannot read control")?;
    let control = fill_in(&control, version, architecture, kib);
    super::tree::write(&dir.join("control"), control.as_bytes())?;
    // The list contains itself.
    let list = dir.join("files");
    super::tree::write(&list, b"")?;
    let mut files = Vec::new();
    list_files(root, root, &mut files)?;
    files.sort();
    super::tree::write(&list, (files.join("\n") + "\n").as_bytes())
}

fn list_files(root: &Path, dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list_files(root, &path, files)?;
        } else {
            let relative = path.strip_prefix(root)?.to_str();
            files.push(relative.context("a path is not UTF-8")?.to_owned());
        }
    }
    Ok(())
}

fn fill_in(control: &str, version: &str, architecture: &str, kib: u64) -> String {
    control
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@INSTALLED_SIZE@", &kib.to_string())
}

/// Bytes of all files under `dir`.
fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() {
            size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_of_the_control_file_is_filled_in() {
        let path = cargo::repository().join("packaging/debian/control");
        let text = fill_in(&fs::read_to_string(path).unwrap(), "1.2.3", "amd64", 4096);
        assert!(
            !text.contains('@') || text.matches('@').count() == 1,
            "{text}"
        );
        assert!(text.contains("\nVersion: 1.2.3\n") && text.contains("\nInstalled-Size: 4096\n"));
    }
}
