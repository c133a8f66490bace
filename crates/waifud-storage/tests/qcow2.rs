//! The qcow2 pool on a real filesystem with the real `qemu-img`.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
mod pool_faults;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{NOBODY, skip};
use waifud_storage::FilePoolConfig;
use waifud_storage::conformance::{self, stage, volume_id};
use waifud_storage::fake::image_bytes;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_storage::{StorageError, StoragePool};
use waifud_types::{ByteSize, Digest, VolumeId};

fn without_qemu_img() -> Option<String> {
    let found = Command::new("qemu-img").arg("--version").output();
    found.err().map(|e| format!("qemu-img can't be run: {e}"))
}

fn without_root() -> Option<String> {
    let root = nix::unistd::geteuid().is_root();
    (!root).then(|| "it needs root".to_owned())
}

fn config(path: &Path) -> FilePoolConfig {
    let mut config = FilePoolConfig::new("main".parse().unwrap(), path);
    config.image_user = Some(NOBODY);
    config
}

fn open(path: &Path) -> Qcow2Pool {
    Qcow2Pool::open(config(path)).unwrap()
}

async fn import(pool: &Qcow2Pool, bytes: &[u8], image: Digest) -> Result<(), StorageError> {
    stage(pool, image, bytes).await.unwrap();
    pool.import_image(image).await
}

/// Every file below a directory, by name.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{complaint}");
    text
}

#[tokio::test]
async fn the_qcow2_pool_conforms() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    conformance::everything(&open(directory.path()))
        .await
        .unwrap();
    assert_eq!(files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn qemu_finds_no_fault_in_volumes_of_any_size() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pool = open(directory.path());
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    import(&pool, &bytes, image).await.unwrap();
    let sizes = [
        ByteSize::mib(8),
        ByteSize(ByteSize::mib(8).bytes() + 512),
        ByteSize::gib(2),
        ByteSize::gib(20),
        ByteSize::gib(4097),
        ByteSize::gib(16 * 1024),
    ];
    for size in sizes {
        let id = volume_id("root");
        let source = pool.ensure_volume(&id, image, size).await.unwrap();
        let path = source.path().to_str().unwrap();
        qemu_img(&["check", "-q", "-f", "qcow2", path]);
        let info = qemu_img(&["info", "--output=json", "--backing-chain", path]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info[0]["virtual-size"], size.bytes(), "{info}");
        assert_eq!(info[0]["backing-filename-format"], "qcow2");
        assert_eq!(
            info[1]["filename"],
            fs::canonicalize(directory.path())
                .unwrap()
                .join(format!("volumes/../images/{}.qcow2", image.hex()))
                .to_str()
                .unwrap()
        );
    }
}

#[tokio::test]
async fn what_a_guest_wrote_survives_growing_and_images_are_never_written() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pool = open(directory.path());
    // An image with data in it: a megabyte of sevens.
    let raw = directory.path().join("raw");
    fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let made = directory.path().join("made");
    let (raw, made) = (raw.to_str().unwrap(), made.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, made]);
    let bytes = fs::read(made).unwrap();
    let image = Digest::of(&bytes);
    import(&pool, &bytes, image).await.unwrap();

    let id = volume_id("root");
    let source = pool
        .ensure_volume(&id, image, ByteSize::mib(4))
        .await
        .unwrap();
    let file = source.path().to_str().unwrap();
    // What QEMU does for a guest: write into the overlay.
    let wrote = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 9 2M 64k", file])
        .output()
        .unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
    let again = pool.ensure_volume(&id, image, ByteSize::mib(64)).await;
    assert_eq!(again.unwrap(), source);
    qemu_img(&["check", "-q", "-f", "qcow2", file]);
    let read = Command::new("qemu-io")
        .args([
            "-r",
            "-f",
            "qcow2",
            "-c",
            "read -P 9 2M 64k",
            "-c",
            "read -P 7 0 1M",
            file,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(
        read.status.success() && !said.contains("verification failed"),
        "{said}"
    );
    let volumes = pool.volumes().await.unwrap();
    assert_eq!(volumes[0].size, Some(ByteSize::mib(64)));

    let stored = files(&directory.path().join("images"));
    assert_eq!(Digest::of(&fs::read(&stored[0]).unwrap()), image);
    assert_eq!(fs::metadata(&stored[0]).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(fs::metadata(source.path()).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn an_image_whose_inside_is_broken_is_refused_by_the_tool() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pool = open(directory.path());
    let (mut bytes, _) = image_bytes(ByteSize::mib(8), 1);
    // The L1 table's only entry points far behind the end of the file (qcow2.txt: bits 9 to 55 are the offset).
    bytes[3 << 16..(3 << 16) + 8].copy_from_slice(&((1_u64 << 63) | (1 << 50)).to_be_bytes());
    let refused = import(&pool, &bytes, Digest::of(&bytes)).await;
    assert!(
        matches!(refused, Err(StorageError::ImageRefused { .. })),
        "{refused:?}"
    );
    assert_eq!(files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn links_and_directories_in_the_staging_place_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let pool = open(directory.path());
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, &bytes).unwrap();
    let staged = pool.staging_path(image).await.unwrap();
    std::os::unix::fs::symlink(&elsewhere, &staged).unwrap();
    assert!(matches!(
        pool.import_image(image).await,
        Err(StorageError::Io { .. })
    ));
    assert!(!staged.exists() && elsewhere.exists());
    assert!(!pool.has_image(image).await.unwrap());
}

/// A stand-in for qemu-img: a shell script.
fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("tool");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What an import that failed leaves: the download, if the tool is to blame and not the image.
fn kept(error: &StorageError, pool: &Path, image: Digest) -> Vec<PathBuf> {
    if matches!(error, StorageError::Tool { .. }) {
        vec![pool.join(format!("staging/{}.part", image.hex()))]
    } else {
        Vec::new()
    }
}

async fn import_with_script(text: &str, timeout: Duration) -> (StorageError, tempfile::TempDir) {
    let (tools, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = config(directory.path());
    config.qemu_img = script(tools.path(), text);
    config.tool_timeout = timeout;
    let pool = Qcow2Pool::open(config).unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let refused = import(&pool, &bytes, image).await.unwrap_err();
    assert_eq!(
        files(directory.path()),
        kept(&refused, directory.path(), image)
    );
    (refused, tools)
}

#[tokio::test]
async fn a_tool_that_hangs_is_ended_and_nothing_is_left() {
    let (refused, tools) =
        import_with_script("while :; do :; done", Duration::from_millis(500)).await;
    assert!(
        matches!(&refused, StorageError::Tool { message, .. } if message.contains("exceeded its time limit")),
        "{refused}"
    );
    let name = tools.path().to_str().unwrap().as_bytes();
    let runs = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.windows(name.len()).any(|part| part == name)
    };
    let left = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    assert_eq!(left.filter(runs).count(), 0);
}

#[tokio::test]
async fn a_tool_runs_as_nobody_without_network_and_with_limits() {
    if skip(without_root()) {
        return;
    }
    let report = "echo \"$(id -u):$(id -g):$(id -G) \
        $(grep -c : /proc/net/dev) $(grep ^CapEff /proc/self/status | tr -d '\\t') \
        $(grep ^NoNewPrivs /proc/self/status | tr -d '\\t') \
        $(ulimit -f) $(ulimit -n) $(ulimit -t) $(ulimit -v)\" >&2; exit 1";
    let (refused, _tools) = import_with_script(report, Duration::from_secs(20)).await;
    let StorageError::ImageRefused { message, .. } = refused else {
        panic!("{refused}");
    };
    // One interface: a loopback that is down. No capability, no file, 64 descriptors, 20 s, 2 GiB.
    assert_eq!(
        message,
        "65534:65534:65534 1 CapEff:0000000000000000 NoNewPrivs:1 0 64 20 2097152"
    );
}

#[tokio::test]
async fn endless_output_of_a_tool_is_cut_off() {
    let (refused, _tools) = import_with_script(
        "while :; do echo 'no no no no no no no no' >&2; done",
        Duration::from_secs(1),
    )
    .await;
    assert!(refused.to_string().len() < 500, "{refused}");
}

#[tokio::test]
async fn a_missing_tool_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    config.qemu_img = PathBuf::from("/nonexistent/qemu-img");
    let pool = Qcow2Pool::open(config).unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let refused = import(&pool, &bytes, image).await.unwrap_err();
    assert!(
        refused.to_string().contains("/nonexistent/qemu-img"),
        "{refused}"
    );
    let kept = kept(&refused, directory.path(), image);
    assert_eq!(files(directory.path()), kept);
}

#[tokio::test]
async fn what_a_crash_left_half_made_counts_as_nothing() {
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let id = volume_id("root");
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    {
        let pool = open(directory.path());
        let staged = stage(&pool, image, &bytes[..1000]).await.unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o444)).unwrap();
        let half = directory.path().join(format!("volumes/.new-{id}"));
        fs::write(&half, b"QFI").unwrap();
        fs::write(directory.path().join("volumes/notes.txt"), b"somebody's").unwrap();
    }
    let pool = open(directory.path());
    assert!(!pool.has_image(image).await.unwrap());
    assert_eq!(pool.volumes().await.unwrap(), Vec::new());
    // The download goes on where it was, and all ends well.
    let staged = pool.staging_path(image).await.unwrap();
    assert_eq!(fs::metadata(&staged).unwrap().len(), 1000);
    import(&pool, &bytes, image).await.unwrap();
    pool.ensure_volume(&id, image, ByteSize::mib(8))
        .await
        .unwrap();
    let names: Vec<_> = files(directory.path())
        .into_iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let expected = [
        format!("{}.qcow2", image.hex()),
        format!("{id}.qcow2"),
        "notes.txt".to_owned(),
    ];
    assert_eq!(names, expected, "and what is not ours stays");
}

#[test]
fn a_directory_that_others_use_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    for (before, after) in [(0o1777, 0o1777), (0o750, 0o751)] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("notes"), b"").unwrap();
        let mode = std::fs::Permissions::from_mode(before);
        std::fs::set_permissions(directory.path(), mode).unwrap();
        open(directory.path());
        let mode = directory.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, after, "{before:o}");
    }
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let pool = place.path().join("pool");
    drop(open(&pool));
    let refused = || {
        let error = Qcow2Pool::open(config(&pool)).err().unwrap();
        std::error::Error::source(&error).unwrap().to_string()
    };
    fs::set_permissions(&pool, fs::Permissions::from_mode(0o757)).unwrap();
    assert!(refused().contains("every user"));
    fs::set_permissions(&pool, fs::Permissions::from_mode(0o711)).unwrap();
    drop(open(&pool));
    if skip(without_root()) {
        return;
    }
    for name in ["", "images", "staging", "volumes"] {
        let directory = pool.join(name);
        std::os::unix::fs::chown(&directory, Some(64_055), None).unwrap();
        assert!(refused().contains("64055"), "{name}");
        std::os::unix::fs::chown(&directory, Some(0), None).unwrap();
    }
    // A link of another user, though it leads to a directory of root.
    let volumes = pool.join("volumes");
    fs::rename(&volumes, place.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.path().join("elsewhere"), &volumes).unwrap();
    drop(open(&pool));
    std::os::unix::fs::lchown(&volumes, Some(64_055), None).unwrap();
    assert!(refused().contains("64055"));
}

#[tokio::test]
async fn a_volume_lies_on_its_own_image_or_on_none() {
    if skip(without_qemu_img()) {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let pool = open(place.path());
    let (bytes, image) = image_bytes(ByteSize::mib(1), 1);
    import(&pool, &bytes, image).await.unwrap();
    let id = volume_id("root");
    let source = pool
        .ensure_volume(&id, image, ByteSize::mib(1))
        .await
        .unwrap();
    let path = source.path().to_owned();
    let backing = pool.backing(&id, image).await.unwrap().unwrap();
    assert_eq!(fs::read(&backing).unwrap(), bytes);

    // QEMU's user writes another file into the header.
    let header = fs::read(&path).unwrap();
    let name = image.hex();
    let at = header
        .windows(64)
        .position(|hex| hex == name.as_bytes())
        .unwrap();
    let mut twisted = header.clone();
    twisted[at..at + 64].copy_from_slice(&[b'0'; 64]);
    fs::write(&path, &twisted).unwrap();
    let other = pool.backing(&id, image).await;
    assert!(
        matches!(other, Err(StorageError::OtherImage { .. })),
        "{other:?}"
    );

    // Somebody flattened it, and it stands for itself.
    fs::write(&path, &bytes).unwrap();
    assert_eq!(pool.backing(&id, image).await.unwrap(), None);
}

#[tokio::test]
async fn downloads_are_kept_for_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let (recent, old) = (
        image_bytes(ByteSize::mib(8), 1).1,
        image_bytes(ByteSize::mib(8), 2).1,
    );
    let pool = open(directory.path());
    for (image, days) in [(recent, 6), (old, 8)] {
        let staged = stage(&pool, image, b"QFI").await.unwrap();
        let then = SystemTime::now() - Duration::from_hours(days * 24);
        fs::File::options()
            .append(true)
            .open(staged)
            .unwrap()
            .set_modified(then)
            .unwrap();
    }
    let pool = open(directory.path());
    assert!(pool.staging_path(recent).await.unwrap().exists());
    assert!(!pool.staging_path(old).await.unwrap().exists());
}

/// The work that `a_pool_survives_being_killed_at_any_instant` kills: all verbs, over and over.
async fn churn(path: &Path) {
    let pool = open(path);
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let id: VolumeId = "0198c0de-0000-7000-8000-00000000abcd.root".parse().unwrap();
    loop {
        import(&pool, &bytes, image).await.unwrap();
        pool.ensure_volume(&id, image, ByteSize::mib(8))
            .await
            .unwrap();
        pool.ensure_volume(&id, image, ByteSize::mib(64))
            .await
            .unwrap();
        pool.ensure_volume_absent(&id).await.unwrap();
        pool.ensure_image_absent(image).await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_survives_being_killed_at_any_instant() {
    const CHILD: &str = "WAIFUD_TEST_CHURN";
    const NAME: &str = "a_pool_survives_being_killed_at_any_instant";
    if let Some(path) = std::env::var_os(CHILD) {
        return churn(Path::new(&path)).await;
    }
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let begun = || directory.path().join("volumes").exists();
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(CHILD, directory.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !begun() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Not a wait for anything: the instant of the kill has to differ from round to round.
        tokio::time::sleep(Duration::from_millis(20 + round * 17)).await;
        child.kill().unwrap();
        child.wait().unwrap();

        let pool = open(directory.path());
        for path in files(&directory.path().join("images")) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert_eq!(Digest::of(&fs::read(&path).unwrap()).hex(), name);
        }
        for path in files(&directory.path().join("volumes")) {
            qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
        }
        for volume in pool.volumes().await.unwrap() {
            let size = volume.size.unwrap();
            assert!(size == ByteSize::mib(8) || size == ByteSize::mib(64));
        }
    }
}

#[tokio::test]
async fn volumes_belong_to_qemus_user() {
    if skip(without_root()) || skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Tools that run as that user pass through to the files.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let mut config = config(&directory.path().join("pool"));
    config.volume_owner = Some((4321, 4322));
    let pool = Qcow2Pool::open(config).unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    import(&pool, &bytes, image).await.unwrap();
    let id = volume_id("root");
    let source = pool
        .ensure_volume(&id, image, ByteSize::mib(8))
        .await
        .unwrap();
    let path = source.path();
    let facts = fs::metadata(path).unwrap();
    assert_eq!((facts.uid(), facts.gid()), (4321, 4322));
    // Written to, so that growing takes the tool, which runs as that user.
    let file = path.to_str().unwrap();
    let wrote = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write 0 64k", file])
        .output()
        .unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
    pool.ensure_volume(&id, image, ByteSize::mib(32))
        .await
        .unwrap();
    assert_eq!(
        pool.volumes().await.unwrap()[0].size,
        Some(ByteSize::mib(32))
    );
}
