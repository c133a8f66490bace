//! The cache: an image is a file named after the digest of its recipe, and is put there by a rename. Reading it needs
//! no lock. A build takes a lock, so that concurrent callers wait and then find the image.

use std::fs::{self, File, TryLockError};
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{BuiltImage, Guest, debian, hash, recipe, tiny};

/// See [`crate::build`].
pub fn build(guest: Guest, cache_dir: &Path, progress: &dyn Fn(&str)) -> Result<BuiltImage> {
    let started = Instant::now();
    fs::create_dir_all(cache_dir)
        .with_context(|| format!("cannot create {}", cache_dir.display()))?;
    let cache_dir = &fs::canonicalize(cache_dir)
        .with_context(|| format!("cannot resolve {}", cache_dir.display()))?;
    let path = cache_dir.join(recipe::file_name(guest));
    if path.exists() {
        return describe(&path, started, true);
    }

    let _lock = lock(guest, cache_dir, progress)?;
    if path.exists() {
        return describe(&path, started, true);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "building {guest} needs root (its files belong to the guest's users); nothing was changed"
    );
    let work = cache_dir.join(format!(".{guest}.work"));
    clear(&work)?;
    fs::create_dir(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let made = make(guest, &work, progress).and_then(|made| {
        File::open(&made)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&made, &path))
            .with_context(|| format!("cannot move the image to {}", path.display()))
    });
    let cleared = clear(&work);
    made.with_context(|| format!("{guest} could not be built"))?;
    cleared?;
    describe(&path, started, false)
}

fn make(guest: Guest, work: &Path, progress: &dyn Fn(&str)) -> Result<std::path::PathBuf> {
    let digest = recipe::digest(guest);
    match guest {
        Guest::DebianBookworm | Guest::DebianTrixie | Guest::DebianNode => {
            debian::make(guest, &digest, work, progress)
        }
        Guest::Tiny => tiny::make(&digest, work, progress),
    }
}

fn lock(guest: Guest, cache_dir: &Path, progress: &dyn Fn(&str)) -> Result<File> {
    let path = cache_dir.join(format!(".{guest}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            progress(&format!("waiting for another build of {guest}"));
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // The wait is bounded: all tools of the holder have time limits, and the lock ends with its holder.
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Removes the work directory of a finished or killed build. Refuses if something is mounted below it.
fn clear(work: &Path) -> Result<()> {
    if !work.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let inside = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|mount| Path::new(mount).starts_with(work));
    if inside {
        bail!(
            "something is still mounted below {}; unmount it first",
            work.display()
        );
    }
    fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))
}

fn describe(path: &Path, started: Instant, from_cache: bool) -> Result<BuiltImage> {
    let mut head = [0; 32];
    let size_bytes = File::open(path)
        .and_then(|mut file| {
            file.read_exact(&mut head)?;
            file.metadata()
        })
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    // Bytes 24 to 31 of a qcow2 header: the virtual size, big-endian (QEMU's docs/interop/qcow2.txt).
    let (_, virtual_size) = head
        .split_last_chunk::<8>()
        .context("the file is too short for a qcow2 header")?;
    Ok(BuiltImage {
        qcow2: path.to_owned(),
        sha256: hash::of_file(path)?,
        size_bytes,
        virtual_size_bytes: u64::from_be_bytes(*virtual_size),
        seconds: started.elapsed().as_secs_f64(),
        from_cache,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_image_is_found_without_building_and_described_from_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[24..32].copy_from_slice(&(3_u64 << 30).to_be_bytes());
        fs::write(dir.path().join(recipe::file_name(Guest::Tiny)), &bytes).unwrap();
        let built = build(Guest::Tiny, dir.path(), &|_| panic!("nothing to do")).unwrap();
        assert!(built.from_cache);
        assert_eq!(built.size_bytes, 64);
        assert_eq!(built.virtual_size_bytes, 3 << 30);
        assert_eq!(built.sha256.len(), 64);
    }

    #[test]
    fn a_second_builder_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(Guest::Tiny, dir.path(), &|_| ()).unwrap();
        let (progress, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                lock(Guest::Tiny, dir.path(), &|line| {
                    progress.send(line.to_owned()).unwrap();
                })
            });
            assert!(waits.recv().unwrap().contains("another build of tiny"));
            drop(held);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn leftovers_of_a_killed_build_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir_all(work.join("root/etc")).unwrap();
        clear(&work).unwrap();
        assert!(!work.exists());
    }
}
