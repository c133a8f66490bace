//! Conditions of an instance: statements beyond its state, each with a reason and a message for users.

use std::net::IpAddr;

use waifud_types::Timestamp;
use waifud_types::spec::PublishSpec;
use waifud_types::status::{AddressFamily, Condition, InstanceAddress};

use crate::condition::condition;
use crate::control_link::record::InstanceRecord;
use crate::instance::drift::Drift;
use crate::instance::planner::{Observed, Step};
use crate::instance::status::StepFailure;
use crate::shared::Shared;

/// Every condition of an instance.
pub(crate) fn of_instance(
    shared: &Shared,
    record: &InstanceRecord,
    seen: Option<&Observed>,
    failure: Option<&StepFailure>,
    drift: Option<&Drift>,
) -> Vec<Condition> {
    let since = record
        .memory
        .start
        .started_at
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let mut conditions = Vec::new();
    conditions.extend(crash_loop(record, since));
    if seen.is_some_and(Observed::is_on) {
        let broken = |step| {
            failure
                .filter(|t| t.step == step)
                .map(|t| t.message.clone())
        };
        conditions.push(match broken(Step::EnsurePort) {
            Some(message) => condition("network", false, "not-in-force", message, since),
            None => condition(
                "network",
                true,
                "in-force",
                "its lease and its firewall rules are applied".to_owned(),
                since,
            ),
        });
        conditions.push(match broken(Step::EnsureBundle) {
            Some(message) => condition("metadata-served", false, "unavailable", message, since),
            None => served(shared, record, since),
        });
    }
    if let Some(because) = &record.memory.start.by_disk {
        conditions.push(condition(
            "documents",
            true,
            "by-disk",
            format!("it reads its metadata and user-data from a disk labeled cidata: {because}"),
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

/// Set from the second restart in a row until the guest has run for a while.
fn crash_loop(record: &InstanceRecord, since: Timestamp) -> Option<Condition> {
    let restarts = record.memory.restarts;
    let message = || {
        format!(
            "it was restarted {restarts} times in a row; the pause before each restart increases"
        )
    };
    (restarts > 1).then(|| condition("stable", false, "crash-loop", message(), since))
}

/// Set while the instance boots from a rescue disk.
fn rescued(
    record: &InstanceRecord,
    seen: Option<&Observed>,
    since: Timestamp,
) -> Option<Condition> {
    let instance = record.instance.as_ref()?;
    let rescue = instance.spec.rescue.as_ref()?;
    let begun = !crate::instance::restart_policy::reboot_requested(&record.memory, instance)
        && seen.is_some_and(Observed::is_on);
    let (reason, message) = if begun {
        let message = format!(
            "it is running the rescue system {} with its own disks attached; end the rescue to boot from its own disk again",
            rescue.template
        );
        ("begun", message)
    } else {
        ("ordered", format!("it will boot {} next", rescue.template))
    };
    Some(condition("rescue", false, reason, message, since))
}

/// Set if a guest on a host bridge uses another address than the assigned one. Its documents contain the assigned address,
/// but the guest may use DHCP instead, and is then unreachable at the assigned address.
fn another_address(
    record: &InstanceRecord,
    seen: &[InstanceAddress],
    since: Timestamp,
) -> Option<Condition> {
    let nics = &record.instance.as_ref()?.spec.nics;
    nics.iter().filter(|nic| crate::network::identity::is_on_lan(nic)).find_map(|nic| {
        let given = nic.address?;
        // With two nics on one network, it is unknown at which of them an address was observed.
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
                "the guest got {} on {} by DHCP instead of its assigned address {given}: its image may ignore the network \
                 configuration from cloud-init",
                taken.address, nic.network
            ),
            since,
        ))
    })
}

/// Whether the published node ports forward to the instance.
fn published(shared: &Shared, record: &InstanceRecord, since: Timestamp) -> Option<Condition> {
    let wanted = &record.instance.as_ref()?.spec.publish;
    if wanted.is_empty() {
        return None;
    }
    let refused = shared.network.refused(record.id);
    let list = |ports: &[PublishSpec]| {
        let texts: Vec<_> = ports.iter().map(PublishSpec::to_string).collect();
        texts.join(", ")
    };
    Some(if !shared.network.in_force(record) {
        let message = format!("{} is not published yet", list(wanted));
        condition("published", false, "not-in-force", message, since)
    } else if refused.is_empty() {
        let message = format!("{} of this node is forwarded to it", list(wanted));
        condition("published", true, "in-force", message, since)
    } else if shared.network.listeners_are_unknown() {
        let message = format!(
            "{} is not published yet: listing the ports that this node's programs listen on took too long",
            list(&refused)
        );
        condition("published", false, "not-in-force", message, since)
    } else {
        let message = format!(
            "{} is not published: a program on this node listens on that port",
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
            "its metadata and user-data are ready; it has not requested them yet".to_owned(),
            since,
        ),
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::fake::sample_instance;

    #[test]
    fn an_address_other_than_the_assigned_one_is_reported() {
        let mut instance = sample_instance("web");
        let nic = &mut instance.spec.nics[0];
        nic.network = "lan".parse().unwrap();
        nic.address = Some([192, 0, 2, 50].into());
        let mut record = InstanceRecord::new(instance.id);
        record.instance = Some(instance);
        let seen = |address: &str, network: &str| {
            InstanceAddress::observed(address.parse().unwrap(), network.parse().unwrap())
        };
        let message_for = |record: &InstanceRecord, seen: &[InstanceAddress]| {
            another_address(record, seen, Timestamp::UNIX_EPOCH).map(|condition| condition.message)
        };
        let message = message_for(&record, &[seen("192.0.2.140", "lan")]).unwrap();
        assert!(
            message.contains(
                "got 192.0.2.140 on lan by DHCP instead of its assigned address 192.0.2.50"
            ),
            "{message}"
        );
        for expected in [
            vec![],
            vec![seen("192.0.2.50", "lan"), seen("fd00::7", "lan")],
            vec![seen("192.0.2.140", "dmz")],
        ] {
            assert_eq!(message_for(&record, &expected), None, "{expected:?}");
        }
        record.instance.as_mut().unwrap().spec.nics[0].address = None;
        assert_eq!(message_for(&record, &[seen("192.0.2.140", "lan")]), None);
    }
}
