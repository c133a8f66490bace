//! A pool on a full filesystem or without its tool, and imports that fail temporarily.

use super::*;

/// On a filesystem of half a megabyte that is only visible to this test's threads.
#[test]
fn a_full_filesystem_is_reported_and_leaves_no_unfinished_files() {
    use nix::mount::{MsFlags, mount};
    if skip(without_root()) || skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let outcome = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let small = Some("size=640k");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), small).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let pool = open(&path);
            let size = ByteSize::mib(8);
            let (bytes, image) = image_bytes(size, 1);
            import(&pool, &bytes, image).await.unwrap();
            let [first, second] = ["first", "second"].map(volume_id);
            ensure_volume(&pool, &first, image, size).await;
            let refused = pool.ensure_volume(&second, image, size).await;
            assert!(
                matches!(refused, Err(StorageError::NoSpace { .. })),
                "{refused:?}"
            );
            assert_eq!(files(&path.join("volumes")).len(), 1);
            pool.ensure_volume_absent(&first).await.unwrap();
            ensure_volume(&pool, &second, image, size).await;
        });
    })
    .join();
    outcome.unwrap();
}

/// A pool that cannot run `qemu-img`.
fn open_without_tool(path: &Path) -> Qcow2Pool {
    let mut config = config(path);
    config.qemu_img = "/nonexistent/qemu-img".into();
    Qcow2Pool::open(config).unwrap()
}

#[tokio::test]
async fn a_volume_is_created_and_grown_without_a_tool_until_a_guest_writes_to_it() {
    let Some(test) = TestPool::with_image(ByteSize::gib(2)).await else {
        return;
    };
    let (directory, image) = (test.directory, test.image);
    drop(test.pool);
    let pool = open_without_tool(directory.path());
    let id = volume_id("root");
    for size in [20, 20, 30].map(ByteSize::gib) {
        ensure_volume(&pool, &id, image, size).await;
        assert_eq!(pool.volumes().await.unwrap()[0].size, Some(size));
    }
    let path = ensure_volume(&pool, &id, image, ByteSize::gib(30)).await;
    qemu_io("write 0 64k", &path);
    let grown = pool.ensure_volume(&id, image, ByteSize::gib(40)).await;
    assert!(matches!(grown, Err(StorageError::Tool { .. })), "{grown:?}");
}

#[tokio::test]
async fn the_download_is_kept_if_the_image_did_not_cause_the_failure() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(1), 7);
    let pool = open_without_tool(directory.path());
    let error = import(&pool, &bytes, image).await.unwrap_err();
    assert!(matches!(error, StorageError::Tool { .. }), "{error}");
    let staged = pool.staging_path(image).await.unwrap();
    assert!(fs::read(&staged).unwrap() == bytes);
    drop(pool);
    // Once the tool is available again, the same file is imported.
    let pool = open(directory.path());
    pool.import_image(image).await.unwrap();
    assert!(pool.has_image(image).await.unwrap());
    assert!(!staged.exists());
    // An invalid image is not kept.
    let (_, other) = image_bytes(ByteSize::mib(1), 8);
    import(&pool, &bytes, other).await.unwrap_err();
    assert!(!pool.staging_path(other).await.unwrap().exists());
}
