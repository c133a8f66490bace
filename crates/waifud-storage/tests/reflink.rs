//! The reflink pool on real btrfs and XFS, on loop devices in a mount namespace of the test.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected result"
)]

mod common;
mod kinds;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{OTHER_USER, skip};
use waifud_kit::testing::new_filesystem::NewFilesystem;
use waifud_storage::conformance::{self, stage, volume_id};
use waifud_storage::fake::image_bytes;
use waifud_storage::reflink::ReflinkPool;
use waifud_storage::{FilePoolConfig, StorageError, StoragePool};
use waifud_types::{ByteSize, Digest};

/// Runs the test called `name` again in a process with a new filesystem. In that process, returns its path.
fn inside(name: &str, kind: &str) -> Option<PathBuf> {
    let disk = NewFilesystem {
        kind,
        options: &["-q"],
        // XFS requires at least 300 MB.
        bytes: 320 << 20,
    };
    let qemu_img = Command::new("qemu-img").arg("--version").output();
    let without = qemu_img
        .is_err()
        .then(|| "qemu-img cannot be run".to_owned());
    if skip(disk.obstacle().or(without)) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    disk.run_again(name, directory.path()).unwrap()
}

fn config(path: &Path) -> FilePoolConfig {
    let mut config = FilePoolConfig::new("main".parse().unwrap(), path.join("main"));
    config.image_user = Some(OTHER_USER);
    config.volume_owner = Some(OTHER_USER);
    config
}

/// The pool passes the conformance tests, and its volumes are clones: they take no space and contain the image's bytes.
async fn check_pool(path: &Path) {
    let pool = ReflinkPool::open(config(path)).unwrap();
    conformance::run_all(&pool).await.unwrap();

    let (bytes, image) = half_filled(path);
    stage(&pool, image, &bytes).await.unwrap();
    pool.import_image(image).await.unwrap();
    let before = pool.usage().await.unwrap().used;
    let id = volume_id("root");
    let volume = pool
        .ensure_volume(&id, image, ByteSize::gib(20))
        .await
        .unwrap();
    let volume = volume.path();
    let after = pool.usage().await.unwrap().used;
    let grown = after.bytes().saturating_sub(before.bytes());
    assert!(grown < 4 << 20, "a clone took {grown} bytes");
    let metadata = fs::metadata(volume).unwrap();
    assert_eq!(metadata.len(), ByteSize::gib(20).bytes());
    assert_eq!(
        (metadata.uid(), metadata.mode() & 0o777),
        (OTHER_USER.0, 0o600)
    );
    assert!(has_the_pattern(volume));

    // The volume is standalone, so its image can be removed.
    pool.ensure_image_absent(image).await.unwrap();
    assert!(has_the_pattern(volume));
    let reopened = ReflinkPool::open(config(path)).unwrap();
    let found = reopened.volumes().await.unwrap();
    assert_eq!(found.len(), 1);
    reopened.ensure_volume_absent(&id).await.unwrap();

    // Unfinished files of a crash are removed at the next start.
    let unfinished = path.join("main/images/.new-unfinished");
    fs::write(&unfinished, "data").unwrap();
    ReflinkPool::open(config(path)).unwrap();
    assert!(!unfinished.exists());

    // A full filesystem is reported as full, and no image is left.
    let (bytes, large) = large(path);
    stage(&reopened, large, &bytes).await.unwrap();
    let refused = reopened.import_image(large).await;
    assert!(
        matches!(refused, Err(StorageError::NoSpace { .. })),
        "{refused:?}"
    );
    assert!(!reopened.has_image(large).await.unwrap());
    assert_eq!(fs::read_dir(path.join("main/images")).unwrap().count(), 0);
}

const PATTERN: u8 = 0xa5;

/// An image of 64 MiB whose first 32 MiB contain the pattern.
fn half_filled(path: &Path) -> (Vec<u8>, Digest) {
    packed(path, 64, 32, &[])
}

/// An image that is small in qcow2 format and larger than the filesystem when unpacked.
fn large(path: &Path) -> (Vec<u8>, Digest) {
    packed(path, 384, 384, &["-c"])
}

fn packed(path: &Path, size: u64, full: usize, options: &[&str]) -> (Vec<u8>, Digest) {
    // Not on the pool's filesystem, which may be too small.
    let parent = path.parent().unwrap();
    let (raw, qcow2) = (parent.join("raw"), parent.join("packed.qcow2"));
    let file = fs::File::create(&raw).unwrap();
    for _ in 0..full {
        std::io::Write::write_all(&mut &file, &vec![PATTERN; 1 << 20]).unwrap();
    }
    file.set_len(size << 20).unwrap();
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([from, to]);
    let packed = Command::new("qemu-img").args(&arguments).status().unwrap();
    assert!(packed.success(), "{packed}");
    let bytes = fs::read(&qcow2).unwrap();
    fs::remove_file(raw).unwrap();
    let image = Digest::of(&bytes);
    (bytes, image)
}

fn has_the_pattern(volume: &Path) -> bool {
    let mut head = vec![0; 33 << 20];
    let mut file = fs::File::open(volume).unwrap();
    std::io::Read::read_exact(&mut file, &mut head).unwrap();
    let (full, empty) = head.split_at(32 << 20);
    full.iter().all(|byte| *byte == PATTERN) && empty.iter().all(|byte| *byte == 0)
}

#[tokio::test]
async fn the_reflink_pool_passes_the_conformance_tests_on_btrfs() {
    let name = "the_reflink_pool_passes_the_conformance_tests_on_btrfs";
    if let Some(path) = inside(name, "btrfs") {
        check_pool(&path).await;
    }
}

#[tokio::test]
async fn the_reflink_pool_passes_the_conformance_tests_on_xfs() {
    let name = "the_reflink_pool_passes_the_conformance_tests_on_xfs";
    if let Some(path) = inside(name, "xfs") {
        check_pool(&path).await;
    }
}

#[tokio::test]
async fn the_error_for_a_filesystem_without_reflinks_names_the_alternatives() {
    let name = "the_error_for_a_filesystem_without_reflinks_names_the_alternatives";
    if let Some(path) = inside(name, "ext4") {
        let refused = ReflinkPool::open(config(&path)).err().unwrap();
        assert!(
            matches!(refused, StorageError::NoReflinks { .. }),
            "{refused:?}"
        );
        assert!(refused.to_string().contains("kind qcow2"), "{refused}");
        let (_, image) = image_bytes(ByteSize::mib(1), 1);
        let images = path.join("main/images");
        assert!(!images.join(image.hex()).exists());
        assert_eq!(fs::read_dir(images).unwrap().count(), 0);
    }
}
