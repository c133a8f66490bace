//! Volumes that come from a pool of another kind.

use std::os::unix::fs::PermissionsExt;

use waifud_storage::ReceivedVolume;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_types::{DiskFormat, VolumeId};

use super::*;

const SIZE: ByteSize = ByteSize::mib(256);

/// Two pools of different kinds with the same image, half of which has contents, and a volume in the first one that a guest has
/// written to.
struct Pools {
    qcow2: Qcow2Pool,
    reflink: ReflinkPool,
    image: Digest,
    id: VolumeId,
    path: PathBuf,
}

fn other_config(path: &Path) -> FilePoolConfig {
    let mut config = config(path);
    config.path = path.join("other");
    config
}

impl Pools {
    /// Both on one filesystem.
    async fn new(path: &Path) -> Self {
        // The user of QEMU must be able to enter the parents of a pool.
        let parent = path.parent().unwrap();
        fs::set_permissions(parent, fs::Permissions::from_mode(0o711)).unwrap();
        let (bytes, image) = packed(path, 64, 32, &["-c"]);
        let it = Self {
            qcow2: Qcow2Pool::open(other_config(path)).unwrap(),
            reflink: ReflinkPool::open(config(path)).unwrap(),
            image,
            id: volume_id("root"),
            path: path.to_owned(),
        };
        for pool in [&it.qcow2 as &dyn StoragePool, &it.reflink] {
            stage(pool, image, &bytes).await.unwrap();
            pool.import_image(image).await.unwrap();
        }
        it
    }

    /// Creates the volume in a pool, as a guest leaves it: with changes inside and outside of what the image contains.
    async fn written(&self, pool: &dyn StoragePool) -> PathBuf {
        let volume = pool.ensure_volume(&self.id, self.image, SIZE).await;
        let volume = volume.unwrap().path().to_owned();
        for command in ["write -P 7 1M 3M", "write -z 8M 4M", "write -P 9 200M 1M"] {
            qemu_io(pool.format(), command, &volume);
        }
        volume
    }

    fn received(&self, format: DiskFormat) -> ReceivedVolume {
        ReceivedVolume {
            image: self.image,
            format,
            largest: SIZE,
        }
    }

    /// The volume of one pool becomes one of another pool.
    async fn send(&self, from: &dyn StoragePool, to: &dyn StoragePool) -> PathBuf {
        self.copy(from, to).await;
        for _ in 0..2 {
            let completed = to.complete_incoming(&self.id, self.received(from.format()));
            completed.await.unwrap();
        }
        assert_eq!(to.incoming().await.unwrap(), []);
        let volumes = to.volumes().await.unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0].size, Some(SIZE));
        self.volume(to)
    }

    /// A transfer without its end.
    async fn copy(&self, from: &dyn StoragePool, to: &dyn StoragePool) {
        let sent = from.open_volume(&self.id).await.unwrap();
        let received = to.open_incoming(&self.id).await.unwrap();
        copy_sparsely(&sent, &received);
    }

    fn volume(&self, of: &dyn StoragePool) -> PathBuf {
        let directory = match of.format() {
            DiskFormat::Qcow2 => "other",
            DiskFormat::Raw => "main",
        };
        self.path
            .join(format!("{directory}/volumes/{}.{}", self.id, of.format()))
    }
}

fn copy_sparsely(from: &fs::File, to: &fs::File) {
    use std::os::unix::fs::FileExt;
    let length = from.metadata().unwrap().len();
    to.set_len(length).unwrap();
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let count = from.read_at(&mut block, at).unwrap();
        if block[..count].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..count], at).unwrap();
        }
        at += u64::try_from(count).unwrap();
    }
}

/// Writes to a volume as a guest does.
fn qemu_io(format: DiskFormat, command: &str, volume: &Path) {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", format.as_str(), "-c", command]);
    let output = qemu_io.arg(volume).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Two volumes show a guest the same.
fn assert_same(a: (&Path, DiskFormat), b: (&Path, DiskFormat)) {
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", a.1.as_str(), "-F", b.1.as_str()]);
    let output = compare.args([a.0, b.0]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn allocated(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() * 512
}

async fn check_both_directions(path: &Path) {
    let pools = Pools::new(path).await;
    let (qcow2, reflink) = (&pools.qcow2, &pools.reflink);
    let sent = pools.written(qcow2).await;
    let before = reflink.usage().await.unwrap().used.bytes();
    let received = pools.send(qcow2, reflink).await;
    assert_same((&sent, DiskFormat::Qcow2), (&received, DiskFormat::Raw));
    let metadata = fs::metadata(&received).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), OTHER_USER);
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let after = reflink.usage().await.unwrap().used.bytes();
    assert!(
        after.saturating_sub(before) < 16 << 20,
        "the volume shares the image's blocks: {before} {after}"
    );

    // And back: only what differs from the image is in the volume.
    qcow2.ensure_volume_absent(&pools.id).await.unwrap();
    qemu_io(DiskFormat::Raw, "write -P 5 100M 1M", &received);
    let back = pools.send(reflink, qcow2).await;
    assert_same((&back, DiskFormat::Qcow2), (&received, DiskFormat::Raw));
    let metadata = fs::metadata(&back).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), OTHER_USER);
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert!(allocated(&back) < 16 << 20, "{}", allocated(&back));
    let image = qcow2.backing(&pools.id, pools.image).await.unwrap();
    assert!(image.is_some(), "it is an overlay on the image");
    assert!(
        qcow2.ensure_image_absent(pools.image).await.is_err(),
        "the volume needs the image"
    );
    let larger = ByteSize::mib(300);
    let grown = qcow2.ensure_volume(&pools.id, pools.image, larger).await;
    grown.unwrap();
    assert_eq!(qcow2.volumes().await.unwrap()[0].size, Some(larger));
}

#[tokio::test]
async fn a_volume_moves_between_pools_of_different_kinds_on_btrfs() {
    let name = "kinds::a_volume_moves_between_pools_of_different_kinds_on_btrfs";
    if let Some(path) = inside(name, "btrfs") {
        check_both_directions(&path).await;
    }
}

#[tokio::test]
async fn a_volume_moves_between_pools_of_different_kinds_on_xfs() {
    let name = "kinds::a_volume_moves_between_pools_of_different_kinds_on_xfs";
    if let Some(path) = inside(name, "xfs") {
        check_both_directions(&path).await;
    }
}

/// A volume without a backing file has no contents of the image where nothing was written.
#[tokio::test]
async fn a_standalone_volume_becomes_a_raw_one_with_the_same_contents() {
    let name = "kinds::a_standalone_volume_becomes_a_raw_one_with_the_same_contents";
    let Some(path) = inside(name, "xfs") else {
        return;
    };
    let pools = Pools::new(&path).await;
    let sent = pools.written(&pools.qcow2).await;
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2"]).arg(&sent);
    assert!(create.arg("256M").status().unwrap().success());
    qemu_io(DiskFormat::Qcow2, "write -P 3 40M 1M", &sent);
    let received = pools.send(&pools.qcow2, &pools.reflink).await;
    assert_same((&sent, DiskFormat::Qcow2), (&received, DiskFormat::Raw));
}

/// What a crash leaves at each point of a conversion, and a conversion that fails.
#[tokio::test]
async fn a_conversion_that_is_interrupted_begins_again_with_what_was_received() {
    let name = "kinds::a_conversion_that_is_interrupted_begins_again_with_what_was_received";
    let Some(path) = inside(name, "xfs") else {
        return;
    };
    let mut pools = Pools::new(&path).await;
    for to_raw in [true, false] {
        let (from, directory): (&dyn StoragePool, _) = if to_raw {
            (&pools.qcow2, "main")
        } else {
            (&pools.reflink, "other")
        };
        let sent = pools.written(from).await;
        let sent_format = from.format();
        let reopen = |qemu_img: &str| -> Box<dyn StoragePool> {
            let mut config = config(&path);
            config.path = path.join(directory);
            config.qemu_img = qemu_img.into();
            if to_raw {
                Box::new(ReflinkPool::open(config).unwrap())
            } else {
                Box::new(Qcow2Pool::open(config).unwrap())
            }
        };
        let volumes = path.join(directory).join("volumes");
        let unfinished = volumes.join(format!(".new-{}", pools.id));
        let incoming = volumes.join(format!(".incoming-{}", pools.id));
        let received = pools.received(sent_format);

        // It fails: the received file is kept.
        let to = reopen("/nonexistent/qemu-img");
        pools.copy(from, to.as_ref()).await;
        let failed = to.complete_incoming(&pools.id, received).await;
        assert!(
            matches!(failed, Err(StorageError::Tool { .. })),
            "{failed:?}"
        );
        assert_eq!(to.volumes().await.unwrap(), []);
        assert_eq!(to.incoming().await.unwrap(), [pools.id.clone()]);

        // A crash while the tool writes: part of the volume is there.
        fs::write(&unfinished, vec![1; 100_000]).unwrap();
        let to = reopen("qemu-img");
        assert!(!unfinished.exists() && incoming.exists());
        fs::write(&unfinished, vec![1; 100_000]).unwrap();
        to.complete_incoming(&pools.id, received).await.unwrap();
        assert_same(
            (&sent, sent_format),
            (&pools.volume(to.as_ref()), to.format()),
        );

        // A crash before the received file is removed.
        let again = to.open_incoming(&pools.id).await;
        assert!(matches!(again, Err(StorageError::VolumeExists(_))));
        fs::write(&incoming, "received").unwrap();
        let to = reopen("qemu-img");
        assert!(!incoming.exists());
        to.complete_incoming(&pools.id, received).await.unwrap();
        assert_same(
            (&sent, sent_format),
            (&pools.volume(to.as_ref()), to.format()),
        );

        // Canceled while the tool writes.
        to.ensure_volume_absent(&pools.id).await.unwrap();
        pools.copy(from, to.as_ref()).await;
        fs::write(&unfinished, "part").unwrap();
        to.ensure_incoming_absent(&pools.id).await.unwrap();
        assert!(!unfinished.exists() && !incoming.exists());
        from.ensure_volume_absent(&pools.id).await.unwrap();
        pools.id = volume_id("root");
    }
}

#[tokio::test]
async fn a_received_volume_that_refers_to_other_files_or_is_too_large_is_not_converted() {
    let name =
        "kinds::a_received_volume_that_refers_to_other_files_or_is_too_large_is_not_converted";
    let Some(path) = inside(name, "xfs") else {
        return;
    };
    let pools = Pools::new(&path).await;
    let to = &pools.reflink;
    let secret = path.join("secret");
    fs::write(&secret, vec![b'x'; 256 << 10]).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let incoming = path.join(format!("main/volumes/.incoming-{}", pools.id));
    let backing = format!("backing_file={},backing_fmt=raw", secret.display());
    let data = format!("data_file={},data_file_raw=on", secret.display());
    for (options, size, expected) in [
        (backing.as_str(), "256M", "refers to a file other than"),
        (data.as_str(), "256M", "cannot use"),
        ("compat=1.1", "257M", "at most 256M"),
        ("compat=1.1", "32M", "smaller than its image"),
    ] {
        let _absent = fs::remove_file(&incoming);
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-o", options]);
        let created = create.arg(&incoming).arg(size).status().unwrap();
        assert!(created.success(), "{options}");
        fs::write(&secret, vec![b'x'; 256 << 10]).unwrap();
        let refused = to.complete_incoming(&pools.id, pools.received(DiskFormat::Qcow2));
        let error = refused.await.unwrap_err().to_string();
        assert!(error.contains(expected), "{options}: {error}");
        assert_eq!(to.volumes().await.unwrap(), []);
        assert_eq!(
            to.incoming().await.unwrap(),
            std::slice::from_ref(&pools.id)
        );
    }
    fs::write(&incoming, "not a disk").unwrap();
    let refused = to.complete_incoming(&pools.id, pools.received(DiskFormat::Qcow2));
    assert!(refused.await.is_err());

    // The contents of a raw volume are no header, whatever they are.
    let to = &pools.qcow2;
    let incoming = path.join(format!("other/volumes/.incoming-{}", pools.id));
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-o", &backing]);
    assert!(create.arg(&incoming).arg("1M").status().unwrap().success());
    let refused = to.complete_incoming(&pools.id, pools.received(DiskFormat::Raw));
    let error = refused.await.unwrap_err();
    assert!(
        matches!(error, StorageError::TooSmall { .. }),
        "{error}: the size is that of the file"
    );
    let file = fs::File::options().write(true).open(&incoming).unwrap();
    file.set_len(SIZE.bytes()).unwrap();
    let received = to.complete_incoming(&pools.id, pools.received(DiskFormat::Raw));
    received.await.unwrap();
    let volume = pools.volume(to);
    qemu_io(DiskFormat::Qcow2, "read -P 0 100M 1M", &volume);
    let mut head = Command::new("qemu-img");
    head.args(["info", "-f", "qcow2", "--backing-chain"]);
    let info = head.arg(&volume).output().unwrap();
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(!info.contains("secret"), "{info}");
}

/// Leaves about this many bytes free, which is less than the volume needs, and enough to begin with it.
fn fill_up_to(filler: &Path, free: u64) {
    let file = fs::File::create(filler).unwrap();
    let mut length = 0;
    while nix::fcntl::posix_fallocate(&file, length, 1 << 20).is_ok() {
        length += 1 << 20;
    }
    let length = u64::try_from(length).unwrap();
    file.set_len(length - free).unwrap();
    file.sync_all().unwrap();
}

#[tokio::test]
async fn a_pool_that_fills_up_during_a_conversion_is_named_and_the_received_file_is_kept() {
    let name =
        "kinds::a_pool_that_fills_up_during_a_conversion_is_named_and_the_received_file_is_kept";
    let Some(path) = inside(name, "xfs") else {
        return;
    };
    let mut pools = Pools::new(&path).await;
    let filler = path.join("filler");
    for to_raw in [true, false] {
        let (from, to): (&dyn StoragePool, &dyn StoragePool) = if to_raw {
            (&pools.qcow2, &pools.reflink)
        } else {
            (&pools.reflink, &pools.qcow2)
        };
        let sent = pools.written(from).await;
        qemu_io(from.format(), "write -P 1 100M 30M", &sent);
        pools.copy(from, to).await;
        fill_up_to(&filler, 8 << 20);
        let received = pools.received(from.format());
        let refused = to.complete_incoming(&pools.id, received).await;
        assert!(
            matches!(refused, Err(StorageError::NoSpace { .. })),
            "{refused:?}"
        );
        assert_eq!(to.volumes().await.unwrap(), []);
        fs::remove_file(&filler).unwrap();
        to.complete_incoming(&pools.id, received).await.unwrap();
        assert_same((&sent, from.format()), (&pools.volume(to), to.format()));
        for pool in [from, to] {
            pool.ensure_volume_absent(&pools.id).await.unwrap();
        }
        pools.id = volume_id("root");
    }
}
