//! What the node has: gathered now and then, reported when it changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use waifud_network::HostNetworkFacts;
use waifud_types::node::{HypervisorFacts, NodeFacts, PoolFacts, Resources};
use waifud_types::status::{Condition, HypervisorKind};
use waifud_types::{ByteSize, Timestamp};

use crate::blocking::here;
use crate::control_link::record::RunMemory;
use crate::instance::conditions::{condition, incarnation_changed};
use crate::node::certificate;
use crate::node::disk_space;
use crate::shared::Shared;

/// Goes on for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let facts = gather(&shared).await;
        shared.reports.facts(facts);
        let pause = if shared
            .reports
            .last_facts()
            .is_some_and(|f| f.capacity.cpus == 0)
        {
            // The hypervisor was not there: nothing can be placed here before it is.
            shared.settings.timing.metadata
        } else {
            shared.settings.timing.facts
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.facts_check.notified() => {}
            () = bridges_changed(&shared) => {}
            () = shared.table.writing_turned() => {}
        }
    }
}

/// Ends when the host has other bridges than were told last.
async fn bridges_changed(shared: &Shared) {
    loop {
        tokio::time::sleep(shared.settings.timing.bridges).await;
        let told = shared.reports.last_facts().map(|facts| facts.bridges);
        // What can't be read is the full look's to complain of.
        if let Ok(now) = shared.guest_network.bridges().await
            && told.is_some_and(|told| told != now)
        {
            return;
        }
    }
}

/// Looks at everything once. What can't be learned becomes a condition.
pub(crate) async fn gather(shared: &Shared) -> NodeFacts {
    let earlier = shared.reports.last_facts();
    let conditions_before = earlier.as_ref().map_or(&[][..], |f| &f.conditions);
    let now = shared.now();
    let mut conditions = Vec::new();
    let mut facts = unknown(shared, "libvirt was not reached yet");
    match shared.hypervisor.host().await {
        Ok(host) => {
            facts.arch = host.arch;
            facts.cpu_model = host.cpu_model;
            shared.kind.send_replace(Some(host.hypervisor.kind));
            facts.hypervisor = host.hypervisor;
            facts.capacity = host.capacity;
        }
        Err(error) => {
            let message = crate::with_cause(&error);
            facts.hypervisor.reason.clone_from(&message);
            if let Some(earlier) = &earlier {
                facts.capacity = earlier.capacity;
                facts.cpu_model.clone_from(&earlier.cpu_model);
                facts.hypervisor = earlier.hypervisor.clone();
            }
            conditions.push(condition("hypervisor", false, "unreachable", message, now));
        }
    }
    for pool in shared.pools.values() {
        let (size, used, health) = match pool.usage().await {
            Ok(usage) => (usage.size, usage.used, usage.health),
            Err(error) => (ByteSize(0), ByteSize(0), crate::with_cause(&error)),
        };
        facts.pools.push(PoolFacts {
            name: pool.name().clone(),
            kind: pool.kind().to_owned(),
            size_bytes: size,
            used_bytes: used,
            promised_bytes: ByteSize(0),
            health,
        });
    }
    match shared.guest_network.host_facts().await {
        Ok(host) => {
            conditions.extend(foreign_firewall(&host, now));
            take_links(&mut facts, shared, &host);
            facts.routes = host.routes;
        }
        Err(error) => {
            let message = crate::with_cause(&error);
            conditions.push(condition("network", false, "unreadable", message, now));
        }
    }
    // Before there is a subnet there is nothing that it could serve.
    if shared.table.node().slice.is_some()
        && let Some(message) = shared.metadata.trouble()
    {
        conditions.push(condition(
            "metadata-service",
            false,
            "unavailable",
            message,
            now,
        ));
    }
    let dir = &shared.settings.state_dir;
    let unwritable = shared.table.unwritable();
    conditions.extend(disk_space::of(
        dir,
        here(|| disk_space::look(dir)),
        unwritable.as_ref(),
        now,
    ));
    if let Some(until) = shared.link.certificate_until() {
        conditions.push(certificate::of(until, now));
    }
    if let Some(incarnation) = shared.table.node().unconfirmed {
        conditions.push(incarnation_changed(&shared.settings.node, incarnation, now));
    }
    facts.conditions = conditions
        .into_iter()
        .map(|new| keep_since(new, conditions_before))
        .collect();
    facts.used = used(shared);
    facts
}

/// How long a look at the host's own networks may take; it is a few questions to the kernel.
const NETWORKS_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// The facts of a node that is still looking at itself. Its routes are among them: the guests' subnet is chosen by them.
pub(crate) async fn unfinished(shared: &Shared) -> NodeFacts {
    let mut facts = unknown(shared, "the node is still looking at itself");
    if let Ok(Ok(host)) =
        tokio::time::timeout(NETWORKS_MAX, shared.guest_network.host_facts()).await
    {
        take_links(&mut facts, shared, &host);
        facts.routes = host.routes;
    }
    facts
}

/// Takes over which bridges there are. The guests' own is not one that a network could be named for.
fn take_links(facts: &mut NodeFacts, shared: &Shared, host: &HostNetworkFacts) {
    facts.bridges.clone_from(&host.bridges);
    facts.unfit_bridges.clone_from(&host.unfit_bridges);
    facts.unfit_bridges.insert(
        shared.settings.bridge.clone(),
        "is waifud's own bridge, that of the network default".to_owned(),
    );
}

/// The facts of a node of which nothing is known but what it was built for.
pub(crate) fn unknown(shared: &Shared, why: &str) -> NodeFacts {
    NodeFacts {
        arch: std::env::consts::ARCH.to_owned(),
        cpu_model: String::new(),
        hypervisor: HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: why.to_owned(),
        },
        agent_version: shared.settings.agent_version.clone(),
        capacity: Resources::default(),
        used: Resources::default(),
        pools: Vec::new(),
        bridges: Vec::new(),
        unfit_bridges: BTreeMap::new(),
        routes: Vec::new(),
        conditions: Vec::new(),
        labels: BTreeMap::new(),
    }
}

/// A statement that was made before is as old as then.
fn keep_since(mut new: Condition, before: &[Condition]) -> Condition {
    let known = before
        .iter()
        .find(|old| old.kind == new.kind && old.ok == new.ok && old.reason == new.reason);
    if let Some(old) = known {
        new.since = old.since.max(Timestamp::UNIX_EPOCH);
    }
    new
}

/// What running guests may use.
fn used(shared: &Shared) -> Resources {
    let mut used = Resources::default();
    for record in shared.table.records() {
        if let Some(instance) = &record.instance
            && record.memory.run == RunMemory::Started
        {
            used.cpus = used.cpus.saturating_add(instance.spec.cpus);
            let memory = used.memory_bytes.bytes();
            used.memory_bytes = ByteSize(memory.saturating_add(instance.spec.memory_bytes.bytes()));
        }
    }
    used
}

/// Whether guests get through the host's other firewalls.
fn foreign_firewall(host: &HostNetworkFacts, now: Timestamp) -> Option<Condition> {
    let names = host.foreign_firewalls.join(", ");
    let (ok, reason, message) = if let Some(trouble) = &host.firewall_trouble {
        let message = format!(
            "another firewall may drop what guests send ({names}), and no rule could be added there: {trouble}. \
             Mend that, or accept the guests' bridge there yourself"
        );
        (false, "in-the-way", message)
    } else if !host.let_through.is_empty() {
        let places = host.let_through.join(", ");
        let message = format!("guests are let through by marked rules in {places}");
        (true, "let-through", message)
    } else if !names.is_empty() {
        let message = format!("other firewalls drop forwarded packets here: {names}");
        (true, "found", message)
    } else {
        return None;
    };
    Some(condition("foreign-firewall", ok, reason, message, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_in_the_way_is_a_condition_with_a_next_step() {
        let now = Timestamp::UNIX_EPOCH;
        let mut host = HostNetworkFacts::default();
        assert!(foreign_firewall(&host, now).is_none());
        host.foreign_firewalls = vec!["Docker: chain FORWARD of table ip filter".to_owned()];
        host.let_through = vec!["DOCKER-USER of iptables-nft".to_owned()];
        let through = foreign_firewall(&host, now).unwrap();
        assert!(through.ok && through.message.contains("DOCKER-USER"));
        host.firewall_trouble = Some("iptables-nft failed".to_owned());
        let in_the_way = foreign_firewall(&host, now).unwrap();
        assert!(!in_the_way.ok && in_the_way.message.contains("yourself"));
    }
}
