//! Gathers what guests were seen to do since their start, for whoever asks why one is not ready.
//!
//! It is looked at every few seconds while a guest boots, rarely otherwise, and said only when it changed. Nothing is
//! decided by it: what can't be looked at is left out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use waifud_network::PortObservation;
use waifud_types::evidence::{Dropped, GuestEvidence};
use waifud_types::{InstanceId, TapName, Timestamp};

use crate::blocking;
use crate::control_link::record::{InstanceRecord, Memory, RunMemory};
use crate::guest::console_tail;
use crate::network::lan;
use crate::shared::Shared;

/// A guest that did not become ready for longer is looked at as rarely as one that did.
const BOOT: Duration = Duration::from_mins(15);
/// One look at all ports.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A look at guests of which none boots is so many times rarer.
const RARELY: u32 = 12;

/// Goes on for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let often = shared.settings.timing.evidence;
    loop {
        let booting = look(&shared).await;
        sleep(often).await;
        if !booting {
            // A look that is asked for comes at once, any other later.
            let _whichever = timeout(often * (RARELY - 1), shared.diagnostics.requested()).await;
        }
    }
}

/// Looks at every guest that was started once. Says whether one of them boots.
async fn look(shared: &Shared) -> bool {
    let records: Vec<_> = shared
        .table
        .records()
        .into_iter()
        .filter_map(|record| Some((record.memory.started_at?, record)))
        .filter(|(_, record)| !record.destroyed)
        .collect();
    let runs = |record: &InstanceRecord| record.memory.run == RunMemory::Started;
    let observations = if records.iter().any(|(_, record)| runs(record)) {
        let observations = timeout(TIMEOUT, shared.guest_network.observe_ports()).await;
        observations.ok().and_then(Result::ok).unwrap_or_default()
    } else {
        BTreeMap::new()
    };
    if !sights.is_empty() {
        shared.network.record_observations(&sights);
    }
    let mut booting = false;
    for (started, record) in records {
        booting |= runs(&record) && boots(&record.memory, started, shared.now());
        // What is off has none; what could not be looked at has what it had.
        if !runs(&record) || !observations.is_empty() {
            let observed = if runs(&record) {
                &observations
            } else {
                &BTreeMap::new()
            };
            let addresses = lan::observed(&record, observed);
            if shared.reports.addresses(record.id, addresses) {
                // Its conditions speak of them.
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
    memory.ready_by.is_none() && ago.is_ok_and(|ago| ago < BOOT)
}

async fn gather(
    shared: &Shared,
    record: &InstanceRecord,
    started: Timestamp,
    observations: &BTreeMap<TapName, PortObservation>,
) -> GuestEvidence {
    let before = shared.reports.last_evidence(record.id).unwrap_or_default();
    let (dhcp_acknowledged_at, dropped) = if observations.is_empty() {
        // Nobody could look, or it is off: what was seen before is still what was seen.
        let since = before.dhcp_acknowledged_at.filter(|at| is_of(*at, started));
        (since, before.dropped)
    } else {
        at_its_ports(record, started, observations)
    };
    let seen = shared.metadata.evidence(record.id);
    GuestEvidence {
        requests: seen.requests.since(started),
        modules: seen.report.modules(),
        dhcp_acknowledged_at,
        dropped,
        console: console(shared, record.id, started).await,
    }
}

fn at_its_ports(
    record: &InstanceRecord,
    started: Timestamp,
    observations: &BTreeMap<TapName, PortObservation>,
) -> (Option<Timestamp>, Option<Dropped>) {
    let nics = record.instance.as_ref().map_or(0, |i| i.spec.nics.len());
    let taps = (0..nics).map(|index| TapName::of(record.id, index));
    let seen: Vec<_> = taps.filter_map(|tap| observations.get(&tap)).collect();
    let acknowledged = seen.iter().filter_map(|sight| sight.acknowledged).max();
    let dropped = seen.iter().fold(Dropped::default(), |sum, sight| Dropped {
        spoofed: sum.spoofed.saturating_add(sight.counters.spoofed),
        to_host: sum.to_host.saturating_add(sight.counters.to_host),
    });
    (
        acknowledged.filter(|at| is_of(*at, started)),
        (!seen.is_empty()).then_some(dropped),
    )
}

/// Whether a lease was confirmed to this boot: the lease file knows whole seconds only.
fn is_of(acknowledged: Timestamp, started: Timestamp) -> bool {
    acknowledged.as_second() >= started.as_second()
}

async fn console(shared: &Shared, id: InstanceId, started: Timestamp) -> Vec<String> {
    let log = shared.files.console_log(id);
    let read = blocking::on_a_thread(move || console_tail::read(&log, started));
    // A disk that hangs must not keep the others from being looked at.
    let read = timeout(TIMEOUT, read).await;
    read.ok().and_then(Result::ok).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::sample_instance;
    use waifud_network::PortCounters;

    #[test]
    fn drops_are_added_up_and_an_older_lease_is_not_this_boots() {
        let instance = sample_instance("web");
        let id = instance.id;
        let record = InstanceRecord {
            instance: Some(instance),
            ..InstanceRecord::new(id)
        };
        let started: Timestamp = "2026-01-02T12:00:00.5Z".parse().unwrap();
        let sight = |acknowledged: &str| {
            let sight = PortObservation {
                counters: PortCounters {
                    spoofed: 2,
                    to_host: 1,
                    not_ipv4: 9,
                },
                acknowledged: Some(acknowledged.parse().unwrap()),
                ..PortObservation::default()
            };
            BTreeMap::from([(TapName::of(id, 0), sight)])
        };
        let (ack, dropped) = at_its_ports(&record, started, &sight("2026-01-02T12:00:00Z"));
        assert!(ack.is_some(), "the same second");
        let expected = Dropped {
            spoofed: 2,
            to_host: 1,
        };
        assert_eq!(dropped, Some(expected));
        let (ack, _) = at_its_ports(&record, started, &sight("2026-01-02T11:59:59Z"));
        assert_eq!(ack, None);
        let other = BTreeMap::from([(TapName::of(id, 7), PortObservation::default())]);
        assert_eq!(at_its_ports(&record, started, &other), (None, None));
    }
}
