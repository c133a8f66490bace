//! The outbox: what is urgent, what is sent again, and how much one report contains.

use futures::FutureExt;
use waifud_types::{Epoch, InstanceState};

use super::*;

fn report(state: InstanceState, reason: &str) -> InstanceReport {
    let id = "00000000-0000-7000-8000-000000000001".parse().unwrap();
    InstanceReport {
        reason: Some(reason.to_owned()),
        ..InstanceReport::of_state(id, state)
    }
}

fn urgent(reports: &Reports) -> bool {
    reports.urgent().now_or_never().is_some()
}

#[test]
fn another_state_is_urgent_and_progress_is_not() {
    let reports = Reports::default();
    reports.instance(report(InstanceState::Preparing, "10 %"));
    assert!(urgent(&reports));
    reports.instance(report(InstanceState::Preparing, "20 %"));
    assert!(!urgent(&reports));
    reports.instance(report(InstanceState::Running, "20 %"));
    assert!(urgent(&reports));
}

#[test]
fn addresses_are_sent_with_every_status_and_are_urgent_when_new() {
    let reports = Reports::default();
    let status = report(InstanceState::Running, "");
    let id = status.id;
    reports.instance(status);
    reports.take(Timestamp::UNIX_EPOCH);
    let seen = vec![InstanceAddress {
        address: [192, 168, 1, 40].into(),
        family: waifud_types::status::AddressFamily::Ipv4,
        network: "lan".parse().unwrap(),
        source: waifud_types::status::AddressSource::Observed,
        primary: true,
    }];
    let sent = |reports: &Reports| {
        let taken = reports.take(Timestamp::UNIX_EPOCH).instances;
        taken.into_iter().map(|i| i.addresses).next()
    };
    assert!(urgent(&reports));
    reports.addresses(id, seen.clone());
    assert!(urgent(&reports));
    assert_eq!(sent(&reports), Some(seen.clone()));
    reports.addresses(id, seen.clone());
    assert_eq!(sent(&reports), None);
    reports.instance(report(InstanceState::Running, "other"));
    assert_eq!(sent(&reports), Some(seen));
    reports.addresses(id, Vec::new());
    assert_eq!(sent(&reports), Some(Vec::new()));
}

#[test]
fn evidence_is_sent_with_the_status_and_only_when_it_changed() {
    let reports = Reports::default();
    let status = report(InstanceState::Running, "");
    let id = status.id;
    let now = Timestamp::UNIX_EPOCH;
    let seen = GuestEvidence {
        console: vec!["login:".to_owned()],
        ..GuestEvidence::default()
    };
    reports.evidence(id, seen.clone());
    assert!(reports.take(now).instances.is_empty(), "no status yet");
    reports.instance(status.clone());
    assert!(urgent(&reports));
    let first = reports.take(now);
    assert_eq!(first.instances[0].evidence, Some(seen.clone()));

    reports.evidence(id, seen.clone());
    reports.instance(status);
    assert!(reports.take(now).instances.is_empty(), "nothing changed");
    reports.instance(report(InstanceState::Running, "other"));
    assert_eq!(reports.take(now).instances[0].evidence, None);

    reports.requeue(&first);
    assert_eq!(reports.take(now).instances[0].evidence, Some(seen.clone()));
    reports.resend_all();
    assert_eq!(reports.take(now).instances[0].evidence, Some(seen));
    reports.evidence(id, GuestEvidence::default());
    assert!(!urgent(&reports), "evidence is not urgent");
    reports.forget(id);
    assert!(reports.take(now).instances.is_empty());
}

fn id(number: u128) -> InstanceId {
    format!("00000000-0000-7000-8000-{number:012x}")
        .parse()
        .unwrap()
}

fn numbered(number: u128, reason: &str) -> InstanceReport {
    InstanceReport {
        id: id(number),
        ..report(InstanceState::Running, reason)
    }
}

fn tombstone(number: u128) -> Tombstone {
    Tombstone {
        instance: id(number),
        name: "web".parse().unwrap(),
        epoch: Epoch::FIRST,
    }
}

#[test]
fn a_release_is_sent_once_in_each_connection_and_again_when_it_was_not_delivered() {
    let reports = Reports::default();
    let now = Timestamp::UNIX_EPOCH;
    let released = Released {
        instance: id(1),
        epoch: Epoch::FIRST,
        off: false,
    };
    reports.released(id(1), Some(released));
    assert!(urgent(&reports));
    let report = reports.take(now);
    assert_eq!(report.released, [released]);
    reports.requeue(&report);
    assert_eq!(reports.take(now).released, [released]);
    reports.acknowledge(&report);
    reports.released(id(1), Some(released));
    assert!(reports.take(now).released.is_empty(), "acknowledged");
    reports.resend_all();
    assert_eq!(reports.take(now).released, [released]);
    // The guest that was allowed to continue has ended.
    let ended = Released {
        off: true,
        ..released
    };
    reports.released(id(1), Some(ended));
    assert!(urgent(&reports));
    assert_eq!(reports.take(now).released, [ended]);
    // It came back before the report was delivered.
    reports.requeue(&report);
    reports.released(id(1), None);
    assert!(reports.take(now).released.is_empty());
    reports.resend_all();
    assert!(reports.take(now).released.is_empty());
}

#[test]
fn more_releases_than_one_report_may_contain_are_sent_in_several() {
    let reports = Reports::default();
    let count = 2 * bounds::RELEASED_MAX + 1;
    for number in 0..count {
        let id = id(u128::try_from(number).unwrap());
        let epoch = Epoch::FIRST;
        reports.released(
            id,
            Some(Released {
                instance: id,
                epoch,
                off: true,
            }),
        );
    }
    let mut sent = 0;
    while is_pending(&reports) {
        let mut part = reports.take(Timestamp::UNIX_EPOCH);
        part.check().unwrap();
        sent += part.released.len();
        reports.acknowledge(&part);
    }
    assert_eq!(sent, count);
}

fn is_pending(reports: &Reports) -> bool {
    reports.pending().now_or_never().is_some()
}

#[test]
fn what_exceeds_one_report_is_sent_in_several_and_nothing_is_lost() {
    let reports = Reports::default();
    for number in 0..3000 {
        reports.instance(numbered(number, &"\u{1b}[2Jlong ".repeat(1000)));
        reports.destroyed(tombstone(10_000 + number));
    }
    let (mut sent, mut gone) = (BTreeSet::new(), 0);
    while is_pending(&reports) {
        let mut part = reports.take(Timestamp::UNIX_EPOCH);
        part.check().unwrap();
        assert!(serde_json::to_vec(&part).unwrap().len() < 1 << 20);
        sent.extend(part.instances.iter().map(|one| one.id));
        gone += reports.acknowledge(&part).len();
    }
    assert_eq!((sent.len(), gone), (3000, 3000));
}

#[test]
fn a_refused_report_is_halved_until_the_refused_item_is_alone() {
    let reports = Reports::default();
    for number in 0..100 {
        reports.instance(numbered(number, ""));
    }
    reports.destroyed(tombstone(1000));
    let (mut accepted, mut dropped) = (BTreeSet::new(), 0);
    while is_pending(&reports) {
        let part = reports.take(Timestamp::UNIX_EPOCH);
        if part.instances.iter().any(|one| one.id == id(77)) {
            dropped += usize::from(!reports.split(&part));
            continue;
        }
        accepted.extend(part.instances.iter().map(|one| one.id));
        reports.acknowledge(&part);
    }
    assert_eq!((accepted.len(), dropped), (99, 1));
    assert!(!accepted.contains(&id(77)));
    reports.resend_all();
    let again = reports.take(Timestamp::UNIX_EPOCH);
    assert!(again.destroyed.is_empty(), "it was acknowledged");
}
