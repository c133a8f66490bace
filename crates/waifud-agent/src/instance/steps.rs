//! The steps of a plan. Each one is an *ensure*: repeating it changes nothing.

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::{DomainSpec, HypervisorError};
use waifud_types::InstanceId;

use crate::control_link::record::{BootMemory, RunMemory, StartMemory, StartedWith};
use crate::failpoints;
use crate::guest::metadata_refresh;
use crate::instance::datasource::Choice;
use crate::instance::failure::Failure;
use crate::interfaces::MetadataError;
use crate::shared::Shared;

/// Writes the disk with the documents if the guest reads them from one, and removes it otherwise.
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
        Some(disk) => shared.instances.files.ensure_seed(want.id, disk).await,
        None => shared.instances.files.ensure_no_seed(want.id).await,
    };
    failpoints::SEED.after();
    written.map_err(|error| {
        Failure::passing(format!(
            "cannot write the disk with the guest's metadata and user-data: {error}"
        ))
    })
}

/// Makes metadatad serve the documents; connects to the metadata service first if needed. May be dropped at any point.
pub(crate) async fn ensure_bundle(shared: &Shared, want: &AgentInstance) -> Result<(), Failure> {
    if shared.metadata.error().is_some()
        || !shared.metadata.is_connected()
        || !shared.metadata.accepts(want)
    {
        metadata_refresh::refresh(shared).await?;
    }
    let memory = shared.memory(want.id);
    let ensured = shared.metadata.ensure(want, &memory).await;
    if let Err(MetadataError::Refused { .. }) = &ensured {
        // It may hold the address for a deleted instance: a check compares its state with the records.
        shared.metadata.request_check();
    }
    Ok(ensured?)
}

/// Defines the domain.
pub(crate) async fn define(shared: &Shared, spec: &DomainSpec) -> Result<(), Failure> {
    failpoints::FILES.before();
    shared
        .instances
        .files
        .ensure(spec.id)
        .await
        .map_err(|error| {
            Failure::passing(format!("cannot create the guest's directories: {error}"))
        })?;
    failpoints::FILES.after();
    shared
        .table
        .remember(spec.id, |memory| memory.defined = true)?;
    let define = shared.hypervisor.ensure_defined(spec);
    Ok(failpoints::DEFINE.around(define).await?)
}

/// Starts or resumes the domain. Rules and documents are checked again here: a guest must not start without them, whatever
/// changed since the planning.
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
                "the metadata service was restarted just now",
            ));
        }
        let now = shared.now();
        shared.metadata.begin_boot(want.id);
        shared.table.remember(want.id, |memory| {
            memory.run = RunMemory::Starting;
            memory.stop_requested = false;
            memory.start = StartMemory {
                started_with: Some(StartedWith::of(want)),
                started_at: Some(now),
                booted_at: None,
                by_disk: choice.because.map(str::to_owned),
            };
            memory.documents = Some(want.bundle.digest);
            memory.boot = BootMemory::default();
        })?;
    }
    let start = shared.hypervisor.ensure_started(want.id);
    failpoints::START.around(start).await?;
    shared.diagnostics.request();
    // From here on, the guest going off ends a run.
    shared.table.remember(want.id, |memory| {
        memory.run = RunMemory::Started;
        memory.stopped_by = None;
    })?;
    Ok(())
}

/// Asks the guest to shut down, and records the request.
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

pub(crate) async fn force_off(shared: &Shared, id: InstanceId) -> Result<(), Failure> {
    let off = shared.hypervisor.ensure_off(id);
    Ok(failpoints::FORCE_OFF.around(off).await?)
}

pub(crate) async fn undefine(shared: &Shared, id: InstanceId) -> Result<(), Failure> {
    let absent = shared.hypervisor.ensure_absent(id);
    Ok(failpoints::UNDEFINE.around(absent).await?)
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
        for received in pool.incoming().await? {
            if received.instance == id {
                pool.ensure_incoming_absent(&received).await?;
            }
        }
    }
    failpoints::FILES_REMOVE.before();
    shared
        .instances
        .files
        .ensure_absent(id)
        .await
        .map_err(|error| Failure::passing(format!("cannot remove the guest's files: {error}")))?;
    failpoints::FILES_REMOVE.after();
    Ok(())
}

/// Makes metadatad release the instance.
pub(crate) async fn release_bundle(shared: &Shared, id: InstanceId) -> Result<(), Failure> {
    Ok(shared.metadata.release(id).await?)
}
