//! The node's facts: gathered periodically, and reported when they changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use waifud_network::{Bridges, HostNetworkFacts};
use waifud_types::node::{
    HypervisorFacts, NodeFacts, PeerPortFacts, PoolFacts, Resources, feature,
};
use waifud_types::status::{Condition, HypervisorKind};
use waifud_types::{ByteSize, MeshBackend, MeshFacts, Timestamp};

use crate::blocking::here;
use crate::condition::condition;
use crate::control_link::record::RunMemory;
use crate::network::dns;
use crate::network::remote::{own_subnet_conflict, subnet_conflict};
use crate::node::certificate;
use crate::node::conditions::incarnation_changed;
use crate::node::disk_space;
use crate::shared::Shared;

/// Runs until the agent stops.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        let facts = gather(&shared).await;
        shared.reports.facts(facts);
        let pause = if shared
            .reports
            .last_facts()
            .is_some_and(|f| f.capacity.cpus == 0)
        {
            // The hypervisor did not answer, and nothing can be placed here until it does.
            shared.settings.timing.metadata
        } else {
            shared.settings.timing.facts
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.node_checks.facts_requested() => {}
            () = bridges_changed(&shared) => {}
            () = shared.table.write_state_changed() => {}
        }
    }
}

/// Returns when the host's bridges differ from the last report.
async fn bridges_changed(shared: &Shared) {
    loop {
        tokio::time::sleep(shared.settings.timing.bridges).await;
        let reported = shared.reports.last_facts().map(|facts| Bridges {
            all: facts.bridges,
            vlan_aware: facts.vlan_bridges,
        });
        // Errors are reported when all facts are gathered.
        if let Ok(now) = shared.guest_network.bridges().await
            && reported.is_some_and(|reported| reported != now)
        {
            return;
        }
    }
}

/// Gathers every fact. What cannot be determined becomes a condition.
pub(crate) async fn gather(shared: &Shared) -> NodeFacts {
    let earlier = shared.reports.last_facts();
    let conditions_before = earlier.as_ref().map_or(&[][..], |f| &f.conditions);
    let now = shared.now();
    let mut conditions = Vec::new();
    let mut facts = unknown(shared, "libvirt has not answered yet");
    match shared.hypervisor.host().await {
        Ok(host) => {
            facts.arch = host.arch;
            facts.cpu_model = host.cpu_model;
            shared.instances.set_hypervisor_kind(host.hypervisor.kind);
            facts.hypervisor = host.hypervisor;
            facts.capacity = host.capacity;
        }
        Err(error) => {
            let message = waifud_kit::error::with_causes(&error);
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
            Err(error) => (
                ByteSize(0),
                ByteSize(0),
                waifud_kit::error::with_causes(&error),
            ),
        };
        let mut images = pool.images().await.ok();
        if let Some(images) = &mut images {
            images.sort_unstable();
        }
        facts.pools.push(PoolFacts {
            name: pool.name().clone(),
            kind: pool.kind(),
            size_bytes: size,
            used_bytes: used,
            promised_bytes: ByteSize(0),
            health,
            images,
        });
    }
    match shared.guest_network.host_facts().await {
        Ok(host) => {
            conditions.extend(foreign_firewall(&host, now));
            if let Some(slice) = &shared.table.node().slice {
                conditions.extend(own_subnet_conflict(slice.subnet, &host, now));
            }
            conditions.extend(subnet_conflict(&host, now));
            add_bridges(&mut facts, shared, &host);
            facts.routes = host.routes;
        }
        Err(error) => {
            let message = waifud_kit::error::with_causes(&error);
            conditions.push(condition("network", false, "unreadable", message, now));
        }
    }
    let fabric = shared.network.fabric();
    conditions.extend(fabric.conditions(&shared.table.peers(), now).await);
    facts.mesh = mesh(shared, earlier.as_ref());
    facts.mesh_backend = mesh_backend(shared, earlier.as_ref());
    facts.peer_port = peer_port(shared);
    let served = shared.guest_network.dns().await;
    conditions.extend(dns::trouble(&served, now));
    facts.dns = dns::facts(&shared.settings.domain, &served);
    conditions.extend(shared.port.condition(now));
    // Without a subnet there is nothing to serve.
    if shared.table.node().slice.is_some()
        && let Some(message) = shared.metadata.error()
    {
        conditions.push(condition(
            "metadata-service",
            false,
            "unavailable",
            message,
            now,
        ));
    }
    conditions.extend(shared.metadata.redis_trouble());
    let dir = &shared.settings.state_dir;
    let unwritable = shared.table.unwritable();
    conditions.extend(disk_space::of(
        dir,
        here(|| disk_space::measure(dir)),
        unwritable.as_ref(),
        now,
    ));
    if let Some(until) = shared.link.certificate_until() {
        conditions.push(certificate::of(until, now));
    }
    if let Some(incarnation) = shared.table.node().unconfirmed {
        conditions.push(incarnation_changed(incarnation, now));
    }
    facts.conditions = conditions
        .into_iter()
        .map(|new| keep_since(new, conditions_before))
        .collect();
    facts.used = used(shared);
    facts
}

/// What other nodes need to reach this one. Addresses that were known before are kept while none is found.
fn mesh(shared: &Shared, earlier: Option<&NodeFacts>) -> Option<MeshFacts> {
    // Before there was a connection to waifud, the right address is unknown.
    let own = shared.link.local_address()?;
    let fabric = shared.network.fabric().adapter();
    let mut endpoints = fabric.endpoints(own);
    if endpoints.is_empty()
        && let Some(mesh) = earlier.and_then(|facts| facts.mesh.as_ref())
    {
        endpoints.clone_from(&mesh.endpoints);
    }
    Some(MeshFacts {
        public_key: fabric.public_key(),
        endpoints,
    })
}

/// Which WireGuard carries the mesh. What was reported before is kept until the fabric was applied after a start.
fn mesh_backend(shared: &Shared, earlier: Option<&NodeFacts>) -> Option<MeshBackend> {
    let fabric = shared.network.fabric();
    if fabric.was_tried() {
        return fabric.applied().backend;
    }
    earlier.and_then(|facts| facts.mesh_backend)
}

/// Where other nodes reach the peer port; `None` while the node does not know its address.
fn peer_port(shared: &Shared) -> Option<PeerPortFacts> {
    let own = shared.link.local_address()?;
    let endpoints = if shared.port.is_open() {
        shared.peers.endpoints(own)
    } else {
        Vec::new()
    };
    Some(PeerPortFacts { endpoints })
}

/// The time limit for reading the host's networks, which takes a few requests to the kernel.
const NETWORKS_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// The facts of a node that has not gathered all of them yet. They include the routes, because waifud chooses the subnet
/// by them.
pub(crate) async fn unfinished(shared: &Shared) -> NodeFacts {
    let mut facts = unknown(shared, "the node is still collecting its properties");
    if let Ok(Ok(host)) =
        tokio::time::timeout(NETWORKS_MAX, shared.guest_network.host_facts()).await
    {
        add_bridges(&mut facts, shared, &host);
        facts.routes = host.routes;
    }
    facts
}

/// Adds the host's bridges. The bridge of the routed network cannot be used for a named network.
fn add_bridges(facts: &mut NodeFacts, shared: &Shared, host: &HostNetworkFacts) {
    facts.bridges.clone_from(&host.bridges);
    facts.vlan_bridges.clone_from(&host.vlan_bridges);
    facts.unfit_bridges.clone_from(&host.unfit_bridges);
    facts.unfit_bridges.insert(
        shared.settings.bridge.clone(),
        "is the bridge of waifud's own network default".to_owned(),
    );
}

/// The facts of a node about which only the build is known.
pub(crate) fn unknown(shared: &Shared, why: &str) -> NodeFacts {
    NodeFacts {
        arch: std::env::consts::ARCH.to_owned(),
        cpu_model: String::new(),
        hypervisor: HypervisorFacts {
            kind: HypervisorKind::Tcg,
            reason: why.to_owned(),
            cause: None,
        },
        agent_version: shared.settings.agent_version.clone(),
        capacity: Resources::default(),
        used: Resources::default(),
        pools: Vec::new(),
        bridges: Vec::new(),
        vlan_bridges: Vec::new(),
        unfit_bridges: BTreeMap::new(),
        routes: Vec::new(),
        conditions: Vec::new(),
        labels: BTreeMap::new(),
        features: feature::ALL.map(str::to_owned).into(),
        mesh: None,
        mesh_backend: None,
        peer_port: None,
        dns: None,
    }
}

/// A condition that was set before keeps its time.
fn keep_since(mut new: Condition, before: &[Condition]) -> Condition {
    let known = before
        .iter()
        .find(|old| old.kind == new.kind && old.ok == new.ok && old.reason == new.reason);
    if let Some(old) = known {
        new.since = old.since.max(Timestamp::UNIX_EPOCH);
    }
    new
}

/// The resources of running guests.
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

/// Whether the host's other firewalls accept the guests' traffic.
fn foreign_firewall(host: &HostNetworkFacts, now: Timestamp) -> Option<Condition> {
    let names = host.foreign_firewalls.join(", ");
    let (ok, reason, message) = if let Some(trouble) = &host.firewall_error {
        let message = format!(
            "another firewall may drop traffic of guests ({names}), and adding a rule there failed: {trouble}. \
             Fix the cause, or accept traffic of the guests' bridge in that firewall yourself"
        );
        (false, "in-the-way", message)
    } else if !host.accepting_chains.is_empty() {
        let places = host.accepting_chains.join(", ");
        let message = format!("marked rules in {places} accept the guests' traffic");
        (true, "let-through", message)
    } else if !names.is_empty() {
        let message = format!("other firewalls on this node drop forwarded packets: {names}");
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
        host.accepting_chains = vec!["DOCKER-USER of iptables-nft".to_owned()];
        let through = foreign_firewall(&host, now).unwrap();
        assert!(through.ok && through.message.contains("DOCKER-USER"));
        host.firewall_error = Some("iptables-nft failed".to_owned());
        let in_the_way = foreign_firewall(&host, now).unwrap();
        assert!(!in_the_way.ok && in_the_way.message.contains("yourself"));
    }
}
