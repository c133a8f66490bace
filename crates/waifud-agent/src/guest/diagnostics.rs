//! Gathers what was observed of guests since their start, which explains why a guest is not ready.
//!
//! It runs every few seconds while a guest boots and rarely otherwise, and reports only changes. Nothing is decided by the
//! result, so what cannot be read is omitted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use waifud_network::PortObservation;
use waifud_types::evidence::{Dropped, FirewallCounts, GuestEvidence};
use waifud_types::{InstanceId, TapName, Timestamp};

use crate::blocking;
use crate::control_link::record::{InstanceRecord, Memory, RunMemory};
use crate::guest::console_tail;
use crate::network::{firewall, lan};
use crate::shared::Shared;

/// A guest that is not ready after this time is treated like a ready one.
const BOOT: Duration = Duration::from_mins(15);
/// The time limit for observing all ports.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The factor by which runs are rarer while no guest boots.
const IDLE_FACTOR: u32 = 12;

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    let often = shared.settings.timing.evidence;
    loop {
        let booting = gather_all(&shared).await;
        sleep(often).await;
        if !booting {
            // A requested run starts at once, any other one later.
            let _whichever =
                timeout(often * (IDLE_FACTOR - 1), shared.diagnostics.requested()).await;
        }
    }
}

/// Gathers diagnostics of every guest that was ever started. Returns whether one of them is booting.
async fn gather_all(shared: &Shared) -> bool {
    let records: Vec<_> = shared
        .table
        .records()
        .into_iter()
        .filter_map(|record| Some((record.memory.start.started_at?, record)))
        .filter(|(_, record)| !record.destroyed)
        .collect();
    let runs = |record: &InstanceRecord| record.memory.run == RunMemory::Started;
    let observations = if records.iter().any(|(_, record)| runs(record)) {
        let observations = timeout(TIMEOUT, shared.guest_network.observe_ports()).await;
        observations.ok().and_then(Result::ok).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    if !observations.is_empty() {
        shared.network.record_observations(&observations);
    }
    let mut booting = false;
    for (started, record) in records {
        booting |= runs(&record) && boots(&record.memory, started, shared.now());
        // A guest that is off has no addresses. If the ports could not be observed, the addresses do not change.
        if !runs(&record) || !observations.is_empty() {
            let observed = if runs(&record) {
                &observations
            } else {
                &BTreeMap::new()
            };
            let addresses = lan::observed(&record, observed);
            if shared.reports.addresses(record.id, addresses) {
                // Its conditions depend on them.
                shared.signals.nudge(record.id);
            }
        }
        let evidence = gather(shared, &record, started, &observations).await;
        shared.reports.evidence(record.id, evidence);
    }
    booting
}

fn boots(memory: &Memory, started: Timestamp, now: Timestamp) -> bool {
    let ago: Result<Duration, _> = now.duration_since(started).try_into();
    memory.boot.ready_by.is_none() && ago.is_ok_and(|ago| ago < BOOT)
}

async fn gather(
    shared: &Shared,
    record: &InstanceRecord,
    started: Timestamp,
    observations: &BTreeMap<TapName, PortObservation>,
) -> GuestEvidence {
    let before = shared.reports.last_evidence(record.id).unwrap_or_default();
    let (dhcp_acknowledged_at, dropped, firewall) = if observations.is_empty() {
        // The guest is off, or the ports could not be observed: the earlier values stay.
        let since = before.dhcp_acknowledged_at.filter(|at| is_of(*at, started));
        (since, before.dropped, before.firewall)
    } else {
        at_its_ports(record, started, observations)
    };
    let seen = shared.metadata.evidence(record.id);
    GuestEvidence {
        requests: seen.requests.since(started),
        modules: seen.report.modules(),
        dhcp_acknowledged_at,
        dropped,
        firewall,
        console: console(shared, record.id, started).await,
    }
}

fn at_its_ports(
    record: &InstanceRecord,
    started: Timestamp,
    observations: &BTreeMap<TapName, PortObservation>,
) -> (Option<Timestamp>, Option<Dropped>, Option<FirewallCounts>) {
    let nics = record.instance.iter().flat_map(|i| i.spec.numbered_nics());
    let taps = nics.map(|(number, _)| TapName::of(record.id, number));
    let seen: Vec<_> = taps.filter_map(|tap| observations.get(&tap)).collect();
    let acknowledged = seen
        .iter()
        .filter_map(|observation| observation.acknowledged)
        .max();
    let dropped = seen
        .iter()
        .fold(Dropped::default(), |sum, observation| Dropped {
            spoofed: sum.spoofed.saturating_add(observation.counters.spoofed),
            to_host: sum.to_host.saturating_add(observation.counters.to_host),
        });
    let has_firewall = record
        .instance
        .as_ref()
        .is_some_and(|instance| !instance.spec.firewall.is_open());
    let mut counts = FirewallCounts::default();
    for observation in &seen {
        firewall::add(&mut counts, &observation.counters.firewall);
    }
    (
        acknowledged.filter(|at| is_of(*at, started)),
        (!seen.is_empty()).then_some(dropped),
        (!seen.is_empty() && has_firewall).then_some(counts),
    )
}

/// Whether a lease was acknowledged in this boot. The lease file has whole seconds only.
fn is_of(acknowledged: Timestamp, started: Timestamp) -> bool {
    acknowledged.as_second() >= started.as_second()
}

async fn console(shared: &Shared, id: InstanceId, started: Timestamp) -> Vec<String> {
    let log = shared.instances.console_log(id);
    let read = blocking::on_a_thread(move || console_tail::read(&log, started));
    // A disk that hangs must not block the others.
    let read = timeout(TIMEOUT, read).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::sample_instance;
    use waifud_network::PortCounters;

    #[test]
    fn drops_are_summed_and_an_older_lease_is_ignored() {
        let instance = sample_instance("web");
        let id = instance.id;
        let record = InstanceRecord {
            instance: Some(instance),
            ..InstanceRecord::new(id)
        };
        let started: Timestamp = "2026-01-02T12:00:00.5Z".parse().unwrap();
        let observations = |acknowledged: &str| {
            let observation = PortObservation {
                counters: PortCounters {
                    spoofed: 2,
                    to_host: 1,
                    not_ipv4: 9,
                    ..PortCounters::default()
                },
                acknowledged: Some(acknowledged.parse().unwrap()),
                ..PortObservation::default()
            };
            BTreeMap::from([(TapName::of(id, 0), observation)])
        };
        let (ack, dropped, _) =
            at_its_ports(&record, started, &observations("2026-01-02T12:00:00Z"));
        assert!(ack.is_some(), "the same second");
        let expected = Dropped {
            spoofed: 2,
            to_host: 1,
        };
        assert_eq!(dropped, Some(expected));
        let (ack, ..) = at_its_ports(&record, started, &observations("2026-01-02T11:59:59Z"));
        assert_eq!(ack, None);
        let other = BTreeMap::from([(TapName::of(id, 7), PortObservation::default())]);
        assert_eq!(at_its_ports(&record, started, &other), (None, None, None));
    }
}
