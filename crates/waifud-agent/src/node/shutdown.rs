//! Stops a node's guests when their host shuts down: cleanly, the lowest priority first.
//!
//! It needs only the hypervisor and, for priorities, the agent's records, and works with or without a running agent.
//! [`HostPower`](crate::interfaces::HostPower) tells the agent beforehand that the host is shutting down, so that these
//! guests start again with their host.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};
use waifud_hypervisor::{DomainState, Hypervisor, HypervisorError, ObservedDomain};
use waifud_types::InstanceId;

use crate::control_link::record::InstanceRecord;

/// Between two checks of a guest that was asked to shut down.
const CHECK_PERIOD: Duration = Duration::from_millis(250);

/// The outcome for one guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// The instance.
    pub id: InstanceId,
    /// The instance's name.
    pub name: String,
    /// The instance's priority: higher ones stop later.
    pub priority: i32,
    /// Whether the guest shut itself down; otherwise it was forced off.
    pub clean: bool,
    /// Why forcing it off failed.
    pub error: Option<String>,
}

/// The priorities of the records in an agent's state directory. A record that cannot be read is skipped, which means
/// priority 0: a shutdown cannot wait for a repair.
pub fn priorities(state_dir: &Path) -> BTreeMap<InstanceId, i32> {
    let Ok(entries) = std::fs::read_dir(state_dir.join("records")) else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let json = path.extension().is_some_and(|e| e == "json");
            let bytes = std::fs::read(&path).ok().filter(|_| json)?;
            let record: InstanceRecord = serde_json::from_slice(&bytes).ok()?;
            Some((record.id, record.instance?.spec.priority))
        })
        .collect()
}

/// Groups of guests that stop together, in order.
fn waves(
    running: Vec<ObservedDomain>,
    priorities: &BTreeMap<InstanceId, i32>,
) -> Vec<(i32, Vec<ObservedDomain>)> {
    let mut waves: BTreeMap<i32, Vec<ObservedDomain>> = BTreeMap::new();
    for domain in running {
        let priority = priorities.get(&domain.id).copied().unwrap_or(0);
        waves.entry(priority).or_default().push(domain);
    }
    waves.into_iter().collect()
}

fn is_on(state: DomainState) -> bool {
    !matches!(state, DomainState::Off(_) | DomainState::Crashed)
}

/// waifud's running guests.
pub async fn running(hypervisor: &dyn Hypervisor) -> Result<Vec<ObservedDomain>, HypervisorError> {
    let mut running = hypervisor.list().await?;
    running.retain(|domain| is_on(domain.state));
    Ok(running)
}

/// Stops every guest of waifud. Each group has `grace` to shut down; the remaining guests are then forced off.
pub async fn stop_guests(
    hypervisor: &dyn Hypervisor,
    priorities: &BTreeMap<InstanceId, i32>,
    grace: Duration,
) -> Result<Vec<Stopped>, HypervisorError> {
    let running = running(hypervisor).await?;
    let mut stopped = Vec::new();
    for (priority, wave) in waves(running, priorities) {
        tracing::info!(priority, guests = wave.len(), "asked to shut down");
        let each = wave
            .into_iter()
            .map(|domain| stop_one(hypervisor, domain, priority, grace));
        stopped.extend(join_all(each).await);
    }
    Ok(stopped)
}

async fn stop_one(
    hypervisor: &dyn Hypervisor,
    domain: ObservedDomain,
    priority: i32,
    grace: Duration,
) -> Stopped {
    let id = domain.id;
    // A paused guest does not receive the request.
    let can_receive = !matches!(domain.state, DomainState::Paused { .. });
    let clean = can_receive && shuts_down(hypervisor, id, grace).await;
    let error = if clean {
        None
    } else {
        tracing::warn!(instance = %id, name = domain.name, "the guest did not shut down in time; forcing it off");
        hypervisor.ensure_off(id).await.err()
    };
    tracing::info!(instance = %id, name = domain.name, priority, clean, "the guest is off");
    Stopped {
        id,
        name: domain.name,
        priority,
        clean,
        error: error.map(|error| waifud_kit::error::with_causes(&error)),
    }
}

/// Asks repeatedly, and checks until the guest is off or the time is over.
async fn shuts_down(hypervisor: &dyn Hypervisor, id: InstanceId, grace: Duration) -> bool {
    let end = Instant::now() + grace;
    let mut ask = Instant::now();
    loop {
        let now = Instant::now();
        if now >= end {
            return false;
        }
        if now >= ask {
            // A guest that was asked while it booted may have missed the request.
            if let Err(error) = hypervisor.request_shutdown(id).await {
                tracing::warn!(instance = %id, "cannot ask the guest to shut down: {error}");
            }
            ask = now + grace / 4;
        }
        match hypervisor.get(id).await {
            Ok(None) => return true,
            Ok(Some(seen)) if !is_on(seen.state) => return true,
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!(instance = %id, "cannot query the guest's state: {error}"),
        }
        sleep(CHECK_PERIOD.min(end.saturating_duration_since(Instant::now()))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_hypervisor::conformance::diskless_spec;
    use waifud_hypervisor::fake::FakeHypervisor;
    use waifud_hypervisor::{DomainEventKind, OffReason};

    async fn running(fake: &FakeHypervisor, name: &str) -> InstanceId {
        let spec = diskless_spec(InstanceId::generate(), name);
        fake.ensure_defined(&spec).await.unwrap();
        fake.ensure_started(spec.id).await.unwrap();
        spec.id
    }

    #[tokio::test]
    async fn the_lowest_priority_stops_first_and_unresponsive_guests_are_forced_off() {
        let fake = FakeHypervisor::new();
        let db = running(&fake, "db").await;
        let web = running(&fake, "web").await;
        let deaf = running(&fake, "deaf").await;
        let halted = running(&fake, "halted").await;
        fake.set_ignores_shutdown(deaf, true);
        fake.pause(halted, true);
        let priorities = BTreeMap::from([(db, 10), (deaf, -5)]);
        let mut events = fake.events();
        let grace = Duration::from_millis(600);
        let stopped = stop_guests(&fake, &priorities, grace).await.unwrap();
        let mut order = Vec::new();
        while let Ok(event) = events.try_recv() {
            if matches!(event.kind, DomainEventKind::Stopped(_)) {
                order.push(event.id);
            }
        }
        assert_eq!(order.first(), Some(&deaf), "-5, although it took its time");
        assert_eq!(order.last(), Some(&db));
        assert!(order.contains(&web) && order.contains(&halted));
        for one in &stopped {
            assert_eq!(one.clean, one.id == db || one.id == web, "{one:?}");
            assert_eq!(one.error, None);
        }
        let seen = fake.get(db).await.unwrap().unwrap();
        assert_eq!(seen.state, DomainState::Off(OffReason::GuestShutdown));
        assert!(
            stop_guests(&fake, &priorities, grace)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn priorities_come_from_the_records_and_damaged_ones_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        assert!(priorities(dir.path()).is_empty());
        let records = dir.path().join("records");
        let (durable, _) = crate::control_link::durable::Durable::open(records.clone()).unwrap();
        let mut record = InstanceRecord::new(InstanceId::generate());
        let mut instance = crate::fake::sample_instance("db");
        instance.spec.priority = 7;
        record.instance = Some(instance);
        durable.save_instance(&record).unwrap();
        std::fs::write(records.join("odd.json"), "{").unwrap();
        assert_eq!(priorities(dir.path()), BTreeMap::from([(record.id, 7)]));
    }
}
