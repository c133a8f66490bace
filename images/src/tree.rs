//! Writes into a guest's file tree from outside. Its entries come from packages and may be symbolic links to any path
//! of the host, so an existing entry is removed before a file is written in its place.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A guest's root directory on the host.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An existing directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path on the host of a path in the guest.
    fn at(&self, path: &str) -> Result<PathBuf> {
        let relative = Path::new(path.trim_start_matches('/'));
        if !relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            bail!("{path} is not a plain path in a guest");
        }
        let mut parent = self.root.clone();
        for part in relative.parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            // Debian's /bin, /lib and /sbin are relative links into /usr; nothing else is followed.
            if let Ok(target) = fs::read_link(&parent)
                && !target
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)))
            {
                bail!("{} leads out of the guest's tree", parent.display());
            }
        }
        Ok(self.root.join(relative))
    }

    /// Creates a directory and its parents with mode 0755.
    pub fn dir(&self, path: &str) -> Result<()> {
        let at = self.at(path)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&at)
            .with_context(|| format!("cannot create {}", at.display()))
    }

    /// Removes a file or link, if there is one.
    pub fn remove(&self, path: &str) -> Result<()> {
        let at = self.at(path)?;
        match fs::remove_file(&at) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", at.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes a file and replaces an existing entry.
    pub fn file(&self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Result<()> {
        self.parent(path)?;
        self.remove(path)?;
        let at = self.at(path)?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&at)
            .and_then(|mut file| file.write_all(contents.as_ref()))
            .with_context(|| format!("cannot write {}", at.display()))
    }

    /// Creates a symbolic link and replaces an existing entry.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        self.parent(path)?;
        self.remove(path)?;
        let at = self.at(path)?;
        symlink(target, &at).with_context(|| format!("cannot create the link {}", at.display()))
    }

    /// Copies a file of the host.
    pub fn copy(&self, from: &Path, path: &str, mode: u32) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, mode, contents)
    }

    fn parent(&self, path: &str) -> Result<()> {
        match path.trim_start_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.dir(parent),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// An empty tree, and the path of a file outside it.
    fn new_tree() -> (TempDir, Tree, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let outside = dir.path().join("host-file");
        (dir, Tree::new(&root), outside)
    }

    #[test]
    fn a_link_in_the_guest_is_replaced_and_never_written_through() {
        let (dir, tree, host) = new_tree();
        fs::write(&host, "host").unwrap();
        tree.link("etc/resolv.conf", host.to_str().unwrap())
            .unwrap();
        tree.file("etc/resolv.conf", 0o644, "guest").unwrap();
        assert_eq!(fs::read_to_string(&host).unwrap(), "host");
        assert_eq!(
            fs::read_to_string(dir.path().join("root/etc/resolv.conf")).unwrap(),
            "guest"
        );
    }

    #[test]
    fn paths_outside_the_tree_are_refused() {
        let (dir, tree, _) = new_tree();
        assert!(tree.file("../x", 0o644, "").is_err());
        symlink("/etc", dir.path().join("root/out")).unwrap();
        assert!(tree.file("out/waifud-test", 0o644, "").is_err());
        assert!(!Path::new("/etc/waifud-test").exists());
    }
}
