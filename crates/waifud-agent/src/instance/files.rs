//! Files of guests outside of pools: the console's log and socket, the screen's socket, and the disk with documents.
//!
//! ```text
//! STATE/instances/ID/            0711  root's: virtlogd writes the log, QEMU opens the seed by its name
//! STATE/instances/ID/console.log 0600  root's
//! STATE/instances/ID/cidata.iso  0600  QEMU's user's; written beside, then renamed
//! RUN/console/ID                       the console's socket, in a directory that only root enters
//! RUN/vnc/ID                           the screen's socket, in a directory of QEMU's user
//! ```

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::{getegid, geteuid};
use tokio::sync::Mutex;
use waifud_types::InstanceId;

use crate::{blocking, plain_file};

/// How many instances' files may be changed at a time.
const LOCKS: usize = 16;

/// The name of the disk with documents.
const SEED: &str = "cidata.iso";

/// Knows and makes the places of guests' files.
///
/// QEMU runs as a less trusted user. The directories that root works in belong to root: that user finds a file there
/// by its name and makes, renames and removes none. The one directory that it owns is that of its screens' sockets,
/// and root does no more there than remove an entry.
#[derive(Clone, Debug)]
pub struct Files {
    places: Places,
    /// Each held by a change of an instance's files until it ends, so that one whose caller went away can't come after
    /// a later one.
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
    /// Below these two directories, which exist and belong to root. `owner` is who QEMU runs as.
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

    /// The console's log.
    pub fn console_log(&self, id: InstanceId) -> PathBuf {
        self.places.directory(id).join("console.log")
    }

    /// The disk with its documents, where it reads them from one.
    pub fn seed(&self, id: InstanceId) -> PathBuf {
        self.places.seed(id)
    }

    /// The screen's socket, which QEMU makes. Short: Linux allows 107 bytes.
    pub fn vnc_socket(&self, id: InstanceId) -> PathBuf {
        self.places.vnc_socket(id)
    }

    /// The console's socket, which libvirt makes as root. Short: Linux allows 107 bytes.
    pub fn console_socket(&self, id: InstanceId) -> PathBuf {
        self.places.console_socket(id)
    }

    /// Takes over the directories that an older version gave to QEMU's user, without following what that user left
    /// there. What can't be taken over now is tried again before its guest is started.
    pub fn take_over(&self) -> io::Result<()> {
        self.places.take_over()
    }

    /// Ensures that the disk with its documents has these bytes, which only QEMU's user and root may read. A running
    /// guest keeps what it started with: the file takes the place of the old one.
    pub async fn ensure_seed(&self, id: InstanceId, bytes: Vec<u8>) -> io::Result<()> {
        self.change(id, move |places| places.ensure_seed(id, &bytes))
            .await
    }

    /// Ensures that there is no disk with its documents.
    pub async fn ensure_no_seed(&self, id: InstanceId) -> io::Result<()> {
        self.change(id, move |places| remove(&places.seed(id)))
            .await
    }

    /// Whether there is a disk with its documents.
    pub async fn has_seed(&self, id: InstanceId) -> bool {
        self.look(move |places| is_there(&places.seed(id))).await
    }

    /// Makes the directories of the instance's files and sockets.
    pub async fn ensure(&self, id: InstanceId) -> io::Result<()> {
        self.change(id, move |places| places.ensure(id)).await
    }

    /// Whether anything of the instance is there.
    pub async fn exist(&self, id: InstanceId) -> bool {
        self.look(move |places| places.of(id).iter().any(|path| is_there(path)))
            .await
    }

    /// Removes what there is of the instance.
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

    /// What can't be looked at is taken for there.
    async fn look(&self, look: impl FnOnce(&Places) -> bool + Send + 'static) -> bool {
        let places = self.places.clone();
        blocking::on_a_thread(move || Ok(look(&places)))
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

    /// All that is the instance's.
    fn of(&self, id: InstanceId) -> [PathBuf; 4] {
        // Where an older version had the console's socket.
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
            self.take_over_entry(&entry?.path())?;
        }
        Ok(())
    }

    fn take_over(&self) -> io::Result<()> {
        let instances = self.instances();
        if !is_there(&instances) {
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

    /// Keeps a regular file with one name, as root's unless it is the seed. Its directory is root's by now, so what is
    /// looked at is what is removed.
    fn take_over_entry(&self, path: &Path) -> io::Result<()> {
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
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(bytes)?;
        if let Some((user, group)) = self.owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.sync_all()?;
        std::fs::rename(&unfinished, &path)
    }

    /// Whether the seed is there as it should be. Its owner can change what is in it.
    fn seed_is(&self, path: &Path, bytes: &[u8]) -> bool {
        let limit = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let is_owner = |user: u32| self.owner.is_none_or(|(owner, _)| owner == user);
        std::fs::symlink_metadata(path).is_ok_and(|facts| is_owner(facts.uid()))
            && plain_file::read(path, limit).is_ok_and(|old| old == bytes)
    }
}

/// Whether there is an entry of that name, whatever it is.
fn is_there(path: &Path) -> bool {
    !matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Removes an entry, whatever it is. A link goes itself, not what it leads to.
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

/// Makes a directory of our own, or makes one our own that an older version gave to QEMU's user. The directory above it
/// is ours.
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

/// Makes a directory in one of ours that only QEMU's user and root may enter.
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

    fn files(root: &Path) -> Files {
        let own = (geteuid().as_raw(), getegid().as_raw());
        Files::new(root.to_owned(), root.to_owned(), Some(own))
    }

    #[tokio::test]
    async fn a_seed_is_replaced_whole_and_goes_with_its_guest() {
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
    async fn whatever_lies_in_the_place_of_a_file_or_socket_is_removed_with_its_guest() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("kept");
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
    async fn a_change_whose_caller_went_away_does_not_come_after_a_later_one() {
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
    fn a_directory_that_a_crash_left_with_another_mode_gets_its_own() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("guest");
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
