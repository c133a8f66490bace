//! The configuration of pools of files.

use std::path::PathBuf;
use std::time::Duration;

use waifud_types::Name;

/// The configuration of a pool of files.
#[derive(Clone, Debug)]
pub struct FilePoolConfig {
    /// The pool's name.
    pub name: Name,
    /// The directory; created if missing. QEMU's user must be able to enter its parents.
    pub path: PathBuf,
    /// The user and group ids that image tools run as if we are root: `waifud-image`.
    pub image_user: Option<(u32, u32)>,
    /// `qemu-img`, as a path or as a name to find in `PATH`.
    pub qemu_img: PathBuf,
    /// The user and group ids that volumes belong to if we are root: QEMU's. Without them, libvirt changes the owner at
    /// each start.
    pub volume_owner: Option<(u32, u32)>,
    /// The time limit for one run of a tool.
    pub tool_timeout: Duration,
}

impl FilePoolConfig {
    /// A pool in a directory with defaults: tools run as the current user, who owns the volumes; two minutes per run.
    pub fn new(name: Name, path: impl Into<PathBuf>) -> Self {
        Self {
            name,
            path: path.into(),
            image_user: None,
            qemu_img: PathBuf::from("qemu-img"),
            volume_owner: None,
            tool_timeout: Duration::from_mins(2),
        }
    }
}
