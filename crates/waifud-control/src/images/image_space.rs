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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use waifud_types::DiskSpace;

    use super::*;

    /// A disk with this much free space.
    #[derive(Debug)]
    struct Free(ByteSize);

    impl Disk for Free {
        fn disk_space(&self, _: &Path) -> io::Result<DiskSpace> {
            Ok(DiskSpace {
                size: ByteSize::gib(100),
                free: self.0,
            })
        }
    }

    #[test]
    fn an_image_needs_64_mib_more_than_its_size() {
        let guide = include_str!("../../../../docs/guides/troubleshooting.md");
        assert!(guide.contains("| less than the size of an image plus 64 MiB |"));
        let needed = ByteSize::mib(40);
        let check = |free| ImageSpace::new(Arc::new(Free(free)), "/".into()).check(needed.bytes());
        check(ByteSize::mib(104)).unwrap();
        for free in [ByteSize(ByteSize::mib(104).bytes() - 1), ByteSize::mib(40)] {
            let refused = check(free).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::StorageFull, "{free}");
        }
    }
}
