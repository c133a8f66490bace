//! Finds unmanaged objects on the node. They are reported and left as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use waifud_api::agent::Unmanaged;
use waifud_api::agent::bounds::UNMANAGED_MAX;
use waifud_hypervisor::DomainState;
use waifud_types::InstanceId;

use crate::control_link::record::InstanceRecord;
use crate::instance::failure::Failure;
use crate::shared::Shared;

/// The maximum size of all documents in one report, in bytes, so that waifud accepts it. Omitted ones follow once others
/// are managed.
const BUNDLES_MAX: usize = 3 << 20;
/// The maximum number of records in one report, for the same reason: each has about 2 KiB.
const RECORDS_MAX: usize = 1024;

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        // Before the slice is known, everything would look unmanaged.
        if let Some(slice) = shared.table.known_slice() {
            match scan(&shared).await {
                // Of the slice before a restore of waifud's database, if that was noticed meanwhile.
                Ok(_) if shared.table.known_slice() != Some(slice) => continue,
                Ok(unmanaged) => shared.reports.unmanaged(unmanaged),
                Err(failure) => tracing::debug!("{}", failure.message),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(shared.settings.timing.sweep) => {}
            () = shared.node_checks.sweep_requested() => {}
        }
    }
}

async fn scan(shared: &Shared) -> Result<Vec<Unmanaged>, Failure> {
    let known: BTreeSet<InstanceId> = shared
        .table
        .records()
        .into_iter()
        .filter(InstanceRecord::is_known)
        .map(|record| record.id)
        .collect();
    let domains = shared.hypervisor.list_except(&known).await?;
    let mut volumes = Vec::new();
    for pool in shared.pools.values() {
        volumes.extend(pool.volumes().await?);
    }
    // Read last, so that instances added while the lists were made count as managed.
    let records: BTreeMap<InstanceId, InstanceRecord> = shared
        .table
        .records()
        .into_iter()
        .map(|record| (record.id, record))
        .collect();
    let managed = |id| records.get(&id).is_some_and(InstanceRecord::is_known);
    let entry = |kind: &str, instance| Unmanaged {
        kind: kind.to_owned(),
        instance,
        name: None,
        volume: None,
        running: false,
        addresses: Vec::new(),
        record: None,
        bundle: None,
    };
    let mut unmanaged: Vec<Unmanaged> = domains
        .into_iter()
        .filter(|domain| !managed(domain.id))
        .map(|domain| Unmanaged {
            name: Some(domain.name),
            running: matches!(
                domain.state,
                DomainState::Running | DomainState::Paused { .. } | DomainState::ShuttingDown
            ),
            ..entry("domain", domain.id)
        })
        .collect();
    unmanaged.extend(
        volumes
            .into_iter()
            .filter(|volume| !managed(volume.id.instance))
            .map(|volume| Unmanaged {
                volume: Some(volume.id.clone()),
                ..entry("volume", volume.id.instance)
            }),
    );
    unmanaged
        .sort_by(|a, b| (a.instance, &a.kind, &a.volume).cmp(&(b.instance, &b.kind, &b.volume)));
    attach_records(shared, &records, &mut unmanaged);
    if unmanaged.len() > UNMANAGED_MAX {
        // Omitted entries follow once others are managed. Entries with addresses come first, because waifud must not
        // assign those addresses to other instances.
        unmanaged.sort_by_key(|entry| entry.addresses.is_empty());
        unmanaged.truncate(UNMANAGED_MAX);
    }
    Ok(unmanaged)
}

/// Adds the known record and documents to the first entry of each instance.
fn attach_records(
    shared: &Shared,
    records: &BTreeMap<InstanceId, InstanceRecord>,
    unmanaged: &mut [Unmanaged],
) {
    let mut last = None;
    let mut left = BUNDLES_MAX;
    let mut records_left = RECORDS_MAX;
    for entry in unmanaged {
        if last == Some(entry.instance) {
            continue;
        }
        last = Some(entry.instance);
        let record = records.get(&entry.instance);
        let known = record.and_then(|record| Some((record, record.instance.as_ref()?)));
        let Some((record, instance)) = known else {
            continue;
        };
        let nics = record.port_nics().into_iter();
        entry.addresses = nics.filter_map(|port| port.nic.address).collect();
        if records_left == 0 {
            continue;
        }
        records_left -= 1;
        entry.bundle = shared
            .metadata
            .bundle_for_report(instance.bundle.digest)
            .filter(|bytes| bytes.len() <= left)
            .map(|bytes| {
                left -= bytes.len();
                STANDARD.encode(bytes)
            });
        entry.record = Some(Box::new(instance.clone()));
    }
}
