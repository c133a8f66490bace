//! Looks for what is on the node and in nobody's list. It is reported and left as it is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use waifud_api::agent::Unclaimed;
use waifud_hypervisor::DomainState;
use waifud_types::InstanceId;

use crate::shared::Shared;
use crate::trouble::Failure;

/// Goes on for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        // Before waifud's list is known, everything would look unclaimed.
        if shared.slice_known.load(Ordering::Relaxed) {
            match look(&shared).await {
                Ok(unclaimed) => shared.reports.unclaimed(unclaimed),
                Err(failure) => tracing::debug!("{}", failure.message),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(shared.settings.timing.sweep) => {}
            () = shared.sweep.notified() => {}
        }
    }
}

async fn look(shared: &Shared) -> Result<Vec<Unclaimed>, Failure> {
    let domains = shared.hypervisor.list().await?;
    let mut volumes = Vec::new();
    for pool in shared.pools.values() {
        volumes.extend(pool.volumes().await?);
    }
    // Read last: what was claimed while the lists were made is claimed.
    let claimed: BTreeSet<InstanceId> = shared
        .table
        .records()
        .iter()
        .filter(|record| record.claimed || record.tombstone.is_some())
        .map(|record| record.id)
        .collect();
    let mut unclaimed: Vec<Unclaimed> = domains
        .into_iter()
        .filter(|domain| !claimed.contains(&domain.id))
        .map(|domain| Unclaimed {
            kind: "domain".to_owned(),
            instance: domain.id,
            name: Some(domain.name),
            volume: None,
            running: matches!(
                domain.state,
                DomainState::Running | DomainState::Paused { .. } | DomainState::ShuttingDown
            ),
        })
        .collect();
    unclaimed.extend(
        volumes
            .into_iter()
            .filter(|volume| !claimed.contains(&volume.id.instance))
            .map(|volume| Unclaimed {
                kind: "volume".to_owned(),
                instance: volume.id.instance,
                name: None,
                volume: Some(volume.id),
                running: false,
            }),
    );
    unclaimed
        .sort_by(|a, b| (a.instance, &a.kind, &a.volume).cmp(&(b.instance, &b.kind, &b.volume)));
    Ok(unclaimed)
}
