//! The qcow2 pool on a real filesystem with the real `qemu-img`.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails at the first unexpected result"
)]

mod common;
mod failures;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{OTHER_USER, skip};
use tempfile::TempDir;
use waifud_storage::FilePoolConfig;
use waifud_storage::conformance::{self, stage, volume_id};
use waifud_storage::fake::image_bytes;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_storage::{StorageError, StoragePool};
use waifud_types::{ByteSize, Digest, VolumeId};

fn without_qemu_img() -> Option<String> {
    let found = Command::new("qemu-img").arg("--version").output();
    found.err().map(|e| format!("cannot run qemu-img: {e}"))
}

fn without_root() -> Option<String> {
    let root = nix::unistd::geteuid().is_root();
    (!root).then(|| "it needs root".to_owned())
}

fn config(path: &Path) -> FilePoolConfig {
    let mut config = FilePoolConfig::new("main".parse().unwrap(), path);
    config.image_user = Some(OTHER_USER);
    config
}

fn open(path: &Path) -> Qcow2Pool {
    Qcow2Pool::open(config(path)).unwrap()
}

/// A pool in a temporary directory. `None` without `qemu-img`; the skip is reported.
fn empty_pool() -> Option<(TempDir, Qcow2Pool)> {
    if skip(without_qemu_img()) {
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let pool = open(directory.path());
    Some((directory, pool))
}

async fn import(pool: &Qcow2Pool, bytes: &[u8], image: Digest) -> Result<(), StorageError> {
    stage(pool, image, bytes).await.unwrap();
    pool.import_image(image).await
}

/// A pool in a temporary directory, with one image.
struct TestPool {
    directory: TempDir,
    pool: Qcow2Pool,
    bytes: Vec<u8>,
    image: Digest,
}

impl TestPool {
    /// Imports an empty image of this virtual size. `None` without `qemu-img`; the skip is reported.
    async fn with_image(size: ByteSize) -> Option<Self> {
        let (directory, pool) = empty_pool()?;
        let (bytes, image) = image_bytes(size, 1);
        import(&pool, &bytes, image).await.unwrap();
        Some(Self {
            directory,
            pool,
            bytes,
            image,
        })
    }

    async fn ensure_volume(&self, id: &VolumeId, size: ByteSize) -> PathBuf {
        ensure_volume(&self.pool, id, self.image, size).await
    }
}

async fn ensure_volume(pool: &Qcow2Pool, id: &VolumeId, image: Digest, size: ByteSize) -> PathBuf {
    let source = pool.ensure_volume(id, image, size).await.unwrap();
    source.path().to_owned()
}

/// Writes to a volume like the QEMU of a guest: executes a command of `qemu-io`.
fn qemu_io(command: &str, volume: &Path) {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "qcow2", "-c", command]).arg(volume);
    let output = qemu_io.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // A read of other data than expected is reported with exit code 0.
    assert!(
        output.status.success() && !text.contains("verification failed"),
        "{output:?}"
    );
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
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{error}");
    text
}

#[tokio::test]
async fn the_qcow2_pool_passes_the_conformance_tests() {
    let Some((directory, pool)) = empty_pool() else {
        return;
    };
    conformance::run_all(&pool).await.unwrap();
    assert_eq!(files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn qemu_img_accepts_new_volumes_of_any_size() {
    let Some(test) = TestPool::with_image(ByteSize::mib(8)).await else {
        return;
    };
    let sizes = [
        ByteSize::mib(8),
        ByteSize(ByteSize::mib(8).bytes() + 512),
        ByteSize::gib(2),
        ByteSize::gib(20),
        ByteSize::gib(4097),
        ByteSize::gib(16 * 1024),
    ];
    for size in sizes {
        let path = test.ensure_volume(&volume_id("root"), size).await;
        let path = path.to_str().unwrap();
        qemu_img(&["check", "-q", "-f", "qcow2", path]);
        let info = qemu_img(&["info", "--output=json", "--backing-chain", path]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info[0]["virtual-size"], size.bytes(), "{info}");
        assert_eq!(info[0]["backing-filename-format"], "qcow2");
        assert_eq!(
            info[1]["filename"],
            fs::canonicalize(test.directory.path())
                .unwrap()
                .join(format!("volumes/../images/{}.qcow2", test.image.hex()))
                .to_str()
                .unwrap()
        );
    }
}

#[tokio::test]
async fn written_data_survives_growing_and_images_are_never_written() {
    let Some((directory, pool)) = empty_pool() else {
        return;
    };
    // An image that contains a megabyte of sevens.
    let raw = directory.path().join("raw");
    fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let qcow2 = directory.path().join("qcow2");
    let (raw, qcow2) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, qcow2]);
    let bytes = fs::read(qcow2).unwrap();
    let image = Digest::of(&bytes);
    import(&pool, &bytes, image).await.unwrap();

    let id = volume_id("root");
    let path = ensure_volume(&pool, &id, image, ByteSize::mib(4)).await;
    qemu_io("write -P 9 2M 64k", &path);
    let grown = ensure_volume(&pool, &id, image, ByteSize::mib(64)).await;
    assert_eq!(grown, path);
    qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
    qemu_io("read -P 9 2M 64k", &path);
    qemu_io("read -P 7 0 1M", &path);
    let volumes = pool.volumes().await.unwrap();
    assert_eq!(volumes[0].size, Some(ByteSize::mib(64)));

    let stored = files(&directory.path().join("images"));
    assert_eq!(Digest::of(&fs::read(&stored[0]).unwrap()), image);
    assert_eq!(fs::metadata(&stored[0]).unwrap().mode() & 0o7777, 0o444);
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn an_image_with_invalid_tables_is_refused_by_the_tool() {
    let Some((directory, pool)) = empty_pool() else {
        return;
    };
    let (mut bytes, _) = image_bytes(ByteSize::mib(8), 1);
    // The only entry of the L1 table refers to an offset far beyond the end of the file (qcow2.txt: bits 9 to 55 are
    // the offset).
    bytes[3 << 16..(3 << 16) + 8].copy_from_slice(&((1_u64 << 63) | (1 << 50)).to_be_bytes());
    let refused = import(&pool, &bytes, Digest::of(&bytes)).await;
    assert!(
        matches!(refused, Err(StorageError::ImageRefused { .. })),
        "{refused:?}"
    );
    assert_eq!(files(directory.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_link_or_directory_at_the_staging_path_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pool = open(directory.path());
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, &bytes).unwrap();
    let staged = pool.staging_path(image).await.unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink(&elsewhere, path).unwrap();
    let create_directory = |path: &Path| fs::create_dir(path).unwrap();
    for create in [&link as &dyn Fn(&Path), &create_directory] {
        create(&staged);
        let refused = pool.import_image(image).await;
        assert!(
            matches!(refused, Err(StorageError::Io { .. })),
            "{refused:?}"
        );
        assert!(!pool.has_image(image).await.unwrap());
        // The link is removed, but not its target.
        assert!(!staged.is_symlink() && elsewhere.exists());
    }
}

/// A shell script that replaces qemu-img.
fn script(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("tool");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The files that a failed import leaves: the download, if the image did not cause the failure.
fn files_after_failure(error: &StorageError, pool: &Path, image: Digest) -> Vec<PathBuf> {
    if matches!(error, StorageError::Tool { .. }) {
        vec![pool.join(format!("staging/{}.part", image.hex()))]
    } else {
        Vec::new()
    }
}

async fn import_with_script(text: &str, timeout: Duration) -> (StorageError, TempDir) {
    let (tools, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = config(directory.path());
    config.qemu_img = script(tools.path(), text);
    config.tool_timeout = timeout;
    let pool = Qcow2Pool::open(config).unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let refused = import(&pool, &bytes, image).await.unwrap_err();
    assert_eq!(
        files(directory.path()),
        files_after_failure(&refused, directory.path(), image)
    );
    (refused, tools)
}

#[tokio::test]
async fn a_tool_that_exceeds_its_time_limit_is_killed() {
    let (refused, tools) =
        import_with_script("while :; do :; done", Duration::from_millis(500)).await;
    assert!(
        matches!(&refused, StorageError::Tool { message, .. } if message.contains("exceeded its time limit")),
        "{refused}"
    );
    let name = tools.path().to_str().unwrap().as_bytes();
    let is_tool = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.windows(name.len()).any(|part| part == name)
    };
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    assert_eq!(processes.filter(is_tool).count(), 0);
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
async fn endless_output_of_a_tool_is_truncated() {
    let (refused, _tools) = import_with_script(
        "while :; do echo 'no no no no no no no no' >&2; done",
        Duration::from_secs(30),
    )
    .await;
    // The pipe is closed at the limit, which ends the tool before its timeout.
    assert!(
        matches!(refused, StorageError::ImageRefused { .. }),
        "{refused:?}"
    );
    assert!(refused.to_string().len() < 500, "{refused}");
}

#[tokio::test]
async fn the_error_for_a_missing_tool_contains_its_path() {
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
    let expected = files_after_failure(&refused, directory.path(), image);
    assert_eq!(files(directory.path()), expected);
}

#[tokio::test]
async fn unfinished_files_of_a_crash_are_removed_and_the_download_is_resumed() {
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
        let unfinished = directory.path().join(format!("volumes/.new-{id}"));
        fs::write(&unfinished, b"QFI").unwrap();
        fs::write(directory.path().join("volumes/notes.txt"), b"a user's file").unwrap();
    }
    let pool = open(directory.path());
    assert!(!pool.has_image(image).await.unwrap());
    assert_eq!(pool.volumes().await.unwrap(), Vec::new());
    // The download is resumed, and everything succeeds.
    let staged = pool.staging_path(image).await.unwrap();
    assert_eq!(fs::metadata(&staged).unwrap().len(), 1000);
    import(&pool, &bytes, image).await.unwrap();
    ensure_volume(&pool, &id, image, ByteSize::mib(8)).await;
    let names: Vec<_> = files(directory.path())
        .into_iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let expected = [
        format!("{}.qcow2", image.hex()),
        format!("{id}.qcow2"),
        "notes.txt".to_owned(),
    ];
    assert_eq!(names, expected, "other files must be kept");
}

#[test]
fn a_directory_with_contents_keeps_its_mode() {
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
fn a_directory_that_other_users_own_or_can_write_to_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let pool = parent.path().join("pool");
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
    // A link of another user, although it leads to a directory of root.
    let volumes = pool.join("volumes");
    fs::rename(&volumes, parent.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(parent.path().join("elsewhere"), &volumes).unwrap();
    drop(open(&pool));
    std::os::unix::fs::lchown(&volumes, Some(64_055), None).unwrap();
    assert!(refused().contains("64055"));
}

#[tokio::test]
async fn the_backing_file_of_a_volume_is_its_own_image_or_none() {
    let Some(test) = TestPool::with_image(ByteSize::mib(1)).await else {
        return;
    };
    let (pool, image) = (&test.pool, test.image);
    let id = volume_id("root");
    let path = test.ensure_volume(&id, ByteSize::mib(1)).await;
    let backing = pool.backing(&id, image).await.unwrap().unwrap();
    assert_eq!(fs::read(&backing).unwrap(), test.bytes);

    // QEMU's user writes the name of another file to the header.
    let header = fs::read(&path).unwrap();
    let name = image.hex();
    let at = header
        .windows(64)
        .position(|hex| hex == name.as_bytes())
        .unwrap();
    let mut altered = header.clone();
    altered[at..at + 64].copy_from_slice(&[b'0'; 64]);
    fs::write(&path, &altered).unwrap();
    let other = pool.backing(&id, image).await;
    assert!(
        matches!(other, Err(StorageError::OtherImage { .. })),
        "{other:?}"
    );

    // A flattened volume is standalone.
    fs::write(&path, &test.bytes).unwrap();
    assert_eq!(pool.backing(&id, image).await.unwrap(), None);
}

#[tokio::test]
async fn a_download_without_progress_is_removed_after_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let (recent, old) = (
        image_bytes(ByteSize::mib(8), 1).1,
        image_bytes(ByteSize::mib(8), 2).1,
    );
    let pool = open(directory.path());
    for (image, days) in [(recent, 6), (old, 8)] {
        let staged = stage(&pool, image, b"QFI").await.unwrap();
        let modified = SystemTime::now() - Duration::from_hours(days * 24);
        fs::File::options()
            .append(true)
            .open(staged)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }
    let pool = open(directory.path());
    assert!(pool.staging_path(recent).await.unwrap().exists());
    assert!(!pool.staging_path(old).await.unwrap().exists());
}

/// What that process prints before each operation.
const OPERATIONS: [&str; 5] = [
    "importing the image",
    "creating the volume",
    "growing the volume",
    "deleting the volume",
    "deleting the image",
];

/// Repeats all operations in the process that `files_are_complete_after_a_process_is_killed_at_any_time` kills.
async fn repeat_operations(path: &Path) {
    let pool = open(path);
    let [
        importing,
        creating,
        growing,
        deleting_volume,
        deleting_image,
    ] = OPERATIONS;
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    let id: VolumeId = "0198c0de-0000-7000-8000-00000000abcd.root".parse().unwrap();
    loop {
        println!("{importing}");
        import(&pool, &bytes, image).await.unwrap();
        println!("{creating}");
        ensure_volume(&pool, &id, image, ByteSize::mib(8)).await;
        println!("{growing}");
        ensure_volume(&pool, &id, image, ByteSize::mib(64)).await;
        println!("{deleting_volume}");
        pool.ensure_volume_absent(&id).await.unwrap();
        println!("{deleting_image}");
        pool.ensure_image_absent(image).await.unwrap();
    }
}

#[tokio::test]
async fn files_are_complete_after_a_process_is_killed_at_any_time() {
    const CHILD: &str = "WAIFUD_TEST_REPEAT_OPERATIONS";
    const NAME: &str = "files_are_complete_after_a_process_is_killed_at_any_time";
    if let Some(path) = std::env::var_os(CHILD) {
        return repeat_operations(Path::new(&path)).await;
    }
    if skip(without_qemu_img()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // What the checks found. A round may find nothing, since the process may be ahead of its output.
    let (mut images, mut volumes) = (0, 0);
    let mut rounds = 0;
    while rounds < 3 * OPERATIONS.len() || images == 0 || volumes == 0 {
        assert!(rounds < 200, "{images} images, {volumes} volumes");
        let operation = OPERATIONS[rounds % OPERATIONS.len()];
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(output);
        let began = lines.any(|line| line.unwrap().contains(operation));
        assert!(began, "it ended before {operation}");
        // Not a wait for a condition: the rounds kill the process at different times within the operation.
        tokio::time::sleep(Duration::from_millis(rounds as u64 % 16)).await;
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "it ended on its own: {status}");
        rounds += 1;

        let pool = open(directory.path());
        for path in files(&directory.path().join("images")) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert_eq!(Digest::of(&fs::read(&path).unwrap()).hex(), name);
            images += 1;
        }
        for path in files(&directory.path().join("volumes")) {
            qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
            volumes += 1;
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
    // Tools that run as that user can enter the directories above the files.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let mut config = config(&directory.path().join("pool"));
    config.volume_owner = Some((4321, 4322));
    let pool = Qcow2Pool::open(config).unwrap();
    let (bytes, image) = image_bytes(ByteSize::mib(8), 1);
    import(&pool, &bytes, image).await.unwrap();
    let id = volume_id("root");
    let path = ensure_volume(&pool, &id, image, ByteSize::mib(8)).await;
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (4321, 4322));
    // After a write, the tool is needed to grow the volume. It runs as QEMU's user.
    qemu_io("write 0 64k", &path);
    ensure_volume(&pool, &id, image, ByteSize::mib(32)).await;
    let size = pool.volumes().await.unwrap()[0].size;
    assert_eq!(size, Some(ByteSize::mib(32)));
}
