//! Tasks that look after what is the whole node's: events, the network, the metadata service, permission to start.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::sleep;
use waifud_hypervisor::{DomainEvent, DomainEventKind};
use waifud_network::NetworkDrift;

use crate::backoff::Backoff;
use crate::instance::steps;
use crate::settings::BootAlone;
use crate::shared::Shared;

/// How long one question for observations may wait for an answer.
const LONG_POLL: Duration = Duration::from_secs(30);

/// Between two answers that are passed on: a guest that asks without end must not have its driver look without end.
const GAP: Duration = Duration::from_millis(200);

/// Passes the hypervisor's events on to drivers.
pub(crate) async fn events(shared: Arc<Shared>, mut events: broadcast::Receiver<DomainEvent>) {
    loop {
        match events.recv().await {
            Ok(event) => match event.kind {
                DomainEventKind::Resync => {
                    shared.signals.nudge_all();
                    shared.sweep.notify_one();
                    shared.facts_check.notify_one();
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
                    shared.sweep.notify_one();
                }
            },
            Err(RecvError::Lagged(_)) => shared.signals.nudge_all(),
            // The hypervisor is gone with the whole agent; the period still looks.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Repairs the network: at the start, on drift, and now and then.
pub(crate) async fn network(shared: Arc<Shared>, mut drift: broadcast::Receiver<NetworkDrift>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, timing.retry_max);
    loop {
        let pause = if shared.table.node().slice.is_none() {
            timing.network
        } else {
            match shared.network.apply(&shared.table, true).await {
                Ok(_) => {
                    backoff.reset();
                    // Whoever waits for its port sees it now.
                    shared.signals.nudge_all();
                    timing.network
                }
                Err(error) => {
                    tracing::warn!("the guests' network: {error}");
                    backoff.pause()
                }
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.network_check.notified() => {}
            seen = drift.recv() => match seen {
                Ok(drift) => {
                    tracing::warn!("the guests' network is put right: {}", drift.what);
                    shared.network.invalidate();
                }
                Err(RecvError::Lagged(_)) => shared.network.invalidate(),
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// Looks at the metadata service, so that a restarted one is told everything again.
pub(crate) async fn metadata(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, timing.metadata);
    let mut told = None;
    loop {
        let pause = match steps::refresh_metadata(&shared).await {
            Ok(()) => {
                if told.take().is_some() {
                    tracing::info!("the metadata service is there");
                    shared.facts_check.notify_one();
                }
                backoff.reset();
                timing.metadata
            }
            Err(failure) => {
                if told.as_ref() != Some(&failure.message) {
                    tracing::warn!(
                        "{}; guests are not started before it is there",
                        failure.message
                    );
                    told = Some(failure.message);
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = shared.metadata_check.notified() => {}
        }
    }
}

/// Listens for what guests do with their documents.
pub(crate) async fn observations(shared: Arc<Shared>) {
    let timing = &shared.settings.timing;
    let mut backoff = Backoff::new(timing.retry_min, timing.metadata);
    let mut after = 0;
    loop {
        let service = shared.metadata.service();
        let Ok(seen) = service.observations(after, LONG_POLL).await else {
            // It may have been restarted: look whether it is another now.
            shared.metadata_check.notify_one();
            sleep(backoff.pause()).await;
            continue;
        };
        backoff.reset();
        if seen.last < after {
            // Another process counts from the beginning; it may have been busy already.
            after = 0;
            shared.metadata_check.notify_one();
            continue;
        }
        after = seen.last;
        for id in shared.metadata.note(&seen.items) {
            shared.signals.nudge(id);
        }
        if !seen.items.is_empty() {
            shared.evidence_check.notify_one();
            sleep(GAP).await;
        }
    }
}

/// Allows guests to be started after a while without waifud, where that is wished.
pub(crate) async fn boot_alone(shared: Arc<Shared>) {
    if let BootAlone::Wait(wait) = shared.settings.boot_alone {
        let mut allowed = shared.start_allowed.subscribe();
        tokio::select! {
            () = sleep(wait) => {
                tracing::warn!("waifud was not heard for {} s; guests are started without it", wait.as_secs());
                shared.start_allowed.send_replace(true);
                shared.signals.nudge_all();
            }
            _ = allowed.wait_for(|allowed| *allowed) => {}
        }
    }
    std::future::pending::<()>().await;
}
