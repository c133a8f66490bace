//! Files of guests outside of pools: the console's log and socket, and the screen's socket.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use waifud_types::InstanceId;

/// Knows and makes the places of guests' files.
#[derive(Clone, Debug)]
pub struct Files {
    state_dir: PathBuf,
    run_dir: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Files {
    /// Below these two directories, which exist. `owner` is who QEMU runs as.
    pub fn new(state_dir: PathBuf, run_dir: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self {
            state_dir,
            run_dir,
            owner,
        }
    }

    /// The console's log.
    pub fn console_log(&self, id: InstanceId) -> PathBuf {
        self.directory(id).join("console.log")
    }

    /// The disk with its documents, where it reads them from one.
    pub fn seed(&self, id: InstanceId) -> PathBuf {
        self.directory(id).join("cidata.iso")
    }

    /// Ensures that the disk with its documents has these bytes, which nobody but QEMU's user and root may read. A
    /// running guest keeps what it started with: the file takes the place of the old one.
    pub fn ensure_seed(&self, id: InstanceId, bytes: &[u8]) -> io::Result<()> {
        self.ensure(id)?;
        let path = self.seed(id);
        if std::fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        let unfinished = path.with_extension("new");
        absent(std::fs::remove_file(&unfinished))?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(bytes)?;
        if let Some((user, group)) = self.owner {
            chown(&unfinished, Some(user), Some(group))?;
        }
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)
    }

    /// Ensures that there is no disk with its documents.
    pub fn ensure_no_seed(&self, id: InstanceId) -> io::Result<()> {
        absent(std::fs::remove_file(self.seed(id)))
    }

    /// The screen's socket. Short: Linux allows 107 bytes.
    pub fn vnc_socket(&self, id: InstanceId) -> PathBuf {
        self.screens().join(format!("{}", id.as_uuid().simple()))
    }

    /// The console's socket. Short: Linux allows 107 bytes.
    pub fn console_socket(&self, id: InstanceId) -> PathBuf {
        self.screens()
            .join(format!("{}.console", id.as_uuid().simple()))
    }

    /// Makes the directories that QEMU writes to; only its user and root reach into them.
    pub fn ensure(&self, id: InstanceId) -> io::Result<()> {
        make_dir(&self.state_dir.join("instances"), 0o711, None)?;
        make_dir(&self.directory(id), 0o700, self.owner)?;
        make_dir(&self.screens(), 0o700, self.owner)
    }

    /// Whether anything of the instance is there.
    pub fn exist(&self, id: InstanceId) -> bool {
        self.directory(id).exists()
            || self.vnc_socket(id).exists()
            || self.console_socket(id).exists()
    }

    /// Removes what there is of the instance.
    pub fn ensure_absent(&self, id: InstanceId) -> io::Result<()> {
        absent(std::fs::remove_dir_all(self.directory(id)))?;
        absent(std::fs::remove_file(self.console_socket(id)))?;
        absent(std::fs::remove_file(self.vnc_socket(id)))
    }

    fn directory(&self, id: InstanceId) -> PathBuf {
        self.state_dir.join("instances").join(id.to_string())
    }

    fn screens(&self) -> PathBuf {
        self.run_dir.join("vnc")
    }
}

fn absent(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Under another name until it has its owner: one that a crash left without would be of no use to QEMU, for ever.
fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let unfinished = path.with_extension("new");
    let finish = || {
        match std::fs::DirBuilder::new().mode(mode).create(&unfinished) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        if let Some((user, group)) = owner {
            chown(&unfinished, Some(user), Some(group))?;
        }
        std::fs::rename(&unfinished, path)
    };
    match finish() {
        // Another driver was faster.
        Err(_) if path.is_dir() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_seed_is_replaced_whole_and_goes_with_its_guest() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().metadata().unwrap();
        let place = root.path().to_owned();
        let files = Files::new(place.clone(), place, Some((own.uid(), own.gid())));
        let id = InstanceId::generate();
        files.ensure_seed(id, b"one").unwrap();
        // As a crash between writing and renaming leaves it.
        std::fs::write(files.seed(id).with_extension("new"), b"half").unwrap();
        let before = files.seed(id).metadata().unwrap();
        files.ensure_seed(id, b"one").unwrap();
        assert_eq!(
            files.seed(id).metadata().unwrap().ino(),
            before.ino(),
            "written for nothing"
        );
        files.ensure_seed(id, b"two").unwrap();
        let after = files.seed(id).metadata().unwrap();
        assert_eq!(std::fs::read(files.seed(id)).unwrap(), b"two");
        assert_ne!(
            after.ino(),
            before.ino(),
            "a running guest's disk was changed under it"
        );
        assert_eq!(after.permissions().mode() & 0o777, 0o600);
        files.ensure_absent(id).unwrap();
        assert!(!files.exist(id));
    }

    #[test]
    fn a_directory_that_a_crash_left_without_its_owner_gets_it() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().metadata().unwrap();
        let path = root.path().join("guest");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(path.with_extension("new"))
            .unwrap();
        for _ in 0..2 {
            make_dir(&path, 0o700, Some((own.uid(), own.gid()))).unwrap();
        }
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!path.with_extension("new").exists());
    }
}
