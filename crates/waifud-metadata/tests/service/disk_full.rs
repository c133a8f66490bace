//! The store on a real filesystem that fills up: existing data stays intact and is served, new data is refused, and the
//! store continues once there is space. The filesystem is a tmpfs in a mount namespace of the test's thread and ends
//! with it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use waifud_metadata::conformance::assignment;
use waifud_metadata::{BundleStore, DiskStore, StateStore};
use waifud_types::{Digest, InstanceId};

/// A small filesystem that is only visible to this thread and the threads that it starts.
fn mounted(at: &Path) {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
    mount(NONE, at, Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
}

fn fill(at: &Path) {
    let mut filler = File::create(at.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
}

async fn full(at: &Path) {
    let store = DiskStore::open(&at.join("state")).unwrap();
    let web = InstanceId::generate();
    store.put_assignment(web, &assignment(1)).await.unwrap();
    let digest = Digest::from_bytes([1; 32]);
    let documents = Bytes::from_static(b"ciphertext");
    store.put_bundle(digest, documents.clone()).await.unwrap();

    fill(at);
    let error = store.put_assignment(web, &assignment(2)).await.unwrap_err();
    assert!(error.is_full(), "{error:?}");
    let other = Digest::from_bytes([2; 32]);
    let large = Bytes::from(vec![7; 100_000]);
    let error = store.put_bundle(other, large.clone()).await.unwrap_err();
    assert!(error.is_full(), "{error:?}");
    // Also as seen by a process that is started on the full disk.
    for store in [store, DiskStore::open(&at.join("state")).unwrap()] {
        assert_eq!(store.assignments().await.unwrap(), [(web, assignment(1))]);
        assert_eq!(store.bundles().await.unwrap(), [digest]);
        let held = store.bundle(digest).await.unwrap();
        assert_eq!(held.as_ref(), Some(&documents));
    }
    for directory in ["state/instances", "state/bundles"] {
        let files = fs::read_dir(at.join(directory)).unwrap().count();
        assert_eq!(files, 1, "a partial file is left in {directory}");
    }

    fs::remove_file(at.join("filler")).unwrap();
    let store = DiskStore::open(&at.join("state")).unwrap();
    store.put_bundle(other, large).await.unwrap();
    store.put_assignment(web, &assignment(2)).await.unwrap();
    assert_eq!(store.assignments().await.unwrap(), [(web, assignment(2))]);
}

#[test]
fn a_full_disk_refuses_new_data_and_keeps_the_old() {
    if !nix::unistd::geteuid().is_root() {
        waifud_kit::testing::skip("needs root to mount a filesystem");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_owned();
    let alone = std::thread::spawn(move || {
        mounted(&at);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(full(&at));
    });
    alone.join().unwrap();
}
