//! Files of guests outside pools: the console's log and socket, the screen's socket, and the disk with documents.
//!
//! ```text
//! STATE/instances/ID/            0711  owned by root: virtlogd writes the log, QEMU opens the seed by name
//! STATE/instances/ID/console.log 0600  owned by root
//! STATE/instances/ID/cidata.iso  0600  owned by QEMU's user; written to a temporary file, then renamed
//! RUN/console/ID                       the console's socket, in a directory that only root can enter
//! RUN/vnc/ID                           the screen's socket, in a directory owned by QEMU's user
//! ```

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::{getegid, geteuid};
use tokio::sync::Mutex;
use waifud_types::InstanceId;

use crate::{blocking, plain_file};

/// The number of locks: how many instances' files can be changed at a time.
const LOCKS: usize = 16;

/// The name of the disk with documents.
const SEED: &str = "cidata.iso";

/// Creates and removes the files of guests.
///
/// QEMU runs as a less trusted user. The directories that root works in belong to root: QEMU's user can open a file there
/// by name, but cannot create, rename or remove one. It only owns the directory of the screen sockets, where root does
/// nothing but remove entries.
#[derive(Clone, Debug)]
pub struct Files {
    places: Places,
    /// A change of an instance's files holds its lock to the end, so that a change whose caller went away cannot follow a
    /// later one.
    locks: Arc<[Arc<Mutex<()>>; LOCKS]>,
}

/// Where the files are, and the blocking access to them.
#[derive(Clone, Debug)]
struct Places {
    state_dir: PathBuf,
    run_dir: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Files {
    /// Both directories must exist and belong to root. `owner` is the user and group of QEMU.
    pub fn new(state_dir: PathBuf, run_dir: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self {
            places: Places {
                state_dir,
                run_dir,
                owner,
            },
            locks: Arc::new(std::array::from_fn(|_| Arc::default())),
        }
    }

    pub fn console_log(&self, id: InstanceId) -> PathBuf {
        self.places.directory(id).join("console.log")
    }

    /// The disk with its documents.
    pub fn seed(&self, id: InstanceId) -> PathBuf {
        self.places.seed(id)
    }

    /// The screen's socket, created by QEMU. The path is short because Linux allows 107 bytes.
    pub fn vnc_socket(&self, id: InstanceId) -> PathBuf {
        self.places.vnc_socket(id)
    }

    /// The console's socket, created by libvirt as root. The path is short because Linux allows 107 bytes.
    pub fn console_socket(&self, id: InstanceId) -> PathBuf {
        self.places.console_socket(id)
    }

    /// Changes the owner of directories that an older version gave to QEMU's user, without following links that the user
    /// may have left there. Failures are retried before the guest is started.
    pub fn secure_directories(&self) -> io::Result<()> {
        self.places.secure_directories()
    }

    /// Ensures that the disk with its documents has these bytes, readable by QEMU's user and root only. A running guest
    /// keeps the file that it started with, because the new one replaces it by a rename.
    pub async fn ensure_seed(&self, id: InstanceId, bytes: Vec<u8>) -> io::Result<()> {
        self.change(id, move |places| places.ensure_seed(id, &bytes))
            .await
    }

    /// Ensures that the disk with its documents does not exist.
    pub async fn ensure_no_seed(&self, id: InstanceId) -> io::Result<()> {
        self.change(id, move |places| remove(&places.seed(id)))
            .await
    }

    /// Whether the disk with its documents exists.
    pub async fn has_seed(&self, id: InstanceId) -> bool {
        self.check(move |places| exists(&places.seed(id))).await
    }

    /// Creates the directories of the instance's files and sockets.
    pub async fn ensure(&self, id: InstanceId) -> io::Result<()> {
        self.change(id, move |places| places.ensure(id)).await
    }

    /// Whether any file of the instance exists.
    pub async fn exist(&self, id: InstanceId) -> bool {
        self.check(move |places| places.of(id).iter().any(|path| exists(path)))
            .await
    }

    /// Removes every file of the instance.
    pub async fn ensure_absent(&self, id: InstanceId) -> io::Result<()> {
        self.change(id, move |places| {
            places.of(id).iter().try_for_each(|path| remove(path))
        })
        .await
    }

    async fn change<T: Send + 'static>(
        &self,
        id: InstanceId,
        change: impl FnOnce(&Places) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let index = usize::from(id.as_uuid().as_bytes()[15]) % LOCKS;
        let lock = self.locks.get(index).cloned().unwrap_or_default();
        let held = lock.lock_owned().await;
        let places = self.places.clone();
        blocking::on_a_thread(move || {
            let _held = held;
            change(&places)
        })
        .await
    }

    /// If the check fails, the file counts as existing.
    async fn check(&self, check: impl FnOnce(&Places) -> bool + Send + 'static) -> bool {
        let places = self.places.clone();
        blocking::on_a_thread(move || Ok(check(&places)))
            .await
            .unwrap_or(true)
    }
}

impl Places {
    fn instances(&self) -> PathBuf {
        self.state_dir.join("instances")
    }

    fn directory(&self, id: InstanceId) -> PathBuf {
        self.instances().join(id.to_string())
    }

    fn seed(&self, id: InstanceId) -> PathBuf {
        self.directory(id).join(SEED)
    }

    fn screens(&self) -> PathBuf {
        self.run_dir.join("vnc")
    }

    fn consoles(&self) -> PathBuf {
        self.run_dir.join("console")
    }

    fn vnc_socket(&self, id: InstanceId) -> PathBuf {
        self.screens().join(id.as_uuid().simple().to_string())
    }

    fn console_socket(&self, id: InstanceId) -> PathBuf {
        self.consoles().join(id.as_uuid().simple().to_string())
    }

    /// Every path of the instance.
    fn of(&self, id: InstanceId) -> [PathBuf; 4] {
        // The console's socket of an older version.
        let former = self
            .screens()
            .join(format!("{}.console", id.as_uuid().simple()));
        [
            self.directory(id),
            self.vnc_socket(id),
            self.console_socket(id),
            former,
        ]
    }

    fn ensure(&self, id: InstanceId) -> io::Result<()> {
        own_dir(&self.instances(), 0o711)?;
        self.ensure_directory(&self.directory(id))?;
        own_dir(&self.consoles(), 0o700)?;
        give_dir(&self.screens(), self.owner)
    }

    fn ensure_directory(&self, path: &Path) -> io::Result<()> {
        own_dir(path, 0o711)?;
        for entry in std::fs::read_dir(path)? {
            self.secure_entry(&entry?.path())?;
        }
        Ok(())
    }

    fn secure_directories(&self) -> io::Result<()> {
        let instances = self.instances();
        if !exists(&instances) {
            return Ok(());
        }
        own_dir(&instances, 0o711)?;
        let mut first_error = None;
        for entry in std::fs::read_dir(&instances)? {
            let path = entry?.path();
            if let Err(error) = self.ensure_directory(&path) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Keeps a regular file with one name and gives it to root, unless it is the seed; removes anything else. The directory
    /// belongs to root by now, so the file that is checked is the one that is removed.
    fn secure_entry(&self, path: &Path) -> io::Result<()> {
        let facts = match std::fs::symlink_metadata(path) {
            // virtlogd renames full logs.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if !facts.is_file() || facts.nlink() != 1 {
            tracing::warn!(path = %path.display(), "removing an unexpected file from a guest's directory");
            return remove(path);
        }
        let is_seed = path.file_name().is_some_and(|name| name == SEED);
        let seed_owner = self.owner.map(|(user, _)| user);
        let ours = facts.uid() == geteuid().as_raw();
        if ours || is_seed && seed_owner.is_none_or(|user| user == facts.uid()) {
            return Ok(());
        }
        let file = plain_file::open(path)?;
        fchown(&file, Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
        file.set_permissions(Permissions::from_mode(0o600))
    }

    fn ensure_seed(&self, id: InstanceId, bytes: &[u8]) -> io::Result<()> {
        self.ensure(id)?;
        let path = self.seed(id);
        if self.seed_is(&path, bytes) {
            return Ok(());
        }
        let unfinished = path.with_extension("new");
        remove(&unfinished)?;
        waifud_kit::durable::Replacement::of(&path)
            .draft(unfinished)
            .owner(self.owner)
            .write(bytes)
    }

    /// Whether the seed is as it should be. Its owner can change its content.
    fn seed_is(&self, path: &Path, bytes: &[u8]) -> bool {
        let limit = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let is_owner = |user: u32| self.owner.is_none_or(|(owner, _)| owner == user);
        std::fs::symlink_metadata(path).is_ok_and(|facts| is_owner(facts.uid()))
            && plain_file::read(path, limit).is_ok_and(|old| old == bytes)
    }
}

/// Whether an entry of any type exists.
fn exists(path: &Path) -> bool {
    !matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Removes an entry of any type. A link itself is removed, not its target.
fn remove(path: &Path) -> io::Result<()> {
    let outcome = match std::fs::symlink_metadata(path) {
        Ok(facts) if facts.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}

/// Creates a directory owned by root, or takes over one that an older version gave to QEMU's user. Its parent must belong
/// to root.
fn own_dir(path: &Path, mode: u32) -> io::Result<()> {
    make_dir(path)?;
    let dir = open_dir(path)?;
    let facts = dir.metadata()?;
    if facts.uid() != geteuid().as_raw() {
        fchown(&dir, Some(geteuid().as_raw()), Some(getegid().as_raw()))?;
    }
    if facts.mode() & 0o7777 != mode {
        dir.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Creates a directory that only QEMU's user and root may enter. Its parent must belong to root.
fn give_dir(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    make_dir(path)?;
    let dir = open_dir(path)?;
    let facts = dir.metadata()?;
    if let Some((user, group)) = owner
        && (facts.uid(), facts.gid()) != (user, group)
    {
        fchown(&dir, Some(user), Some(group))?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_kit::testing::temp_path;

    fn files(root: &Path) -> Files {
        let own = (geteuid().as_raw(), getegid().as_raw());
        Files::new(root.to_owned(), root.to_owned(), Some(own))
    }

    #[tokio::test]
    async fn a_seed_is_replaced_atomically_and_removed_with_its_guest() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        let id = InstanceId::generate();
        files.ensure_seed(id, b"one".to_vec()).await.unwrap();
        // As a crash between writing and renaming leaves it.
        std::fs::write(files.seed(id).with_extension("new"), b"half").unwrap();
        let before = files.seed(id).metadata().unwrap();
        files.ensure_seed(id, b"one".to_vec()).await.unwrap();
        assert_eq!(
            files.seed(id).metadata().unwrap().ino(),
            before.ino(),
            "written for nothing"
        );
        files.ensure_seed(id, b"two".to_vec()).await.unwrap();
        let after = files.seed(id).metadata().unwrap();
        assert_eq!(std::fs::read(files.seed(id)).unwrap(), b"two");
        assert_ne!(
            after.ino(),
            before.ino(),
            "a running guest's disk was changed under it"
        );
        assert_eq!(after.permissions().mode() & 0o777, 0o600);
        files.ensure_absent(id).await.unwrap();
        assert!(!files.exist(id).await);
    }

    #[tokio::test]
    async fn anything_in_the_place_of_a_file_or_socket_is_removed_with_its_guest() {
        let (root, kept) = temp_path("kept");
        std::fs::write(&kept, "kept").unwrap();
        let files = files(root.path());
        let id = InstanceId::generate();
        files.ensure(id).await.unwrap();
        std::os::unix::fs::symlink("/dev/zero", files.seed(id)).unwrap();
        std::os::unix::fs::symlink(root.path().join("nowhere"), files.vnc_socket(id)).unwrap();
        let former = root
            .path()
            .join(format!("vnc/{}.console", id.as_uuid().simple()));
        std::fs::create_dir(&former).unwrap();
        std::os::unix::fs::symlink(&kept, former.join("link")).unwrap();
        files.ensure_seed(id, b"seed".to_vec()).await.unwrap();
        assert_eq!(std::fs::read(files.seed(id)).unwrap(), b"seed");
        assert!(files.exist(id).await);
        files.ensure_absent(id).await.unwrap();
        assert!(!files.exist(id).await && !former.exists());
        assert_eq!(std::fs::read(&kept).unwrap(), b"kept");
    }

    #[tokio::test]
    async fn a_change_whose_caller_went_away_does_not_follow_a_later_one() {
        let root = tempfile::tempdir().unwrap();
        let files = files(root.path());
        let id = InstanceId::generate();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let slow = tokio::spawn({
            let files = files.clone();
            async move {
                let change = move |places: &Places| {
                    begun.send(()).ok();
                    held.recv().ok();
                    places.ensure_seed(id, b"late")
                };
                files.change(id, change).await
            }
        });
        blocking::on_a_thread(move || has_begun.recv().map_err(io::Error::other))
            .await
            .unwrap();
        slow.abort();
        assert!(slow.await.unwrap_err().is_cancelled());
        let removed = files.ensure_absent(id);
        release.send(()).unwrap();
        removed.await.unwrap();
        assert!(!files.exist(id).await);
    }

    #[test]
    fn a_directory_left_with_another_mode_by_a_crash_is_corrected() {
        let (root, path) = temp_path("guest");
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        for _ in 0..2 {
            own_dir(&path, 0o711).unwrap();
        }
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o711);
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(root.path(), &path).unwrap();
        assert!(own_dir(&path, 0o711).is_err(), "a link was followed");
    }
}
