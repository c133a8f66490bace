//! What a power cut leaves on the disks of a node: only what was synced.
//!
//! The program defines `fsync` and `fdatasync` itself. Besides syncing, they remember the content of the file, or the entries of
//! the directory. After a power cut, a directory has the entries that it had when it was last synced, and a file the content that
//! it had when it was last synced. That is the strictest disk that POSIX allows; most real ones keep more.

use std::collections::BTreeMap;
use std::ffi::{OsString, c_int};
use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::libc;
use waifud_kit::sync::lock;

/// What is on the disks below `root`, as far as it was synced.
struct Synced {
    root: PathBuf,
    /// The contents by inode number.
    files: BTreeMap<u64, Vec<u8>>,
    directories: BTreeMap<PathBuf, BTreeMap<OsString, Entry>>,
}

/// An entry of a directory.
#[derive(Clone, Copy)]
enum Entry {
    Directory,
    /// A file with this inode number.
    File(u64),
}

static SYNCED: Mutex<Option<Synced>> = Mutex::new(None);

/// Begins to remember what is synced below this directory.
pub fn watch(root: &Path) {
    *lock(&SYNCED) = Some(Synced {
        root: root.to_owned(),
        files: BTreeMap::new(),
        directories: BTreeMap::new(),
    });
}

/// Makes a directory what it would be after a power cut. The directory itself remains.
pub fn lose_unsynced(directory: &Path) -> io::Result<()> {
    let mut synced = lock(&SYNCED);
    let Some(synced) = synced.as_mut() else {
        return Ok(());
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    let former = synced.take_below(directory);
    synced.restore(&former, directory)
}

/// The disk below this directory is lost, with what was synced.
pub fn forget(directory: &Path) {
    if let Some(synced) = lock(&SYNCED).as_mut() {
        let _lost = synced.take_below(directory);
    }
}

/// What a file below `directory` would contain after a power cut; `None` if it would not exist.
pub fn content_after_power_cut(directory: &Path, file: &Path) -> Option<Vec<u8>> {
    let synced = lock(&SYNCED);
    let synced = synced.as_ref()?;
    let mut at = directory.to_owned();
    let mut found = Entry::Directory;
    for name in file.strip_prefix(directory).ok()? {
        found = *synced.directories.get(&at)?.get(name)?;
        at.push(name);
    }
    match found {
        Entry::Directory => None,
        Entry::File(inode) => Some(synced.files.get(&inode).cloned().unwrap_or_default()),
    }
}

impl Synced {
    /// Forgets what is below a directory, and returns it.
    fn take_below(&mut self, directory: &Path) -> Self {
        let below = |path: &PathBuf| path.starts_with(directory);
        let all = std::mem::take(&mut self.directories).into_iter();
        let (taken, kept) = all.partition(|(path, _)| below(path));
        self.directories = kept;
        let mut former = Self {
            root: directory.to_owned(),
            files: BTreeMap::new(),
            directories: taken,
        };
        for entry in former.directories.values().flat_map(BTreeMap::values) {
            if let Entry::File(inode) = entry
                && let Some(content) = self.files.remove(inode)
            {
                former.files.insert(*inode, content);
            }
        }
        former
    }

    /// Creates a directory's entries again. They are on the disk, under their new inode numbers.
    fn restore(&mut self, former: &Self, directory: &Path) -> io::Result<()> {
        let Some(entries) = former.directories.get(directory) else {
            return Ok(());
        };
        let mut restored = BTreeMap::new();
        for (name, entry) in entries {
            let path = directory.join(name);
            let again = match entry {
                Entry::Directory => {
                    fs::create_dir(&path)?;
                    self.restore(former, &path)?;
                    Entry::Directory
                }
                Entry::File(inode) => {
                    let content = former.files.get(inode).cloned().unwrap_or_default();
                    fs::write(&path, &content)?;
                    let inode = fs::metadata(&path)?.ino();
                    self.files.insert(inode, content);
                    Entry::File(inode)
                }
            };
            restored.insert(name.clone(), again);
        }
        self.directories.insert(directory.to_owned(), restored);
        Ok(())
    }

    /// Remembers what an open file or directory contains. What cannot be read counts as not synced.
    fn remember(&mut self, file: c_int) {
        let Ok(path) = fs::read_link(format!("/proc/self/fd/{file}")) else {
            return;
        };
        if !path.starts_with(&self.root) {
            return;
        }
        let Ok(facts) = fs::metadata(&path) else {
            return;
        };
        if facts.is_file() {
            if let Ok(content) = fs::read(&path) {
                self.files.insert(facts.ino(), content);
            }
        } else if let Ok(entries) = fs::read_dir(&path) {
            let entries = entries.flatten().filter_map(|entry| {
                let kind = if entry.file_type().ok()?.is_dir() {
                    Entry::Directory
                } else {
                    Entry::File(entry.ino())
                };
                Some((entry.file_name(), kind))
            });
            let entries = entries.collect();
            self.directories.insert(path, entries);
        }
    }
}

fn remember(file: c_int) {
    if let Some(synced) = lock(&SYNCED).as_mut() {
        synced.remember(file);
    }
}

/// Takes the place of the C library's function in this program.
// SAFETY: the name and the signature are those of the C library's function, and the body does what it does.
#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    // SAFETY: the system call takes any number, and fails if it is not an open file.
    let result = unsafe { libc::syscall(libc::SYS_fsync, file) };
    if result == 0 {
        remember(file);
    }
    c_int::try_from(result).unwrap_or(-1)
}

/// Takes the place of the C library's function in this program.
// SAFETY: the name and the signature are those of the C library's function, and the body does what it does.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    // SAFETY: the system call takes any number, and fails if it is not an open file.
    let result = unsafe { libc::syscall(libc::SYS_fdatasync, file) };
    if result == 0 {
        remember(file);
    }
    c_int::try_from(result).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// The tests share what is remembered.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn sync(path: &Path) {
        File::open(path).unwrap().sync_all().unwrap();
    }

    #[test]
    fn a_power_cut_keeps_synced_contents_under_synced_names_only() {
        let _alone = lock(&ONE_AT_A_TIME);
        let root = tempfile::tempdir().unwrap();
        watch(root.path());
        let at = |name: &str| root.path().join(name);
        fs::write(at("kept"), "first").unwrap();
        fs::create_dir(at("directory")).unwrap();
        sync(&at("kept"));
        fs::write(at("unnamed"), "synced").unwrap();
        sync(root.path());
        // From here on, the names are not synced.
        fs::write(at("kept"), "second").unwrap();
        fs::rename(at("unnamed"), at("renamed")).unwrap();
        fs::write(at("directory/file"), "lost").unwrap();
        sync(&at("directory/file"));
        lose_unsynced(root.path()).unwrap();
        assert_eq!(fs::read_to_string(at("kept")).unwrap(), "first");
        assert_eq!(fs::read_to_string(at("unnamed")).unwrap(), "");
        assert!(!at("renamed").exists());
        assert!(at("directory").is_dir() && !at("directory/file").exists());
        assert_eq!(
            content_after_power_cut(root.path(), &at("kept")).unwrap(),
            b"first"
        );
        assert_eq!(content_after_power_cut(root.path(), &at("renamed")), None);
        // A removal is not synced either.
        fs::remove_file(at("kept")).unwrap();
        lose_unsynced(root.path()).unwrap();
        assert!(at("kept").exists());
        fs::remove_file(at("kept")).unwrap();
        sync(root.path());
        lose_unsynced(root.path()).unwrap();
        assert!(!at("kept").exists());
    }

    #[test]
    fn what_survived_a_power_cut_survives_the_next_one() {
        let _alone = lock(&ONE_AT_A_TIME);
        let root = tempfile::tempdir().unwrap();
        watch(root.path());
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("directory")).unwrap();
        for file in ["kept", "directory/kept"] {
            fs::write(at(file), file).unwrap();
            sync(&at(file));
        }
        sync(&at("directory"));
        sync(root.path());
        lose_unsynced(root.path()).unwrap();
        // Another file is replaced durably, which syncs the directory with the restored file.
        fs::write(at("directory/other"), "other").unwrap();
        sync(&at("directory/other"));
        sync(&at("directory"));
        for _ in 0..2 {
            lose_unsynced(root.path()).unwrap();
            for (file, content) in [
                ("kept", "kept"),
                ("directory/kept", "directory/kept"),
                ("directory/other", "other"),
            ] {
                assert_eq!(fs::read_to_string(at(file)).unwrap(), content, "{file}");
            }
        }
    }
}
