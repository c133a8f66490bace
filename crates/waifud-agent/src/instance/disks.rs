//! An instance's disks on the node: images, volumes and the rescue disk. Each function ensures a state and may be repeated.

use std::collections::BTreeMap;

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::DomainDisk;
use waifud_storage::StorageError;
use waifud_types::{ByteSize, Digest, InstanceId, Name, VolumeId, VolumeSource};

use crate::control_link::record::Memory;
use crate::failpoints;
use crate::instance::failure::Failure;
use crate::instance::rescue;
use crate::shared::Shared;

/// The files or block devices of the ensured disks.
pub(crate) type Disks = BTreeMap<Name, VolumeSource>;

/// Imports the image into every pool that a disk uses. May be dropped at any point.
pub(crate) async fn ensure_image(
    shared: &Shared,
    want: &AgentInstance,
    progress: impl Fn(u8) + Send + Copy,
) -> Result<(), Failure> {
    for (name, image, size) in rescue::images(want) {
        let pool = shared
            .pool(name)
            .ok_or_else(|| Failure::lasting(format!("this node has no pool {name}")))?;
        if !pool.has_image(image).await? {
            shared
                .instances
                .images
                .ensure(pool, image, size, progress)
                .await?;
        }
    }
    Ok(())
}

/// Clones the disks, and records that they were created.
pub(crate) async fn ensure_volumes(
    shared: &Shared,
    want: &AgentInstance,
    memory: &Memory,
) -> Result<Disks, Failure> {
    let mut disks = Disks::new();
    for disk in &want.spec.disks {
        let pool = shared
            .pool(&disk.pool)
            .ok_or_else(|| Failure::lasting(format!("this node has no pool {}", disk.pool)))?;
        let id = VolumeId {
            instance: want.id,
            disk: disk.name.clone(),
        };
        let source = failpoints::VOLUME
            .around(pool.ensure_volume(&id, want.spec.image, disk.size_bytes))
            .await?;
        disks.insert(disk.name.clone(), source);
    }
    shared.table.remember(want.id, |memory| {
        memory
            .disks
            .created
            .extend(want.spec.disks.iter().map(|disk| disk.name.clone()));
        memory.disks.sizes = sizes(want);
    })?;
    ensure_rescue_disk(shared, want, memory, &mut disks).await?;
    Ok(disks)
}

/// The desired sizes of the disks.
pub(crate) fn sizes(want: &AgentInstance) -> BTreeMap<Name, ByteSize> {
    let disks = want.spec.disks.iter();
    disks.map(|d| (d.name.clone(), d.size_bytes)).collect()
}

/// Grows the disks of a running guest through its QEMU. No other process may change an image in use.
pub(crate) async fn grow_disks(shared: &Shared, want: &AgentInstance) -> Result<(), Failure> {
    for disk in &want.spec.disks {
        let size = disk.size_bytes;
        let grown = shared
            .hypervisor
            .ensure_disk_size(want.id, &disk.name, size);
        failpoints::GROW.around(grown).await?;
    }
    shared
        .table
        .remember(want.id, |memory| memory.disks.sizes = sizes(want))?;
    Ok(())
}

/// An ensured disk as the domain spec has it.
async fn domain_disk(
    shared: &Shared,
    id: InstanceId,
    name: &Name,
    pool: &Name,
    image: Digest,
    disks: &Disks,
) -> Result<DomainDisk, Failure> {
    let source = disks.get(name).cloned();
    let source = source.ok_or_else(|| Failure::passing(format!("disk {name} is not ready yet")))?;
    let pool = shared
        .pool(pool)
        .ok_or_else(|| Failure::lasting(format!("this node has no pool {pool}")))?;
    let volume = VolumeId {
        instance: id,
        disk: name.clone(),
    };
    Ok(DomainDisk {
        name: name.clone(),
        source,
        format: pool.format(),
        backing: pool.backing(&volume, image).await?,
    })
}

/// Creates the rescue disk during a rescue, and deletes it otherwise. The instance must be off.
async fn ensure_rescue_disk(
    shared: &Shared,
    want: &AgentInstance,
    memory: &Memory,
    disks: &mut Disks,
) -> Result<(), Failure> {
    let disk = rescue::disk_name()?;
    let wanted = want.rescue_image.as_ref();
    if wanted.is_none() && !memory.disks.created.contains(&disk) {
        return Ok(());
    }
    let Some(pool) = rescue::pool(want).and_then(|name| shared.pool(name)) else {
        return Err(Failure::lasting(
            "the instance has no disk to rescue".to_owned(),
        ));
    };
    let id = VolumeId {
        instance: want.id,
        disk: disk.clone(),
    };
    let Some(image) = wanted else {
        pool.ensure_volume_absent(&id).await?;
        shared.table.remember(want.id, |memory| {
            memory.disks.created.remove(&disk);
        })?;
        return Ok(());
    };
    // Recorded first, so that a disk created before a crash is deleted later.
    shared.table.remember(want.id, |memory| {
        memory.disks.created.insert(disk.clone());
    })?;
    let size = image.virtual_size_bytes.max(rescue::MIN_SIZE);
    let mut source = pool.ensure_volume(&id, image.digest, size).await?;
    if let Err(StorageError::OtherImage { .. }) = pool.backing(&id, image.digest).await {
        // It belongs to an earlier rescue with another image.
        pool.ensure_volume_absent(&id).await?;
        source = pool.ensure_volume(&id, image.digest, size).await?;
    }
    disks.insert(disk, source);
    Ok(())
}

/// The rescue disk as the domain spec has it.
async fn rescue_domain_disk(
    shared: &Shared,
    want: &AgentInstance,
    disks: &Disks,
) -> Result<Option<DomainDisk>, Failure> {
    let Some(image) = &want.rescue_image else {
        return Ok(None);
    };
    let pool =
        rescue::pool(want).ok_or_else(|| Failure::lasting("the instance has no disk to rescue"))?;
    domain_disk(
        shared,
        want.id,
        &rescue::disk_name()?,
        pool,
        image.digest,
        disks,
    )
    .await
    .map(Some)
}

/// Every disk of the domain, in boot order: the rescue disk first, if there is one.
pub(crate) async fn domain_disks(
    shared: &Shared,
    want: &AgentInstance,
    disks: &Disks,
) -> Result<Vec<DomainDisk>, Failure> {
    let mut all = Vec::new();
    all.extend(rescue_domain_disk(shared, want, disks).await?);
    for disk in &want.spec.disks {
        let image = want.spec.image;
        all.push(domain_disk(shared, want.id, &disk.name, &disk.pool, image, disks).await?);
    }
    Ok(all)
}
