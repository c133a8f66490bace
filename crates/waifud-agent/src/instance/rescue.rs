//! Rescue on the node: which image and firmware an instance boots now, and the disk that it boots them from.
//!
//! The disk is a clone of the rescue image beside the instance's own disks. It is no disk of the spec: when it is lost it
//! is made anew, and when the rescue is over it is thrown away.

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::DomainDisk;
use waifud_storage::StorageError;
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{ByteSize, Digest, Name, VolumeId};

use crate::control_link::record::Memory;
use crate::instance::failure::Failure;
use crate::instance::steps::{self, Disks};
use crate::shared::Shared;

/// The disk's name. Disks of a spec can't have it.
const DISK: &str = "rescue";

/// What a small system has for logs and for what is copied there while mending.
const LEAST: ByteSize = ByteSize::gib(2);

/// How the system that it boots now finds its documents.
pub(crate) fn datasource(want: &AgentInstance) -> Datasource {
    let rescue = want.spec.rescue.as_ref();
    rescue.map_or(want.datasource, |rescue| rescue.datasource)
}

/// What starts the boot loader that it boots now.
pub(crate) fn firmware(want: &AgentInstance) -> Firmware {
    let rescue = want.spec.rescue.as_ref();
    rescue.map_or(want.firmware, |rescue| rescue.firmware)
}

/// The images that it needs, each with its pool and the bytes that a download has.
pub(crate) fn images(want: &AgentInstance) -> Vec<(&Name, Digest, ByteSize)> {
    let own = want.spec.disks.iter();
    let mut images: Vec<_> = own
        .map(|disk| (&disk.pool, want.spec.image, want.image_size_bytes))
        .collect();
    if let Some((pool, image)) = pool(want).zip(want.rescue_image.as_ref()) {
        images.push((pool, image.digest, image.size_bytes));
    }
    images.sort();
    images.dedup();
    images
}

/// The pool of its disk: that of the instance's first one.
fn pool(want: &AgentInstance) -> Option<&Name> {
    want.spec.disks.first().map(|disk| &disk.pool)
}

fn name() -> Result<Name, Failure> {
    let parsed: Result<Name, _> = DISK.parse();
    parsed.map_err(|error| Failure::lasting(error.to_string()))
}

/// Makes its disk when it is to be rescued, and throws it away when not. Only of an instance that is off.
pub(crate) async fn ensure_disk(
    shared: &Shared,
    want: &AgentInstance,
    memory: &Memory,
    disks: &mut Disks,
) -> Result<(), Failure> {
    let disk = name()?;
    let wanted = want.rescue_image.as_ref();
    if wanted.is_none() && !memory.disks.contains(&disk) {
        return Ok(());
    }
    let Some(pool) = pool(want).and_then(|name| shared.pool(name)) else {
        return Err(Failure::lasting("it has no disk to rescue".to_owned()));
    };
    let id = VolumeId {
        instance: want.id,
        disk: disk.clone(),
    };
    let Some(image) = wanted else {
        pool.ensure_volume_absent(&id).await?;
        shared.table.remember(want.id, |memory| {
            memory.disks.remove(&disk);
        })?;
        return Ok(());
    };
    // Remembered first: what might have been made is known to be thrown away.
    shared.table.remember(want.id, |memory| {
        memory.disks.insert(disk.clone());
    })?;
    let size = image.virtual_size_bytes.max(LEAST);
    let mut path = pool.ensure_volume(&id, image.digest, size).await?;
    if let Err(StorageError::OtherImage { .. }) = pool.backing(&id, image.digest).await {
        // Of another rescue: it is thrown away as at the end of that one.
        pool.ensure_volume_absent(&id).await?;
        path = pool.ensure_volume(&id, image.digest, size).await?;
    }
    disks.insert(disk, path);
    Ok(())
}

/// Its disk as the domain's first, when there is to be one.
pub(crate) async fn domain_disk(
    shared: &Shared,
    want: &AgentInstance,
    disks: &Disks,
) -> Result<Option<DomainDisk>, Failure> {
    let Some(image) = &want.rescue_image else {
        return Ok(None);
    };
    let pool = pool(want).ok_or_else(|| Failure::lasting("it has no disk to rescue"))?;
    steps::domain_disk(shared, want.id, &name()?, pool, image.digest, disks)
        .await
        .map(Some)
}
