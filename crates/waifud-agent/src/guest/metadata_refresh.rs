//! Refreshes the connection to the metadata service, and applies what follows from a changed service.

use crate::instance::failure::Failure;
use crate::shared::Shared;

/// Refreshes, and wakes what depends on the outcome.
pub(crate) async fn refresh(shared: &Shared) -> Result<(), Failure> {
    let before = shared
        .metadata
        .redis_trouble()
        .map(|trouble| trouble.reason);
    let refreshed = shared.metadata.refresh(&shared.table).await?;
    if shared
        .metadata
        .redis_trouble()
        .map(|trouble| trouble.reason)
        != before
    {
        shared.node_checks.request_facts();
    }
    if refreshed.fresh_link {
        // The kernel removed the routes of the former link.
        shared.network.invalidate();
        shared.network.request_check();
    }
    // Of documents that were edited before metadatad had them, or that were fetched for an instance that is gone by now.
    shared.metadata.remove_unused_bundles(&shared.table);
    if refreshed.changed || refreshed.fresh_link {
        shared.signals.nudge_all();
    }
    if let Err(error) = shared.metadata.copy_bundles(&shared.table).await {
        tracing::debug!("cannot copy bundles from the metadata service yet: {error}");
    }
    if let Err(failure) = release_unknown(shared).await {
        tracing::debug!(
            "the metadata service still has metadata of deleted instances: {}",
            failure.message
        );
    }
    Ok(())
}

/// Makes metadatad release instances without a record, which remain from a request of an earlier process or from a lost
/// database. A domain without a record is unmanaged and is left as it is, with its documents.
async fn release_unknown(shared: &Shared) -> Result<(), Failure> {
    // Before the slice is known, an absent record proves nothing.
    if !shared.table.is_slice_known() {
        return Ok(());
    }
    for id in shared.metadata.unknown_instances(&shared.table) {
        if shared.hypervisor.get(id).await?.is_none() {
            tracing::warn!(instance = %id, "removing the metadata of a deleted instance from the metadata service");
            shared.metadata.release_unknown(&shared.table, id).await?;
            // Another instance may wait for its address.
            shared.signals.nudge_all();
        }
    }
    Ok(shared.metadata.drop_unused_bundles(&shared.table).await?)
}
