//! Tasks for the whole node: events, the network, the metadata service, permission to start guests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;
use waifud_hypervisor::{DomainEvent, DomainEventKind};
use waifud_network::NetworkDrift;

use crate::backoff::Backoff;
use crate::guest::metadata_refresh;
use crate::network::dns;
use crate::settings::BootAlone;
use crate::shared::Shared;

/// How long one request for observations may wait for an answer.
const LONG_POLL: Duration = Duration::from_secs(30);

/// The minimum time between two batches of observations, so that a guest that sends requests without end does not keep
/// its driver busy.
const GAP: Duration = Duration::from_millis(200);

/// Forwards the hypervisor's events to drivers.
pub(crate) async fn events(shared: Arc<Shared>, mut events: broadcast::Receiver<DomainEvent>) {
    loop {
        match events.recv().await {
            Ok(event) => match event.kind {
                DomainEventKind::Resync => {
                    shared.signals.nudge_all();
                    shared.node_checks.request_sweep();
                    shared.node_checks.request_facts();
                }
                DomainEventKind::AgentChanged => shared.signals.reprobe(event.id),
                DomainEventKind::Rebooted => {
                    shared.metadata.begin_boot(event.id);
                    shared.signals.rebooted(event.id);
                }
                DomainEventKind::Started
                | DomainEventKind::Paused
                | DomainEventKind::Stopped(_) => {
                    shared.signals.nudge(event.id);
                }
                DomainEventKind::Changed => {
                    shared.signals.nudge(event.id);
                    shared.node_checks.request_sweep();
                }
            },
            Err(RecvError::Lagged(_)) => shared.signals.nudge_all(),
            // The agent is stopping. Drivers still observe periodically.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Applies the network at the start, on drift, and periodically.
pub(crate) async fn network(shared: Arc<Shared>, mut drift: broadcast::Receiver<NetworkDrift>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, timing.retry_max);
    let mut drifted = false;
    let mut failed = false;
    loop {
        let pause = if shared.table.node().slice.is_none() {
            timing.network
        } else {
            let applied = shared.network.apply(&shared.table, true).await;
            let changed = drifted || applied.is_err() != failed;
            if changed || dns::has_changed(&shared).await {
                // An overlap of addresses is a condition, for example.
                shared.node_checks.request_facts();
            }
            drifted = false;
            failed = applied.is_err();
            match applied {
                Ok(_) => {
                    backoff.reset();
                    // Drivers that wait for their port can continue.
                    shared.signals.nudge_all();
                    timing.network
                }
                Err(error) => {
                    tracing::warn!("cannot apply the guests' network: {error}");
                    backoff.pause()
                }
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.network.check_requested() => {}
            seen = drift.recv() => match seen {
                Ok(drift) => {
                    tracing::warn!("repairing the guests' network: {}", drift.what);
                    shared.network.invalidate();
                    drifted = true;
                }
                Err(RecvError::Lagged(_)) => shared.network.invalidate(),
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// Applies the fabric at the start, when peers have changed, and periodically: others may have removed its routes, and its
/// process may have ended.
pub(crate) async fn fabric(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let fabric = shared.network.fabric();
    let mut backoff = Backoff::new(timing.retry_min, timing.retry_max);
    let mut logged = None;
    loop {
        let pause = match fabric.apply(&shared.table).await {
            Ok(change) => {
                if logged.take().is_some() || change.conditions || change.fresh {
                    shared.node_checks.request_facts();
                }
                if change.fresh {
                    // A new interface has none of the settings that the guests' network made.
                    shared.network.invalidate();
                }
                if change.fresh || change.paths {
                    shared.network.request_check();
                }
                backoff.reset();
                timing.fabric
            }
            Err(error) => {
                let message = waifud_kit::error::with_causes(&error);
                if logged.as_ref() != Some(&message) {
                    tracing::warn!("cannot connect to the guests of other nodes: {message}");
                    shared.node_checks.request_facts();
                    logged = Some(message);
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = fabric.check_requested() => {}
        }
    }
}

/// Checks the metadata service, so that everything is sent again after its restart.
pub(crate) async fn metadata(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, timing.metadata);
    let mut logged = None;
    loop {
        let pause = match metadata_refresh::refresh(&shared).await {
            Ok(()) => {
                if logged.take().is_some() {
                    tracing::info!("the metadata service is reachable");
                    shared.node_checks.request_facts();
                }
                backoff.reset();
                timing.metadata
            }
            Err(failure) => {
                if logged.as_ref() != Some(&failure.message) {
                    tracing::warn!(
                        "{}; guests are started once it is reachable",
                        failure.message
                    );
                    logged = Some(failure.message);
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.metadata.check_requested() => {}
        }
    }
}

/// Receives observations of what guests do with their documents.
pub(crate) async fn observations(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, timing.metadata);
    let mut after = 0;
    loop {
        let service = shared.metadata.service();
        let Ok(seen) = service.observations(after, LONG_POLL).await else {
            // It may have been restarted, which the check finds out.
            shared.metadata.request_check();
            sleep(backoff.pause()).await;
            continue;
        };
        backoff.reset();
        if seen.last < after {
            // A restarted service counts from the beginning, and may already have observations.
            after = 0;
            shared.metadata.request_check();
            continue;
        }
        after = seen.last;
        for id in shared.metadata.record_observations(&seen.items) {
            shared.signals.nudge(id);
        }
        if !seen.items.is_empty() {
            shared.diagnostics.request();
            sleep(GAP).await;
        }
    }
}

/// Permits starting guests after a time without contact to waifud, if configured.
pub(crate) async fn boot_alone(shared: Arc<Shared>) {
    if let BootAlone::Wait(wait) = shared.settings.boot_alone {
        tokio::select! {
            () = sleep(wait) => {
                if shared.instances.grant_starts_alone() {
                    tracing::warn!("no contact with waifud for {} s; starting guests without it", wait.as_secs());
                    shared.signals.nudge_all();
                } else {
                    tracing::error!("not starting guests: this machine is a copy of its node");
                }
            }
            () = shared.instances.starts_granted() => {}
        }
    }
    std::future::pending::<()>().await;
}
