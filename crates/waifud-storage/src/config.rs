//! How a pool of files is set up, whatever its volumes are made of.

use std::path::PathBuf;
use std::time::Duration;

use waifud_types::Name;

/// How a pool is set up.
#[derive(Clone, Debug)]
pub struct FilePoolConfig {
    /// The pool's name.
    pub name: Name,
    /// Its directory; made when missing. QEMU's user must be able to pass through its parents.
    pub path: PathBuf,
    /// User and group (numbers) that image tools run as when we are root: `waifud-image`.
    pub image_user: Option<(u32, u32)>,
    /// `qemu-img`, by path or to be found in `PATH`.
    pub qemu_img: PathBuf,
    /// User and group (numbers) that volumes belong to when we are root: QEMU's. Without it libvirt has to change the
    /// owner at each start.
    pub volume_owner: Option<(u32, u32)>,
    /// How long one run of a tool may take.
    pub tool_timeout: Duration,
}

impl FilePoolConfig {
    /// A pool in a directory, all else by default: tools and volumes belong to ourselves, two minutes for a tool.
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
