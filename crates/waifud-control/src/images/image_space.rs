//! The free space that images may use.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use waifud_types::ByteSize;

use crate::env::Disk;

/// The free space that images leave to the database.
const DATABASE_RESERVE: ByteSize = ByteSize::mib(64);

/// The free space for images.
#[derive(Clone, Debug)]
pub(crate) struct ImageSpace {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl ImageSpace {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self { disk, dir }
    }

    /// Fails like a full disk if `more` bytes would leave too little space. A filesystem that cannot be measured passes.
    pub(crate) fn check(&self, more: u64) -> io::Result<()> {
        let Ok(disk_space) = self.disk.disk_space(&self.dir) else {
            return Ok(());
        };
        if disk_space.free.bytes() < more.saturating_add(DATABASE_RESERVE.bytes()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}
