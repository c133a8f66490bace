//! Carries out the steps of a plan. Each is an *ensure*: doing it again when it is done changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::{DomainDisk, DomainNic, DomainSpec, HypervisorError};
use waifud_types::spec::NicSpec;
use waifud_types::status::CloudInitStatus;
use waifud_types::template::Datasource;
use waifud_types::{ByteSize, Digest, InstanceId, Name, TapName, VolumeId};

use crate::control_link::record::{Memory, RunMemory, StartedWith};
use crate::failpoints;
use crate::instance::datasource::Choice;
use crate::instance::failure::Failure;
use crate::instance::rescue;
use crate::interfaces::MetadataError;
use crate::network::lan::is_on_lan;
use crate::shared::Shared;

/// Where the disks are that were ensured.
pub(crate) type Disks = BTreeMap<Name, PathBuf>;

/// Gets the image into every pool that a disk lives on. May be dropped at any point.
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
            shared.images.ensure(pool, image, size, progress).await?;
        }
    }
    Ok(())
}

/// Clones the disks, and remembers that they were made.
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
        let path = failpoints::VOLUME
            .around(pool.ensure_volume(&id, want.spec.image, disk.size_bytes))
            .await?;
        disks.insert(disk.name.clone(), path);
    }
    shared.table.remember(want.id, |memory| {
        memory
            .disks
            .extend(want.spec.disks.iter().map(|disk| disk.name.clone()));
        memory.disk_sizes = sizes(want);
    })?;
    rescue::ensure_disk(shared, want, memory, &mut disks).await?;
    Ok(disks)
}

/// Writes the disk with the documents, where the guest reads them from one, and takes it away where not.
pub(crate) async fn ensure_seed(
    shared: &Shared,
    want: &AgentInstance,
    by_disk: bool,
) -> Result<(), Failure> {
    let disk = if by_disk {
        Some(shared.metadata.documents(want).await?.cidata())
    } else {
        None
    };
    failpoints::SEED.before();
    let written = match disk {
        Some(disk) => shared.files.ensure_seed(want.id, disk).await,
        None => shared.files.ensure_no_seed(want.id).await,
    };
    failpoints::SEED.after();
    written.map_err(|error| {
        Failure::passing(format!(
            "the disk with its documents can't be written: {error}"
        ))
    })
}

/// How large the disks should be.
pub(crate) fn sizes(want: &AgentInstance) -> BTreeMap<Name, ByteSize> {
    let disks = want.spec.disks.iter();
    disks.map(|d| (d.name.clone(), d.size_bytes)).collect()
}

/// Grows the disks of a running guest, through its QEMU: no other may touch an image in use.
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
        .remember(want.id, |memory| memory.disk_sizes = sizes(want))?;
    Ok(())
}

/// Has the documents served; brings the way to them up first. May be dropped at any point.
pub(crate) async fn ensure_bundle(shared: &Shared, want: &AgentInstance) -> Result<(), Failure> {
    if shared.metadata.trouble().is_some() || !shared.metadata.is_connected() {
        refresh_metadata(shared).await?;
    }
    let memory = shared.memory(want.id);
    let ensured = shared.metadata.ensure(want, &memory).await;
    if let Err(MetadataError::Refused { .. }) = &ensured {
        // Perhaps it holds the address for an instance that is gone: compare what it holds with the records.
        shared.metadata_check.notify_one();
    }
    Ok(ensured?)
}

/// Looks at the metadata service, and passes on what follows from it.
pub(crate) async fn refresh_metadata(shared: &Shared) -> Result<(), Failure> {
    let refreshed = shared.metadata.refresh(&shared.table).await?;
    if refreshed.fresh_link {
        // The kernel forgets the routes of a link that went away.
        shared.network.invalidate();
        shared.network_check.notify_one();
    }
    if refreshed.changed {
        // What the former process took in and died before saying so, too.
        shared.metadata.tidy(&shared.table);
    }
    if refreshed.changed || refreshed.fresh_link {
        shared.signals.nudge_all();
    }
    if let Err(failure) = release_unnamed(shared).await {
        tracing::debug!("what no record names is still held: {}", failure.message);
    }
    Ok(())
}

/// Has metadatad forget what no record names: the rest of a request that an earlier process sent, or of a database that
/// was lost. A domain without a record is unmanaged and left as it is, with its documents.
async fn release_unnamed(shared: &Shared) -> Result<(), Failure> {
    // Before waifud's list is known, an instance without a record proves nothing.
    if !shared.slice_known.load(Ordering::Relaxed) {
        return Ok(());
    }
    for id in shared.metadata.unnamed(&shared.table) {
        if shared.hypervisor.get(id).await?.is_none() {
            tracing::warn!(instance = %id, "the metadata service holds documents of an instance that is gone; they are removed");
            shared.metadata.release_unnamed(&shared.table, id).await?;
            // Another instance may wait for its address.
            shared.signals.nudge_all();
        }
    }
    Ok(shared.metadata.drop_unnamed_bundles(&shared.table).await?)
}

/// A disk that was ensured, as the domain's.
pub(crate) async fn domain_disk(
    shared: &Shared,
    id: InstanceId,
    name: &Name,
    pool: &Name,
    image: Digest,
    disks: &Disks,
) -> Result<DomainDisk, Failure> {
    let path = disks.get(name).cloned();
    let path = path.ok_or_else(|| Failure::passing(format!("disk {name} is not ready yet")))?;
    let pool = shared
        .pool(pool)
        .ok_or_else(|| Failure::lasting(format!("this node has no pool {pool}")))?;
    let volume = VolumeId {
        instance: id,
        disk: name.clone(),
    };
    Ok(DomainDisk {
        name: name.clone(),
        path,
        format: pool.format(),
        backing: pool.backing(&volume, image).await?,
    })
}

/// The domain's spec.
pub(crate) async fn domain_spec(
    shared: &Shared,
    want: &AgentInstance,
    datasource: Datasource,
    disks: &Disks,
) -> Result<DomainSpec, Failure> {
    let kind = shared.hypervisor_kind().await?;
    let nics = (0..)
        .zip(&want.spec.nics)
        .map(|(index, nic)| domain_nic(shared, want, index, nic))
        .collect::<Result<_, _>>()?;
    let mut domain_disks = Vec::new();
    domain_disks.extend(rescue::domain_disk(shared, want, disks).await?);
    for disk in &want.spec.disks {
        let image = want.spec.image;
        domain_disks
            .push(domain_disk(shared, want.id, &disk.name, &disk.pool, image, disks).await?);
    }
    Ok(DomainSpec {
        id: want.id,
        name: want.name.clone(),
        epoch: want.epoch,
        cpus: want.spec.cpus,
        memory: want.spec.memory_bytes,
        kind,
        firmware: rescue::firmware(want),
        datasource,
        disks: domain_disks,
        seed: (datasource == Datasource::Cidata).then(|| shared.files.seed(want.id)),
        nics,
        console_log: shared.files.console_log(want.id),
        console_socket: shared.files.console_socket(want.id),
        vnc_socket: shared.files.vnc_socket(want.id),
    })
}

/// The domain's nic: on the node's own bridge, or on the host's bridge that the nic's network names. What the MTU is
/// there is the host's business.
fn domain_nic(
    shared: &Shared,
    want: &AgentInstance,
    index: usize,
    nic: &NicSpec,
) -> Result<DomainNic, Failure> {
    let (bridge, mtu) = if is_on_lan(nic) {
        let bridge = want.bridges.get(&nic.network).cloned().ok_or_else(|| {
            Failure::lasting(format!(
                "waifud named no bridge for network {}",
                nic.network
            ))
        })?;
        (bridge, None)
    } else {
        (shared.settings.bridge.clone(), Some(shared.settings.mtu))
    };
    Ok(DomainNic {
        tap: TapName::of(want.id, index),
        mac: nic.mac,
        bridge,
        mtu,
        isolated: !is_on_lan(nic),
    })
}

/// Defines the domain.
pub(crate) async fn define(shared: &Shared, spec: &DomainSpec) -> Result<(), Failure> {
    failpoints::FILES.before();
    shared.files.ensure(spec.id).await.map_err(|error| {
        Failure::passing(format!("the guest's directories can't be made: {error}"))
    })?;
    failpoints::FILES.after();
    shared
        .table
        .remember(spec.id, |memory| memory.defined = true)?;
    let define = shared.hypervisor.ensure_defined(spec);
    Ok(failpoints::DEFINE.around(define).await?)
}

/// Starts the domain, or resumes it. The gates are looked at once more, now: a guest without rules or documents must
/// not come up, whatever changed since the plan was made.
pub(crate) async fn start(
    shared: &Shared,
    want: &AgentInstance,
    choice: Choice,
    resume: bool,
) -> Result<(), Failure> {
    if !resume {
        shared.network.ensure(&shared.table, want.id).await?;
        if choice.datasource.needs_metadata()
            && !shared.metadata.serves(want, &shared.memory(want.id))
        {
            return Err(Failure::passing(
                "the metadata service was restarted a moment ago",
            ));
        }
        let now = shared.now();
        shared.metadata.begin_boot(want.id);
        shared.table.remember(want.id, |memory| {
            memory.run = RunMemory::Starting;
            memory.stop_requested = false;
            memory.started_with = Some(StartedWith::of(want));
            memory.started_at = Some(now);
            memory.booted_at = None;
            memory.documents = Some(want.bundle.digest);
            memory.ready_by = None;
            memory.phoned_home_at = None;
            memory.cloud_init = CloudInitStatus::default();
            memory.by_disk = choice.because.map(str::to_owned);
        })?;
    }
    let start = shared.hypervisor.ensure_started(want.id);
    failpoints::START.around(start).await?;
    shared.evidence_check.notify_one();
    // From here on, its end is the end of a run.
    shared.table.remember(want.id, |memory| {
        memory.run = RunMemory::Started;
        memory.stopped_by = None;
    })?;
    Ok(())
}

/// Asks the guest to shut down, and remembers having asked.
pub(crate) async fn request_shutdown(shared: &Shared, id: InstanceId) -> Result<(), Failure> {
    shared
        .table
        .remember(id, |memory| memory.stop_requested = true)?;
    let ask = shared.hypervisor.request_shutdown(id);
    match failpoints::SHUTDOWN.around(ask).await {
        Err(HypervisorError::NotFound(_)) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Destroys every volume of the instance in every pool, and its other files.
pub(crate) async fn destroy_volumes(shared: &Shared, id: InstanceId) -> Result<(), Failure> {
    for pool in shared.pools.values() {
        for volume in pool.volumes().await? {
            if volume.id.instance == id {
                failpoints::VOLUME_DESTROY
                    .around(pool.ensure_volume_absent(&volume.id))
                    .await?;
            }
        }
    }
    failpoints::FILES_REMOVE.before();
    shared.files.ensure_absent(id).await.map_err(|error| {
        Failure::passing(format!("the guest's files can't be removed: {error}"))
    })?;
    failpoints::FILES_REMOVE.after();
    Ok(())
}

/// Has metadatad forget the instance.
pub(crate) async fn release_bundle(shared: &Shared, id: InstanceId) -> Result<(), Failure> {
    Ok(shared.metadata.release(id).await?)
}
