//! A pool on a full filesystem or without its tool, and imports that fail for a temporary reason.

use super::*;

/// On a filesystem of half a megabyte that only this test's threads see.
#[test]
fn a_full_filesystem_is_no_room_and_leaves_nothing_half_made() {
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
            let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
            import(&pool, &bytes, image).await.unwrap();
            let first = volume_id("root");
            pool.ensure_volume(&first, image, ByteSize::mib(8))
                .await
                .unwrap();
            let second = volume_id("root");
            let refused = pool.ensure_volume(&second, image, ByteSize::mib(8)).await;
            assert!(
                matches!(refused, Err(StorageError::NoRoom { .. })),
                "{refused:?}"
            );
            assert_eq!(files(&path.join("volumes")).len(), 1);
            pool.ensure_volume_absent(&first).await.unwrap();
            pool.ensure_volume(&second, image, ByteSize::mib(8))
                .await
                .unwrap();
        });
    })
    .join();
    outcome.unwrap();
}

/// The pool has no `qemu-img` to run: only what needs a process fails.
#[tokio::test]
async fn a_volume_is_made_and_grown_without_a_process_until_a_guest_writes_to_it() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (bytes, image) = image_bytes(ByteSize::gib(2), 1);
    let pool = open(directory.path());
    import(&pool, &bytes, image).await.unwrap();
    drop(pool);
    let mut without_tool = config(directory.path());
    without_tool.qemu_img = "/nonexistent/qemu-img".into();
    let pool = Qcow2Pool::open(without_tool).unwrap();
    let id = volume_id("root");
    let mut source = None;
    for gib in [20, 20, 30] {
        let made = pool.ensure_volume(&id, image, ByteSize::gib(gib)).await;
        source = Some(made.unwrap());
        let size = pool.volumes().await.unwrap()[0].size;
        assert_eq!(size, Some(ByteSize::gib(gib)));
    }
    // What QEMU does for a guest: write into the volume. From then on growing takes the tool.
    let wrote = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write 0 64k"])
        .arg(source.unwrap().path())
        .output()
        .unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
    let grown = pool.ensure_volume(&id, image, ByteSize::gib(40)).await;
    assert!(matches!(grown, Err(StorageError::Tool { .. })), "{grown:?}");
}

#[tokio::test]
async fn an_import_that_fails_for_a_passing_reason_keeps_what_was_fetched() {
    if skip(without_qemu_img()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(1), 7);
    let mut without_tool = config(dir.path());
    without_tool.qemu_img = "/nonexistent/qemu-img".into();
    let pool = Qcow2Pool::open(without_tool).unwrap();
    let error = import(&pool, &bytes, image).await.unwrap_err();
    assert!(matches!(error, StorageError::Tool { .. }), "{error}");
    let staged = pool.staging_path(image).await.unwrap();
    assert!(fs::read(&staged).unwrap() == bytes);
    drop(pool);
    // With the tool there again, the same file is imported.
    let pool = open(dir.path());
    pool.import_image(image).await.unwrap();
    assert!(pool.has_image(image).await.unwrap());
    assert!(!staged.exists());
    // What is wrong with the image itself is not kept.
    let (_, other) = image_bytes(ByteSize::mib(1), 8);
    import(&pool, &bytes, other).await.unwrap_err();
    assert!(!pool.staging_path(other).await.unwrap().exists());
}
