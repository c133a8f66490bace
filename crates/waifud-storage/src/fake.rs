//! An in-memory pool for tests and simulations. It checks images like the real pool; its volumes are entries in a map.
//!
//! Clones share one state, so images and volumes outlive the handles. Only staged files are real, because downloads
//! write to them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use waifud_kit::fault_injection::Faults;
use waifud_kit::sync::lock;
use waifud_types::{ByteSize, Digest, DiskFormat, Name, PoolKind, VolumeId, VolumeSource, qcow2};

use crate::format::empty_image;
use crate::{ObservedVolume, PoolUsage, ReceivedVolume, StorageError, StoragePool, check_size};

/// The methods of the trait, for which failures can be scripted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "each is the trait's method of that name")]
pub enum Op {
    Usage,
    Images,
    HasImage,
    StagingPath,
    ImportImage,
    EnsureImageAbsent,
    EnsureVolume,
    Volumes,
    EnsureVolumeAbsent,
    OpenVolume,
    OpenIncoming,
    CompleteIncoming,
    Incoming,
    EnsureIncomingAbsent,
}

/// The fake pool; see the module documentation.
#[derive(Clone)]
pub struct FakePool {
    name: Name,
    directory: PathBuf,
    /// Whether volumes are block devices.
    block: bool,
    state: Arc<Mutex<State>>,
    faults: Faults<Op, StorageError>,
}

#[derive(Default)]
struct State {
    /// The virtual size of each image.
    images: BTreeMap<Digest, ByteSize>,
    /// What [`FakePool::open_image`] opens.
    published: BTreeMap<Digest, PathBuf>,
    volumes: BTreeMap<VolumeId, (Digest, ByteSize)>,
    /// The number of each volume's creation.
    numbers: BTreeMap<VolumeId, u64>,
    /// What was written to each volume last.
    marks: BTreeMap<VolumeId, u64>,
    /// The format that each received volume arrived in.
    received: BTreeMap<VolumeId, DiskFormat>,
    /// How many volumes were created.
    created: u64,
    full: bool,
    /// What volumes contain, if it is not what a new one contains.
    contents: Option<PathBuf>,
}

impl State {
    /// Adds a volume that did not exist.
    fn create(&mut self, id: &VolumeId, image: Digest, size: ByteSize, mark: u64) {
        self.created += 1;
        self.numbers.insert(id.clone(), self.created);
        self.marks.insert(id.clone(), mark);
        self.volumes.insert(id.clone(), (image, size));
    }
}

/// Where a volume's file contains what was written last: in the second block of a transfer, so that a transfer can be
/// interrupted before it.
const MARK_AT: usize = 1 << 20;

/// A volume as a test sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeFacts {
    /// Differs from that of an earlier volume with the same id.
    pub number: u64,
    /// Its size.
    pub size: ByteSize,
    /// What was written to it last, with [`FakePool::write`]; 0 if nothing was.
    pub mark: u64,
}

/// The bytes and the digest of a small, valid, empty image. Different seeds make different images.
///
/// Suitable for the fake and for real pools, because tools accept it.
pub fn image_bytes(size: ByteSize, seed: u8) -> (Vec<u8>, Digest) {
    let bytes = empty_image(size, None, &[seed; 8]).unwrap_or_default();
    let digest = Digest::of(&bytes);
    (bytes, digest)
}

impl FakePool {
    /// An empty pool; staged files go to `directory`, which must exist.
    pub fn new(name: Name, directory: impl Into<PathBuf>) -> Self {
        Self {
            name,
            directory: directory.into(),
            block: false,
            state: Arc::default(),
            faults: Faults::default(),
        }
    }

    /// The same pool with block devices as volumes, like a pool of logical volumes. The devices do not exist.
    #[must_use]
    pub fn with_block_devices(mut self) -> Self {
        self.block = true;
        self
    }

    /// Sets the file that every volume contains when it is opened.
    pub fn set_contents(&self, file: impl Into<PathBuf>) {
        self.state().contents = Some(file.into());
    }

    /// Sets the file that is sent as an image, which may contain other bytes than the image.
    pub fn publish(&self, image: Digest, file: impl Into<PathBuf>) {
        self.state().published.insert(image, file.into());
    }

    fn source(&self, id: &VolumeId) -> VolumeSource {
        if self.block {
            VolumeSource::Block(self.directory.join(format!("dev/{id}")))
        } else {
            VolumeSource::File(self.directory.join(format!("{id}.qcow2")))
        }
    }

    /// Puts an image into the pool without a file.
    pub fn add_image(&self, image: Digest, virtual_size: ByteSize) {
        self.state().images.insert(image, virtual_size);
    }

    /// Every volume.
    pub fn volume_facts(&self) -> BTreeMap<VolumeId, VolumeFacts> {
        let state = self.state();
        let facts = |(id, (_, size)): (&VolumeId, &(Digest, ByteSize))| {
            let number = state.numbers.get(id).copied().unwrap_or_default();
            let mark = state.marks.get(id).copied().unwrap_or_default();
            let size = *size;
            (id.clone(), VolumeFacts { number, size, mark })
        };
        state.volumes.iter().map(facts).collect()
    }

    /// Writes to a volume, as a guest does. A copy of the volume contains it, too.
    pub fn write(&self, id: &VolumeId, mark: u64) {
        let mut state = self.state();
        if state.volumes.contains_key(id) {
            state.marks.insert(id.clone(), mark);
        }
    }

    /// The format in which a volume arrived from another node; `None` if it did not.
    pub fn received_format(&self, id: &VolumeId) -> Option<DiskFormat> {
        self.state().received.get(id).copied()
    }

    /// The images in it.
    pub fn image_digests(&self) -> Vec<Digest> {
        self.state().images.keys().copied().collect()
    }

    /// While the pool is full, operations that need space fail with `NoSpace`.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn staged(&self, image: Digest) -> PathBuf {
        self.directory.join(format!("{}.part", image.hex()))
    }

    fn incoming_path(&self, id: &VolumeId) -> PathBuf {
        self.directory.join(format!(".incoming-{id}"))
    }

    fn check_space(&self) -> Result<(), StorageError> {
        if self.state().full {
            Err(StorageError::NoSpace {
                pool: self.name.clone(),
            })
        } else {
            Ok(())
        }
    }

    fn import(&self, image: Digest, staged: &Path) -> Result<(), StorageError> {
        let bytes = std::fs::read(staged).map_err(|source| io_error("read", staged, source))?;
        let actual = Digest::of(&bytes);
        if actual != image {
            return Err(StorageError::DigestMismatch {
                expected: image,
                actual,
            });
        }
        let header = qcow2::parse(&bytes).map_err(StorageError::BadImage)?;
        self.check_space()?;
        self.add_image(image, header.virtual_size);
        Ok(())
    }
}

/// The beginning of a file, with the mark. Disks that benches send are large.
fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    const MARKED: u64 = (MARK_AT + size_of::<u64>()) as u64;
    let mut bytes = Vec::new();
    File::open(path)?.take(MARKED).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn io_error(operation: &'static str, path: &Path, source: std::io::Error) -> StorageError {
    StorageError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

impl std::ops::Deref for FakePool {
    type Target = Faults<Op, StorageError>;

    /// Faults are scripted on the fake itself.
    fn deref(&self) -> &Self::Target {
        &self.faults
    }
}

#[async_trait]
impl StoragePool for FakePool {
    fn name(&self) -> &Name {
        &self.name
    }

    fn kind(&self) -> PoolKind {
        PoolKind::Other("fake".to_owned())
    }

    fn format(&self) -> DiskFormat {
        if self.block {
            DiskFormat::Raw
        } else {
            DiskFormat::Qcow2
        }
    }

    async fn usage(&self) -> Result<PoolUsage, StorageError> {
        self.faults.pass(Op::Usage).await?;
        let size = ByteSize::gib(100);
        let full = self.state().full;
        Ok(PoolUsage {
            size,
            used: if full { size } else { ByteSize::gib(1) },
            health: "ok".to_owned(),
        })
    }

    async fn images(&self) -> Result<Vec<Digest>, StorageError> {
        self.faults.pass(Op::Images).await?;
        Ok(self.state().images.keys().copied().collect())
    }

    async fn has_image(&self, image: Digest) -> Result<bool, StorageError> {
        self.faults.pass(Op::HasImage).await?;
        Ok(self.state().images.contains_key(&image))
    }

    async fn staging_path(&self, image: Digest) -> Result<PathBuf, StorageError> {
        self.faults.pass(Op::StagingPath).await?;
        Ok(self.staged(image))
    }

    async fn import_image(&self, image: Digest) -> Result<(), StorageError> {
        self.faults.pass(Op::ImportImage).await?;
        let staged = self.staged(image);
        if self.state().images.contains_key(&image) {
            let _may_be_absent = std::fs::remove_file(&staged);
            return Ok(());
        }
        let outcome = self.import(image, &staged);
        if outcome
            .as_ref()
            .is_err_and(|error| !error.is_caused_by_image())
        {
            return outcome;
        }
        let _may_be_absent = std::fs::remove_file(&staged);
        outcome
    }

    async fn open_image(&self, image: Digest) -> Result<Option<File>, StorageError> {
        let path = self.state().published.get(&image).cloned();
        let open =
            |path: PathBuf| File::open(&path).map_err(|error| io_error("open", &path, error));
        path.map(open).transpose()
    }

    async fn ensure_image_absent(&self, image: Digest) -> Result<(), StorageError> {
        self.faults.pass(Op::EnsureImageAbsent).await?;
        let mut state = self.state();
        if state.volumes.values().any(|(of, _)| *of == image) {
            return Err(StorageError::Tool {
                tool: "the pool",
                message: "volumes need the image".to_owned(),
            });
        }
        state.images.remove(&image);
        Ok(())
    }

    async fn ensure_volume(
        &self,
        id: &VolumeId,
        image: Digest,
        size: ByteSize,
    ) -> Result<VolumeSource, StorageError> {
        self.faults.pass(Op::EnsureVolume).await?;
        let source = self.source(id);
        let existing = self.state().volumes.get(id).copied();
        match existing {
            Some((_, now)) if now >= size => {}
            Some((of, _)) => {
                self.check_space()?;
                self.state().volumes.insert(id.clone(), (of, size));
            }
            None => {
                let minimum = self
                    .state()
                    .images
                    .get(&image)
                    .copied()
                    .ok_or(StorageError::NoImage(image))?;
                check_size(size, minimum)?;
                self.check_space()?;
                self.state().create(id, image, size, 0);
            }
        }
        Ok(source)
    }

    async fn backing(&self, id: &VolumeId, image: Digest) -> Result<Option<PathBuf>, StorageError> {
        let of = self.state().volumes.get(id).map(|(of, _)| *of);
        if of.is_some_and(|of| of != image) {
            return Err(StorageError::OtherImage {
                volume: id.clone(),
                image,
            });
        }
        if self.block {
            return Ok(None);
        }
        Ok(of.map(|of| self.directory.join(format!("{}.qcow2", of.hex()))))
    }

    async fn volumes(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        self.faults.pass(Op::Volumes).await?;
        let state = self.state();
        let observed = |(id, (_, size)): (&VolumeId, &(Digest, ByteSize))| ObservedVolume {
            id: id.clone(),
            size: Some(*size),
        };
        Ok(state.volumes.iter().map(observed).collect())
    }

    async fn ensure_volume_absent(&self, id: &VolumeId) -> Result<(), StorageError> {
        self.faults.pass(Op::EnsureVolumeAbsent).await?;
        let _may_be_absent = std::fs::remove_file(self.incoming_path(id));
        self.state().volumes.remove(id);
        Ok(())
    }

    async fn open_volume(&self, id: &VolumeId) -> Result<File, StorageError> {
        self.faults.pass(Op::OpenVolume).await?;
        let volume = self.state().volumes.get(id).copied();
        let path = self.directory.join(format!("{id}.contents"));
        let Some((image, size)) = volume else {
            return Err(io_error("open", &path, std::io::ErrorKind::NotFound.into()));
        };
        let contents = self.state().contents.clone();
        if let Some(contents) = contents {
            return File::open(&contents).map_err(|source| io_error("open", &contents, source));
        }
        // What a volume of the same image and size contains.
        let (mut bytes, _) = image_bytes(size, image.bytes()[0]);
        let mark = self.state().marks.get(id).copied().unwrap_or_default();
        if mark > 0 {
            bytes.resize(MARK_AT, 0);
            bytes.extend(mark.to_be_bytes());
        }
        let write = || {
            std::fs::write(&path, bytes)?;
            let file = File::open(&path)?;
            // It is not left behind: the volume is an entry of the map.
            std::fs::remove_file(&path)?;
            Ok(file)
        };
        write().map_err(|source| io_error("open", &path, source))
    }

    async fn open_incoming(&self, id: &VolumeId) -> Result<File, StorageError> {
        self.faults.pass(Op::OpenIncoming).await?;
        if self.state().volumes.contains_key(id) {
            return Err(StorageError::VolumeExists(id.clone()));
        }
        self.check_space()?;
        let path = self.incoming_path(id);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        options
            .open(&path)
            .map_err(|source| io_error("open", &path, source))
    }

    /// The files of all fake volumes have the same format.
    async fn complete_incoming(
        &self,
        id: &VolumeId,
        received: ReceivedVolume,
    ) -> Result<(), StorageError> {
        self.faults.pass(Op::CompleteIncoming).await?;
        let path = self.incoming_path(id);
        match (path.exists(), self.state().volumes.contains_key(id)) {
            (false, true) => return Ok(()),
            (true, true) => return Err(StorageError::VolumeExists(id.clone())),
            (_, false) => {}
        }
        let bytes = head(&path).map_err(|source| io_error("open", &path, source))?;
        let header = qcow2::parse(&bytes).map_err(StorageError::BadImage)?;
        std::fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?;
        let mark = bytes.get(MARK_AT..).and_then(|end| end.first_chunk());
        let mark = mark.map_or(0, |mark| u64::from_be_bytes(*mark));
        let (image, size) = (received.image, header.virtual_size);
        let mut state = self.state();
        state.create(id, image, size, mark);
        state.received.insert(id.clone(), received.format);
        Ok(())
    }

    async fn incoming(&self) -> Result<Vec<VolumeId>, StorageError> {
        self.faults.pass(Op::Incoming).await?;
        let entries = std::fs::read_dir(&self.directory)
            .map_err(|source| io_error("list", &self.directory, source))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<VolumeId> = names
            .filter_map(|name| name.strip_prefix(".incoming-")?.parse().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    async fn ensure_incoming_absent(&self, id: &VolumeId) -> Result<(), StorageError> {
        self.faults.pass(Op::EnsureIncomingAbsent).await?;
        let _may_be_absent = std::fs::remove_file(self.incoming_path(id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn the_fake_passes_the_conformance_tests() {
        let directory = tempfile::tempdir().unwrap();
        let pool = FakePool::new("main".parse().unwrap(), directory.path());
        conformance::run_all(&pool).await.unwrap();
    }

    #[tokio::test]
    async fn a_fake_with_block_devices_passes_the_conformance_tests_and_has_raw_volumes() {
        let directory = tempfile::tempdir().unwrap();
        let pool = FakePool::new("main".parse().unwrap(), directory.path()).with_block_devices();
        conformance::run_all(&pool).await.unwrap();
        let (_, image) = image_bytes(ByteSize::mib(1), 1);
        pool.add_image(image, ByteSize::mib(1));
        let id = conformance::volume_id("root");
        let source = pool
            .ensure_volume(&id, image, ByteSize::mib(2))
            .await
            .unwrap();
        assert!(matches!(source, VolumeSource::Block(_)), "{source:?}");
        assert_eq!(pool.format(), DiskFormat::Raw);
        assert_eq!(pool.backing(&id, image).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_full_pool_refuses_volumes_until_it_has_space() {
        let directory = tempfile::tempdir().unwrap();
        let pool = FakePool::new("main".parse().unwrap(), directory.path());
        let (_, image) = image_bytes(ByteSize::mib(1), 1);
        pool.add_image(image, ByteSize::mib(1));
        let id = conformance::volume_id("root");
        pool.set_full(true);
        let refused = pool.ensure_volume(&id, image, ByteSize::mib(2)).await;
        assert!(matches!(refused, Err(StorageError::NoSpace { .. })));
        pool.set_full(false);
        pool.ensure_volume(&id, image, ByteSize::mib(2))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_volume_that_was_created_again_differs_from_the_former_one() {
        let directory = tempfile::tempdir().unwrap();
        let pool = FakePool::new("main".parse().unwrap(), directory.path());
        let (_, image) = image_bytes(ByteSize::mib(1), 1);
        pool.add_image(image, ByteSize::mib(1));
        let id = conformance::volume_id("root");
        let number = async |size| {
            pool.ensure_volume(&id, image, size).await.unwrap();
            pool.volume_facts()[&id].number
        };
        let first = number(ByteSize::mib(2)).await;
        assert_eq!(number(ByteSize::mib(3)).await, first, "it grew");
        pool.ensure_volume_absent(&id).await.unwrap();
        assert_ne!(number(ByteSize::mib(2)).await, first);
    }

    #[tokio::test]
    async fn what_was_written_to_a_volume_is_in_its_copies() {
        let directory = tempfile::tempdir().unwrap();
        let pool = |name: &str| {
            let directory = directory.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            FakePool::new("main".parse().unwrap(), directory)
        };
        let (from, to) = (pool("from"), pool("to"));
        let (_, image) = image_bytes(ByteSize::mib(1), 1);
        from.add_image(image, ByteSize::mib(1));
        let id = conformance::volume_id("root");
        let size = ByteSize::mib(2);
        from.ensure_volume(&id, image, size).await.unwrap();
        from.write(&id, 7);
        let mut sent = from.open_volume(&id).await.unwrap();
        let mut received = to.open_incoming(&id).await.unwrap();
        std::io::copy(&mut sent, &mut received).unwrap();
        let volume = ReceivedVolume {
            image,
            format: from.format(),
            largest: size,
        };
        to.complete_incoming(&id, volume).await.unwrap();
        let copy = to.volume_facts()[&id];
        assert_eq!((copy.size, copy.mark), (size, 7));
    }
}
