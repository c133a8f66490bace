//! Stops a node's guests because their host goes down: cleanly, the lowest priority first.
//!
//! It needs nothing but the hypervisor and, for priorities, the agent's records: it works beside a running agent and
//! without one. That guests which go off now are to come back with their host is told to the agent by
//! [`HostPower`](crate::interfaces::HostPower), before this begins.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};
use waifud_hypervisor::{DomainState, Hypervisor, HypervisorError, ObservedDomain};
use waifud_types::InstanceId;

use crate::control_link::record::InstanceRecord;

/// Between two looks at a guest that was asked to shut down.
const LOOK: Duration = Duration::from_millis(250);

/// What became of one guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// Which.
    pub id: InstanceId,
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// It shut itself down; otherwise its plug was pulled.
    pub clean: bool,
    /// Why even that failed.
    pub error: Option<String>,
}

/// The priorities of what is recorded in an agent's state directory. What can't be read has none, which counts as 0:
/// a host that goes down waits for nobody to mend a file.
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

/// Those that stop together, in the order in which they do.
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

/// The guests of ours that run.
pub async fn running(hypervisor: &dyn Hypervisor) -> Result<Vec<ObservedDomain>, HypervisorError> {
    let mut running = hypervisor.list().await?;
    running.retain(|domain| is_on(domain.state));
    Ok(running)
}

/// Stops every guest of ours. Each wave has `grace` to shut down; then the plug of those that are left is pulled.
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
    // One that is halted hears nothing.
    let hears = !matches!(domain.state, DomainState::Paused { .. });
    let clean = hears && shuts_down(hypervisor, id, grace).await;
    let error = if clean {
        None
    } else {
        tracing::warn!(instance = %id, name = domain.name, "did not shut down; its plug is pulled");
        hypervisor.ensure_off(id).await.err()
    };
    tracing::info!(instance = %id, name = domain.name, priority, clean, "is off");
    Stopped {
        id,
        name: domain.name,
        priority,
        clean,
        error: error.map(|error| crate::with_cause(&error)),
    }
}

/// Asks, now and again, and looks until it is off or its time is over.
async fn shuts_down(hypervisor: &dyn Hypervisor, id: InstanceId, grace: Duration) -> bool {
    let end = Instant::now() + grace;
    let mut ask = Instant::now();
    loop {
        let now = Instant::now();
        if now >= end {
            return false;
        }
        if now >= ask {
            // One that was asked while it booted has not heard it.
            if let Err(error) = hypervisor.request_shutdown(id).await {
                tracing::warn!(instance = %id, "could not be asked to shut down: {error}");
            }
            ask = now + grace / 4;
        }
        match hypervisor.get(id).await {
            Ok(None) => return true,
            Ok(Some(seen)) if !is_on(seen.state) => return true,
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!(instance = %id, "can't be looked at: {error}"),
        }
        sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
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
    async fn the_lowest_priority_stops_first_and_who_does_not_listen_loses_its_plug() {
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
    fn priorities_come_from_the_records_and_damage_holds_nothing_up() {
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
