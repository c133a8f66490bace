//! The directories of a pool, and how a file is added: written under a temporary name, synced, then renamed.
//!
//! ```text
//! images/<64 hex digits>.SUFFIX      0444  complete and verified; the name is the digest of the published bytes
//! images/<64 hex digits>.qcow2       0444  in pools of raw files: the published bytes, to send them to other nodes
//! images/.new-<64 hex digits>        0600  unfinished; removed when the pool is opened
//! staging/<64 hex digits>.part       0600  a download, possibly incomplete; removed after a week without progress
//! volumes/<instance>.<disk>.SUFFIX   0600  an overlay (`.qcow2`) or a clone (`.raw`) of an image
//! volumes/.new-<instance>.<disk>     0600  unfinished; removed when the pool is opened
//! volumes/.incoming-<instance>.<disk> 0600 a volume that is being received from another node, in the format of its pool
//! ```
//!
//! A file under its final name is complete, because it is renamed last.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use waifud_kit::{durable, filesystem};
use waifud_types::{ByteSize, Digest, DiskFormat, Name, VolumeId};

use crate::{FilePoolConfig, PoolUsage, StorageError};

const UNFINISHED: &str = ".new-";
const INCOMING: &str = ".incoming-";
/// A download without progress for this long is removed.
const STALE: Duration = Duration::from_hours(7 * 24);

/// The directories of one pool.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(crate) pool: Name,
    root: PathBuf,
    /// The format of images and volumes, whose name is the ending of their names.
    format: DiskFormat,
    /// The user and group ids that new volumes belong to, if they differ from ours.
    pub(crate) owner: Option<(u32, u32)>,
}

impl Layout {
    /// Creates missing directories and removes unfinished files.
    ///
    /// QEMU's user can open files in `images` and `volumes` by their names, but cannot list the directories. Only the
    /// owner can enter `staging`.
    pub(crate) fn open(config: &FilePoolConfig, format: DiskFormat) -> Result<Self, StorageError> {
        let root = &config.path;
        let mut layout = Self {
            pool: config.name.clone(),
            root: root.clone(),
            format,
            owner: config.volume_owner.filter(|_| geteuid().is_root()),
        };
        layout.open_root()?;
        layout.check_owner(&layout.root)?;
        for (directory, mode) in [
            (layout.images(), 0o711),
            (layout.staging(), 0o700),
            (layout.volumes(), 0o711),
        ] {
            fs::create_dir_all(&directory)
                .and_then(|()| fs::set_permissions(&directory, Permissions::from_mode(mode)))
                .map_err(|error| layout.io("create the directory", &directory, error))?;
            layout.check_owner(&directory)?;
        }
        layout.root = fs::canonicalize(root).map_err(|e| layout.io("resolve", root, e))?;
        for directory in [layout.images(), layout.volumes()] {
            for name in layout.names(&directory)? {
                if name.starts_with(UNFINISHED) {
                    layout.remove(&directory.join(name))?;
                }
            }
        }
        layout.remove_converted()?;
        for name in layout.names(&layout.staging())? {
            let path = layout.staging().join(name);
            let age = path.metadata().and_then(|metadata| metadata.modified());
            // If the clock was wrong, the age is unknown and the file stays.
            if age.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > STALE)) {
                layout.remove(&path)?;
            }
        }
        Ok(layout)
    }

    /// Removes received files that were converted to volumes before a crash.
    fn remove_converted(&self) -> Result<(), StorageError> {
        for id in self.incoming_files()? {
            if self.exists(&self.volume(&id))? {
                self.remove(&self.incoming(&id))?;
            }
        }
        Ok(())
    }

    /// A directory with contents keeps its mode, because it may be used for other purposes too, except that QEMU's user
    /// must be able to enter it.
    fn open_root(&self) -> Result<(), StorageError> {
        let open = || {
            fs::create_dir_all(&self.root)?;
            let used = fs::read_dir(&self.root)?.next().is_some();
            let before = fs::metadata(&self.root)?.permissions().mode() & 0o7777;
            let mode = if used { before | 0o011 } else { 0o711 };
            if mode == before {
                return Ok(());
            }
            fs::set_permissions(&self.root, Permissions::from_mode(mode))
        };
        open().map_err(|error: io::Error| self.io("create the directory", &self.root, error))
    }

    /// Root opens files in these directories by name. If another user could create links in them, root would write to
    /// the targets of the links and change their owner.
    fn check_owner(&self, directory: &Path) -> Result<(), StorageError> {
        let check = || {
            // A link that root created, for example to another disk, is allowed.
            let link = fs::symlink_metadata(directory)?;
            let metadata = fs::metadata(directory)?;
            let trusted = |user: u32| user == 0 || user == geteuid().as_raw();
            let untrusted = [link.uid(), metadata.uid()]
                .into_iter()
                .find(|user| !trusted(*user));
            match untrusted {
                Some(user) => Err(io::Error::other(format!(
                    "it is owned by user {user}, who could replace it with a link to other files; change its owner to root (chown root:root)"
                ))),
                None if metadata.permissions().mode() & 0o1002 == 0o002 => Err(io::Error::other(
                    "every user can write to it; remove that permission (chmod o-w)",
                )),
                None => Ok(()),
            }
        };
        check().map_err(|error| self.io("use the directory", directory, error))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    pub(crate) fn image(&self, image: Digest) -> PathBuf {
        self.images()
            .join(format!("{}.{}", image.hex(), self.format))
    }

    /// The path of the image's published bytes: the image itself in pools of qcow2 files.
    pub(crate) fn published(&self, image: Digest) -> PathBuf {
        let name = format!("{}.{}", image.hex(), DiskFormat::Qcow2);
        self.images().join(name)
    }

    /// The path of an image that must be in the pool.
    pub(crate) fn existing_image(&self, image: Digest) -> Result<PathBuf, StorageError> {
        let path = self.image(image);
        if self.exists(&path)? {
            Ok(path)
        } else {
            Err(StorageError::NoImage(image))
        }
    }

    pub(crate) fn staged(&self, image: Digest) -> PathBuf {
        self.staging().join(format!("{}.part", image.hex()))
    }

    pub(crate) fn volume(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{id}.{}", self.format))
    }

    /// The temporary path of an unfinished image.
    pub(crate) fn unfinished_image(&self, image: Digest) -> PathBuf {
        self.unfinished_file(&image.hex())
    }

    /// The temporary path of another unfinished file.
    pub(crate) fn unfinished_file(&self, name: &str) -> PathBuf {
        self.images().join(format!("{UNFINISHED}{name}"))
    }

    /// The temporary path of an unfinished volume.
    pub(crate) fn unfinished_volume(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(format!("{UNFINISHED}{id}"))
    }

    /// The name of a volume that is being received, in the directory of volumes.
    pub(crate) fn incoming_name(id: &VolumeId) -> String {
        format!("{INCOMING}{id}")
    }

    /// The path of a volume that is being received.
    pub(crate) fn incoming(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(Self::incoming_name(id))
    }

    /// The volumes that are being received.
    pub(crate) fn incoming_files(&self) -> Result<Vec<VolumeId>, StorageError> {
        let names = self.names(&self.volumes())?;
        let ids = names
            .iter()
            .filter_map(|name| name.strip_prefix(INCOMING)?.parse().ok());
        Ok(ids.collect())
    }

    /// Opens the file of a volume that is being received.
    pub(crate) fn open_incoming(&self, id: &VolumeId) -> Result<File, StorageError> {
        let path = self.incoming(id);
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
            .open(&path)
            .map_err(|error| self.io("open", &path, error))
    }

    /// Makes the received file a volume.
    pub(crate) fn complete_incoming(&self, id: &VolumeId) -> Result<(), StorageError> {
        let path = self.incoming(id);
        let file = self.open_regular(&path)?;
        let finish = || {
            if let Some((uid, gid)) = self.owner {
                fchown(&file, Some(uid), Some(gid))?;
            }
            file.sync_all()
        };
        finish().map_err(|error| self.io("sync", &path, error))?;
        self.rename(&path, &self.volume(id))
    }

    /// Whether the file exists. A failure to determine it is an error, not absence.
    pub(crate) fn exists(&self, path: &Path) -> Result<bool, StorageError> {
        path.try_exists()
            .map_err(|error| self.io("look for", path, error))
    }

    /// The path for a download. Makes the file of an interrupted import writable again.
    pub(crate) fn writable_staged(&self, image: Digest) -> Result<PathBuf, StorageError> {
        let path = self.staged(image);
        match fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.io("make writable", &path, error))
            }
            _ => Ok(path),
        }
    }

    /// Whether to keep a staged file whose import failed: a regular file that did not cause the failure.
    pub(crate) fn keeps_staged(&self, image: Digest, error: &StorageError) -> bool {
        let regular = self
            .staged(image)
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file());
        regular && !error.is_caused_by_image()
    }

    /// How full the filesystem is.
    pub(crate) fn usage(&self) -> Result<PoolUsage, StorageError> {
        let usage = filesystem::usage(&self.root)
            .map_err(|error| self.io("read the free space of", &self.root, error))?;
        Ok(PoolUsage {
            // Blocks that are reserved for root are not counted, because volumes may belong to another user.
            size: ByteSize(usage.used.saturating_add(usage.available)),
            used: ByteSize(usage.used),
            health: if usage.read_only {
                "the filesystem is mounted read-only".to_owned()
            } else {
                "ok".to_owned()
            },
        })
    }

    /// The name without its ending; `None` if it has another ending.
    fn stem<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_suffix(self.format.as_str())?.strip_suffix('.')
    }

    /// The id and path of every volume, from the file names. Other files are skipped.
    pub(crate) fn volume_files(&self) -> Result<Vec<(VolumeId, PathBuf)>, StorageError> {
        let directory = self.volumes();
        let names = self.names(&directory)?;
        let volume = |name: String| {
            let id = self.stem(&name)?.parse().ok()?;
            Some((id, directory.join(name)))
        };
        Ok(names.into_iter().filter_map(volume).collect())
    }

    /// The digest of every image, from the file names. Other files are skipped.
    pub(crate) fn image_files(&self) -> Result<Vec<Digest>, StorageError> {
        let image = |name: String| {
            let digest: Digest = self.stem(&name)?.parse().ok()?;
            name.starts_with(&digest.hex()).then_some(digest)
        };
        let names = self.names(&self.images())?;
        Ok(names.into_iter().filter_map(image).collect())
    }

    fn names(&self, directory: &Path) -> Result<Vec<String>, StorageError> {
        let list = || {
            fs::read_dir(directory)?
                .map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()))
                .collect::<io::Result<Vec<_>>>()
        };
        list().map_err(|error| self.io("list", directory, error))
    }

    /// Opens a regular file for reading. Fails for links, devices and directories.
    pub(crate) fn open_regular(&self, path: &Path) -> Result<File, StorageError> {
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
                .open(path)?;
            if file.metadata()?.is_file() {
                Ok(file)
            } else {
                Err(io::Error::other("it is not a regular file"))
            }
        };
        open().map_err(|error| self.io("open", path, error))
    }

    /// The first `at_most` bytes of a file, or fewer if it has fewer.
    pub(crate) fn head(&self, path: &Path, at_most: u64) -> Result<Vec<u8>, StorageError> {
        let mut bytes = Vec::new();
        self.open_regular(path)?
            .take(at_most)
            .read_to_end(&mut bytes)
            .map_err(|error| self.io("read", path, error))?;
        Ok(bytes)
    }

    /// Writes the file of a volume. Afterwards it is complete and durable, or does not exist.
    pub(crate) fn put_volume(&self, id: &VolumeId, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.volume(id);
        durable::Replacement::of(&path)
            .draft(self.unfinished_volume(id))
            .owner(self.owner)
            .write(bytes)
            .map_err(|error| self.io("write", &path, error))
    }

    /// Writes the unfinished file of a volume. It is not synced.
    pub(crate) fn write_unfinished_volume(
        &self,
        id: &VolumeId,
        bytes: &[u8],
    ) -> Result<(), StorageError> {
        let path = self.unfinished_volume(id);
        let write = || {
            let mut file = create_file(&path)?;
            if let Some((uid, gid)) = self.owner {
                fchown(&file, Some(uid), Some(gid))?;
            }
            file.write_all(bytes)
        };
        write().map_err(|error| self.io("write", &path, error))
    }

    /// Renames a file durably.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StorageError> {
        durable::rename(from, to).map_err(|error| self.io("rename a file to", to, error))
    }

    /// Removes a file durably. Succeeds if it does not exist.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), StorageError> {
        durable::remove(path).map_err(|error| self.io("remove", path, error))
    }

    /// An error of the filesystem. A full filesystem has its own variant.
    pub(crate) fn io(
        &self,
        operation: &'static str,
        path: &Path,
        source: io::Error,
    ) -> StorageError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.no_space(),
            _ => StorageError::Io {
                operation,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// The pool is full.
    pub(crate) fn no_space(&self) -> StorageError {
        StorageError::NoSpace {
            pool: self.pool.clone(),
        }
    }
}

/// Creates an empty file that only we can access. Replaces the contents of a file that a crash left.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(path)
}

/// Runs file operations on a thread for blocking work. They complete even if the caller is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(StorageError::Tool {
            tool: "a thread for file operations",
            message: error.to_string(),
        }),
    }
}
