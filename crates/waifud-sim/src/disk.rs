//! What a power cut leaves on the disks of a node: only what was synced.
//!
//! The program defines `fsync` and `fdatasync` itself. Besides syncing, they remember the content of the file, or the entries of
//! the directory. After a power cut, a directory has the entries that it had when it was last synced, and a file the content that
//! it had when it was last synced. That is the strictest disk that POSIX allows; most real ones keep more.

use std::collections::BTreeMap;
use std::ffi::{OsString, c_int};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
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
    let synced = lock(&SYNCED);
    let Some(synced) = synced.as_ref() else {
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
    synced.restore(directory)
}

impl Synced {
    fn restore(&self, directory: &Path) -> io::Result<()> {
        for (name, entry) in self.directories.get(directory).into_iter().flatten() {
            let path = directory.join(name);
            match entry {
                Entry::Directory => {
                    fs::create_dir(&path)?;
                    self.restore(&path)?;
                }
                Entry::File(inode) => {
                    fs::write(&path, self.files.get(inode).map_or(&[][..], Vec::as_slice))?;
                }
            }
        }
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
                let facts = entry.metadata().ok()?;
                let kind = if facts.is_dir() {
                    Entry::Directory
                } else {
                    Entry::File(facts.ino())
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

    fn sync(path: &Path) {
        File::open(path).unwrap().sync_all().unwrap();
    }

    #[test]
    fn a_power_cut_keeps_synced_contents_under_synced_names_only() {
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
        // A removal is not synced either.
        fs::remove_file(at("kept")).unwrap();
        lose_unsynced(root.path()).unwrap();
        assert!(at("kept").exists());
        fs::remove_file(at("kept")).unwrap();
        sync(root.path());
        lose_unsynced(root.path()).unwrap();
        assert!(!at("kept").exists());
    }
}
