//! Conditions: statements about an instance or the node beyond its state, each with a reason for people.

use std::net::IpAddr;

use waifud_types::spec::PublishSpec;
use waifud_types::status::{AddressFamily, Condition, InstanceAddress};
use waifud_types::{Incarnation, Name, Timestamp};

use crate::control_link::record::InstanceRecord;
use crate::instance::drift::Drift;
use crate::instance::planner::{Observed, Step};
use crate::instance::status::Trouble;
use crate::shared::Shared;

/// One condition. `since` is when it was first so, as far as known.
pub(crate) fn condition(
    kind: &str,
    ok: bool,
    reason: &str,
    message: String,
    since: Timestamp,
) -> Condition {
    Condition {
        kind: kind.to_owned(),
        ok,
        reason: reason.to_owned(),
        message,
        since,
    }
}

/// What there is to say about an instance.
pub(crate) fn of_instance(
    shared: &Shared,
    record: &InstanceRecord,
    seen: Option<&Observed>,
    trouble: Option<&Trouble>,
    drift: Option<&Drift>,
) -> Vec<Condition> {
    let since = record.memory.started_at.unwrap_or(Timestamp::UNIX_EPOCH);
    let mut conditions = Vec::new();
    conditions.extend(crash_loop(record, since));
    if seen.is_some_and(Observed::is_on) {
        let broken = |step| {
            trouble
                .filter(|t| t.step == step)
                .map(|t| t.message.clone())
        };
        conditions.push(match broken(Step::EnsurePort) {
            Some(message) => condition("network", false, "not-in-force", message, since),
            None => condition(
                "network",
                true,
                "in-force",
                "its lease and its rules are in force".to_owned(),
                since,
            ),
        });
        conditions.push(match broken(Step::EnsureBundle) {
            Some(message) => condition("metadata-served", false, "unavailable", message, since),
            None => served(shared, record, since),
        });
    }
    if let Some(because) = &record.memory.by_disk {
        conditions.push(condition(
            "documents",
            true,
            "by-disk",
            format!("it reads its documents from a disk labelled cidata: {because}"),
            since,
        ));
    }
    if seen.is_some_and(Observed::is_on) {
        let addresses = shared.reports.seen_addresses(record.id);
        conditions.extend(another_address(record, &addresses, since));
    }
    conditions.extend(published(shared, record, since));
    conditions.extend(rescued(record, seen, since));
    conditions.extend(drift.map(Drift::condition));
    conditions
}

/// From the second restart in a row on, until it ran for a while.
fn crash_loop(record: &InstanceRecord, since: Timestamp) -> Option<Condition> {
    let restarts = record.memory.restarts;
    let message = || {
        format!("it was restarted {restarts} times in a row; each pause is longer than the last")
    };
    (restarts > 1).then(|| condition("stable", false, "crash-loop", message(), since))
}

/// While it boots another disk than its own.
fn rescued(
    record: &InstanceRecord,
    seen: Option<&Observed>,
    since: Timestamp,
) -> Option<Condition> {
    let instance = record.instance.as_ref()?;
    let rescue = instance.spec.rescue.as_ref()?;
    let begun = !crate::instance::restart_policy::reboot_ordered(&record.memory, instance)
        && seen.is_some_and(Observed::is_on);
    let message = if begun {
        format!(
            "it runs {}, with its own disks attached; waifuctl rescue {} --end boots its own disk again",
            rescue.template, instance.name
        )
    } else {
        format!("it is about to boot {}", rescue.template)
    };
    Some(condition("rescue", false, "begun", message, since))
}

/// On a bridge a guest is told its address by its documents, and may ask DHCP all the same. One that was given an address
/// and has taken another is not found at the first.
fn another_address(
    record: &InstanceRecord,
    seen: &[InstanceAddress],
    since: Timestamp,
) -> Option<Condition> {
    let nics = &record.instance.as_ref()?.spec.nics;
    nics.iter().filter(|nic| crate::network::lan::is_on_lan(nic)).find_map(|nic| {
        let given = nic.address?;
        // Which of two nics on one network an address was seen at is not known here.
        let taken = seen.iter().find(|seen| {
            seen.network == nic.network
                && seen.family == AddressFamily::Ipv4
                && !nics.iter().any(|other| other.address.map(IpAddr::from) == Some(seen.address))
        })?;
        Some(condition(
            "address",
            false,
            "another-address",
            format!(
                "the guest took {} on {} by DHCP, not {given}, which it was given: its image may ignore the network \
                 configuration that it gets from cloud-init",
                taken.address, nic.network
            ),
            since,
        ))
    })
}

/// Whether the node's ports lead to it.
fn published(shared: &Shared, record: &InstanceRecord, since: Timestamp) -> Option<Condition> {
    let wanted = &record.instance.as_ref()?.spec.publish;
    if wanted.is_empty() {
        return None;
    }
    let refused = shared.network.refused(record.id);
    let list = |ports: &[PublishSpec]| {
        let words: Vec<_> = ports.iter().map(PublishSpec::to_string).collect();
        words.join(", ")
    };
    Some(if !shared.network.in_force(record) {
        let message = format!("{} does not lead to it yet", list(wanted));
        condition("published", false, "not-in-force", message, since)
    } else if refused.is_empty() {
        let message = format!("{} of this node leads to it", list(wanted));
        condition("published", true, "in-force", message, since)
    } else if shared.network.listeners_are_unknown() {
        let message = format!(
            "{} is not published yet: this node did not say in time which ports its programs listen on",
            list(&refused)
        );
        condition("published", false, "not-in-force", message, since)
    } else {
        let message = format!(
            "{} is not published: a program on this node listens there",
            list(&refused)
        );
        condition("published", false, "port-taken", message, since)
    })
}

fn served(shared: &Shared, record: &InstanceRecord, since: Timestamp) -> Condition {
    let evidence = shared.metadata.evidence(record.id);
    match evidence.last {
        Some((path, status, at)) => condition(
            "metadata-served",
            evidence.served > 0,
            "asked",
            format!(
                "{} requests answered, {} refused; the last was {path} ({status})",
                evidence.served, evidence.refused
            ),
            at,
        ),
        None => condition(
            "metadata-served",
            true,
            "not-asked",
            "its documents are held ready; it has not asked for them".to_owned(),
            since,
        ),
    }
}

/// What there is to say while destruction waits for an operator.
pub(crate) fn incarnation_changed(
    node: &Name,
    incarnation: Incarnation,
    now: Timestamp,
) -> Condition {
    condition(
        "destruction-held",
        false,
        "incarnation-changed",
        format!(
            "waifud's database is not the one that this node knew ({incarnation}), as after a restored backup; nothing is \
             destroyed on this node until an operator confirms it: waifuctl node confirm {node}"
        ),
        now,
    )
}

#[cfg(test)]
mod tests {
    use waifud_types::status::AddressSource;

    use super::*;
    use crate::fake::sample_instance;

    #[test]
    fn a_guest_that_took_another_address_than_it_was_given_is_told_of() {
        let mut instance = sample_instance("web");
        let nic = &mut instance.spec.nics[0];
        nic.network = "lan".parse().unwrap();
        nic.address = Some([192, 0, 2, 50].into());
        let mut record = InstanceRecord::new(instance.id);
        record.instance = Some(instance);
        let seen = |address: &str, network: &str| InstanceAddress {
            address: address.parse().unwrap(),
            family: if address.contains(':') {
                AddressFamily::Ipv6
            } else {
                AddressFamily::Ipv4
            },
            network: network.parse().unwrap(),
            source: AddressSource::Observed,
            primary: false,
        };
        let told = |record: &InstanceRecord, seen: &[InstanceAddress]| {
            another_address(record, seen, Timestamp::UNIX_EPOCH).map(|told| told.message)
        };
        let message = told(&record, &[seen("192.0.2.140", "lan")]).unwrap();
        assert!(
            message.contains("took 192.0.2.140 on lan by DHCP, not 192.0.2.50"),
            "{message}"
        );
        for honest in [
            vec![],
            vec![seen("192.0.2.50", "lan"), seen("fd00::7", "lan")],
            vec![seen("192.0.2.140", "dmz")],
        ] {
            assert_eq!(told(&record, &honest), None, "{honest:?}");
        }
        record.instance.as_mut().unwrap().spec.nics[0].address = None;
        assert_eq!(told(&record, &[seen("192.0.2.140", "lan")]), None);
    }
}
