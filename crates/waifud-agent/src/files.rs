//! Files of guests outside of pools: the console's log and the screen's socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
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

    /// The screen's socket. Short: Linux allows 107 bytes.
    pub fn vnc_socket(&self, id: InstanceId) -> PathBuf {
        self.screens().join(format!("{}", id.as_uuid().simple()))
    }

    /// Makes the directories that QEMU writes to; only its user and root reach into them.
    pub fn ensure(&self, id: InstanceId) -> io::Result<()> {
        make_dir(&self.state_dir.join("instances"), 0o711, None)?;
        make_dir(&self.directory(id), 0o700, self.owner)?;
        make_dir(&self.screens(), 0o700, self.owner)
    }

    /// Whether anything of the instance is there.
    pub fn exist(&self, id: InstanceId) -> bool {
        self.directory(id).exists() || self.vnc_socket(id).exists()
    }

    /// Removes what there is of the instance.
    pub fn ensure_absent(&self, id: InstanceId) -> io::Result<()> {
        absent(std::fs::remove_dir_all(self.directory(id)))?;
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

fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }
    owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
}
