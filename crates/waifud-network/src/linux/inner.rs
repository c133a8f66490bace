//! The steps of `ensure` and of the check for drift, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use rtnetlink::Handle;
use waifud_types::{MacAddr, TapName};

use super::config::LinuxNetworkConfig;
use super::dnsmasq::{self, Dnsmasq};
use super::firewall::Firewall;
use super::foreign::Foreign;
use super::generation::generation;
use super::lan;
use super::links::{self, Link, Links};
use super::record::{BridgeRecord, Record, RecordFile};
use super::return_route::return_routes;
use super::routes::{self, Routes};
use super::served::Served;
use super::sysctl::{self, Setting, switch, switch_back};
use super::tool::Tool;
use super::vlan::{self, PortVlans};
use super::watch::Finding;
use super::{files, neighbors, netlink};
use crate::check::overlap;
use crate::foreign::AcceptedInterfaces;
use crate::host_addresses;
use crate::remote;
use crate::ruleset::HostSide;
use crate::{
    Bridges, HostAddresses, HostNetworkFacts, LanPort, NetworkError, NetworkState, PortCounters,
    PortObservation,
};

#[derive(Debug)]
pub(super) struct Inner {
    config: LinuxNetworkConfig,
    pub(super) firewall: Firewall,
    pub(super) foreign: Foreign,
    pub(super) dnsmasq: Dnsmasq,
    pub(super) served: Served,
    pub(super) record_file: RecordFile,
    /// The content of that file, once it has been read.
    pub(super) record: Option<Record>,
    handle: Option<Handle>,
    /// The state that was ensured last, if `ensure` succeeded. Without addresses that the host or its routers have.
    pub(super) state: Option<Arc<NetworkState>>,
    /// The same state with those addresses.
    wanted: Option<Arc<NetworkState>>,
    /// The ports with such addresses, and the reason.
    refused: BTreeMap<TapName, String>,
    /// The guest subnets of other nodes that are left out, and the reason.
    refused_subnets: BTreeMap<Ipv4Net, String>,
    /// The host's bridges in the rules.
    bridges: BTreeMap<String, MacAddr>,
    /// The ports that could not be put in their VLAN, and the reason.
    astray: vlan::Failed,
    /// How often `ensure` has succeeded.
    ensured: u64,
    pub(super) watched: bool,
}

impl Inner {
    pub(super) fn new(config: LinuxNetworkConfig) -> Self {
        Self {
            firewall: Firewall::new(Tool::new("nft", config.nft.clone()), &config.run_dir),
            foreign: Foreign::new(
                Tool::new("nft", config.nft.clone()),
                config.iptables.clone(),
            ),
            dnsmasq: Dnsmasq::new(
                Tool::new("dnsmasq", config.dnsmasq.clone()),
                &config.run_dir,
                &config.state_dir,
                config.resolv_conf.clone(),
                config.lease_time,
            ),
            served: Served::new(
                Tool::new("dnsmasq", config.dnsmasq.clone()),
                &config.run_dir,
                config.dns_listen.clone(),
            ),
            record_file: RecordFile::new(config.run_dir.join("record.json")),
            record: None,
            handle: None,
            state: None,
            wanted: None,
            refused: BTreeMap::new(),
            refused_subnets: BTreeMap::new(),
            bridges: BTreeMap::new(),
            astray: vlan::Failed::new(),
            ensured: 0,
            watched: false,
            config,
        }
    }

    pub(super) async fn ensure(&mut self, state: &NetworkState) -> Result<(), NetworkError> {
        self.state = None;
        for dir in [&self.config.run_dir, &self.config.state_dir] {
            std::fs::create_dir_all(dir).map_err(files::io("making", dir))?;
        }
        let mut record = self.record()?;
        if record
            .bridge
            .as_ref()
            .is_some_and(|b| b.name != state.bridge)
        {
            self.remove(None).await?;
            record = Record::default();
        }
        let handle = self.handle()?;
        let links = Links::read(&handle).await?;
        let routes = Routes::read(&handle).await?;
        refuse_overlap(state, &links, &routes)?;

        let addresses = addresses_of_host(&routes);
        // The rules and routes below leave out addresses that guests must not have, and subnets in conflict.
        let wanted = state;
        let mut state = host_addresses::without(wanted, &addresses);
        let refused_subnets = refused_subnets(wanted, &links, &routes);
        remote::leave_out(&mut state, &refused_subnets);
        let state = &state;

        let switched = self.to_switch(state, &links, &routes, &record)?;
        let host = HostSide {
            switched: switched.clone(),
            routed: self.config.routed.clone(),
            bridges: lan::hosts_bridges(state, &links, &switched),
            knows_vlans: state.has_vlans() && self.firewall.knows_vlans().await,
            own: if state.lan.is_empty() {
                Vec::new()
            } else {
                addresses.own.clone()
            },
        };
        let vlans = PortVlans::read(&handle, state).await?;
        let ready = vlans.compare(state, &links).ready;
        self.firewall.ensure(state, &host, &ready).await?;
        let accepted = accepted_interfaces(state)?;
        if let Some((before, after)) = self.firewall.own_commit() {
            self.foreign.ignore_commit(before, after);
        }
        if !self.foreign.is_current(&accepted)? {
            let outcome = self.accept_in_other_firewalls(&accepted).await;
            self.foreign.record_outcome(&accepted, outcome);
        }

        let before = record.bridge.take();
        let ours = before.as_ref().map(|bridge| bridge.index);
        let bridge = links::ensure_bridge(&handle, &links, state, ours).await?;
        record.bridge = Some(BridgeRecord {
            name: state.bridge.clone(),
            index: bridge,
            gateway: state.gateway,
            subnet: state.subnet,
        });
        self.remember(&record)?;
        for (setting, value) in sysctl::of_bridge(&state.bridge) {
            setting.ensure(value)?;
        }
        let gateway_before = before.map(|bridge| IpAddr::V4(bridge.gateway));
        links::ensure_gateway(&handle, bridge, state, gateway_before).await?;
        neighbors::answer_for_metadata(&handle, bridge).await?;
        for tap in links.misattached(state, bridge) {
            links::attach(&handle, tap, bridge, true).await?;
        }
        let metadata = metadata_interface(&links, state);
        routes::ensure_metadata(&handle, &routes, state, metadata).await?;
        routes::ensure_further(&handle, &routes, state, bridge).await?;

        let answering = lan::bridges(state, &links);
        let answered = std::mem::take(&mut record.answering);
        record.answering = answering.iter().chain(&answered).cloned().collect();
        record.answering.sort();
        record.answering.dedup();
        self.remember(&record)?;
        lan::ensure(&handle, &links, state, &answered).await?;
        record.answering = answering;
        let ready = vlan::ensure(&handle, state, &mut self.astray).await?;
        self.firewall.set_ready(state, &host, &ready).await?;
        routes::ensure_return_routes(&handle, &routes, &return_routes(state, &links)).await?;

        // Recorded before the change, so that it is undone even if we are killed in between.
        let former = std::mem::take(&mut record.switched);
        record.switched = switched.iter().chain(&former).cloned().collect();
        record.switched.sort();
        record.switched.dedup();
        self.remember(&record)?;
        switch(switched.iter(), "1")?;
        let unused = former.iter().filter(|i| !switched.contains(i));
        switch_back(unused)?;
        record.switched.clone_from(&switched);

        let dnsmasq = self
            .dnsmasq
            .ensure(record.dnsmasq.as_ref(), state, bridge)
            .await?;
        record.dnsmasq = Some(dnsmasq);
        self.remember(&record)?;
        self.served.ensure(state, &addresses).await;
        self.state = Some(Arc::new(state.clone()));
        self.refused = host_addresses::troubles(wanted, &addresses);
        self.refused_subnets = refused_subnets;
        self.wanted = Some(Arc::new(wanted.clone()));
        self.bridges = host.bridges;
        self.ensured += 1;
        Ok(())
    }

    /// Adds missing rules to other firewalls. Returns the chains with our rules, and the generation at which all of them
    /// were seen; no generation if some were missing again. Our own tables are already in force.
    async fn accept_in_other_firewalls(
        &mut self,
        accepted: &AcceptedInterfaces,
    ) -> Result<(Vec<String>, Option<u32>), NetworkError> {
        let mut read_at = generation()?;
        let mut change = self.foreign.change(Some(accepted)).await?;
        if !change.is_empty() {
            // Our own rules are verified before and after, because the kernel counts any change as one of ours.
            self.firewall.is_intact().await?;
            self.foreign.apply(&change).await?;
            self.firewall.is_intact().await?;
            // Another firewall may have been reloaded meanwhile, so only what is read after our commits is certain.
            read_at = generation()?;
            change = self.foreign.change(Some(accepted)).await?;
        }
        let seen_at = change.is_empty().then_some(read_at);
        Ok((change.into_places(), seen_at))
    }

    pub(super) async fn host_facts(&mut self) -> Result<HostNetworkFacts, NetworkError> {
        let record = self.record()?;
        let handle = self.handle()?;
        let links = Links::read(&handle).await?;
        let ours: Vec<u32> = record.bridge.iter().map(|bridge| bridge.index).collect();
        let (accepting_chains, firewall_error) = self.foreign.outcome();
        Ok(HostNetworkFacts {
            accepting_chains,
            firewall_error,
            refused_subnets: match &self.state {
                Some(_) => self.refused_subnets.clone(),
                None => BTreeMap::new(),
            },
            vlan_bridges: self.vlan_aware(&links).await,
            bridges: links.bridges(),
            unfit_bridges: super::unfit::unfit(&links),
            routes: Routes::read(&handle).await?.foreign(&ours),
            foreign_firewalls: self.firewall.foreign().await?,
        })
    }

    pub(super) async fn bridges(&mut self) -> Result<Bridges, NetworkError> {
        let links = Links::read(&self.handle()?).await?;
        Ok(Bridges {
            all: links.bridges(),
            vlan_aware: self.vlan_aware(&links).await,
        })
    }

    /// Names of the bridges on which ports can be in a VLAN, sorted.
    async fn vlan_aware(&mut self, links: &Links) -> Vec<String> {
        let mut names = links.vlan_aware();
        if !names.is_empty() && !self.firewall.knows_vlans().await {
            names.clear();
        }
        names
    }

    pub(super) async fn counters(
        &mut self,
        tap: &TapName,
    ) -> Result<Option<PortCounters>, NetworkError> {
        self.firewall.counters(tap).await
    }

    pub(super) async fn observe_ports(
        &mut self,
    ) -> Result<BTreeMap<TapName, PortObservation>, NetworkError> {
        let Some(state) = self.state.clone() else {
            return Ok(BTreeMap::new());
        };
        let acknowledged = self.dnsmasq.acknowledged()?;
        let counted = self.firewall.counted(&state).await?;
        let troubles = self.lan_troubles(&state).await?;
        let macs: BTreeMap<_, _> = state.ports.iter().map(|p| (&p.tap, p.mac)).collect();
        let observations = counted.into_iter().map(|(tap, counters)| {
            let mac = macs.get(&tap);
            let acknowledged = mac.and_then(|mac| acknowledged.get(mac).copied());
            let observation = PortObservation {
                counters,
                acknowledged,
                learned: self.firewall.learned_at(&tap),
                trouble: troubles.get(&tap).cloned(),
            };
            (tap, observation)
        });
        Ok(observations.collect())
    }

    /// Reads what was learned at ports on bridges of the host. Returns the ports without a connection, and why.
    async fn lan_troubles(
        &mut self,
        state: &NetworkState,
    ) -> Result<BTreeMap<TapName, String>, NetworkError> {
        let mut troubles = self.refused.clone();
        if state.lan.is_empty() {
            return Ok(troubles);
        }
        let links = Links::read(&self.handle()?).await?;
        let trouble = |port: &LanPort| {
            let why = lan::trouble(&links, port);
            let why = why.or_else(|| vlan::trouble(&links, port, &self.astray))?;
            Some((port.tap.clone(), why))
        };
        troubles.extend(state.lan.iter().filter_map(trouble));
        self.firewall.learned(state).await?;
        Ok(troubles)
    }

    /// The first difference to the ensured state; `None` if there is none, or if no state was ensured.
    pub(super) async fn find_drift(&mut self, full: bool) -> Result<Option<Finding>, NetworkError> {
        let Some(state) = self.state.clone() else {
            return Ok(None);
        };
        let since = self.ensured;
        let found = |what: String| {
            Ok(Some(Finding {
                what,
                may_pass: false,
                since,
            }))
        };
        if !self.firewall.is_intact().await? {
            return found("firewall rules were changed".to_owned());
        }
        if !self
            .foreign
            .is_intact(&accepted_interfaces(&state)?, full)
            .await?
        {
            return found("another firewall was changed and drops guests' packets".to_owned());
        }
        let record = self.record()?;
        if record.dnsmasq.as_ref().and_then(dnsmasq::process).is_none() {
            return found("dnsmasq has ended".to_owned());
        }
        if let Some(difference) = self.served.difference(None)? {
            return found(difference);
        }
        if !full {
            return Ok(None);
        }
        let handle = self.handle()?;
        let links = Links::read(&handle).await?;
        if let Some(difference) = links.bridge_difference(&state) {
            return found(difference);
        }
        let bridge = record.bridge.map(|bridge| bridge.index);
        let there = links.named(&state.bridge).map(|link| link.index);
        let (Some(index), true) = (there, there == bridge) else {
            return found(format!("bridge {} was created again", state.bridge));
        };
        if !links::has_gateway(&handle, index, &state).await? {
            return found(format!("bridge {} has lost its address", state.bridge));
        }
        for (setting, value) in sysctl::of_bridge(&state.bridge) {
            if !setting.is(value)? {
                return found(format!("a setting of {} was changed", state.bridge));
            }
        }
        let routes = Routes::read(&handle).await?;
        if let Some(difference) = self.served.difference(Some(&addresses_of_host(&routes)))? {
            return found(difference);
        }
        if let Some(wanted) = &self.wanted
            && host_addresses::troubles(wanted, &addresses_of_host(&routes)) != self.refused
        {
            return found("the addresses or routers of this node have changed".to_owned());
        }
        if let Some(wanted) = &self.wanted
            && refused_subnets(wanted, &links, &routes) != self.refused_subnets
        {
            return found(
                "the routes of this node to other nodes' subnets have changed".to_owned(),
            );
        }
        // Applying the state again fails, which is reported.
        if let Err(overlap) = refuse_overlap(&state, &links, &routes) {
            return found(overlap.to_string());
        }
        let metadata = metadata_interface(&links, &state);
        if !routes::rules_are_intact(&handle, &state).await? || !routes.has_metadata_route(metadata)
        {
            return found("routes to metadata were changed".to_owned());
        }
        if !routes::has_further(&routes, &state, index) {
            return found("routes to guests were changed".to_owned());
        }
        let lan_is_intact = routes.match_return_routes(&return_routes(&state, &links))
            && lan::is_intact(&handle, &links, &state).await?;
        if !lan_is_intact {
            return found("return routes to ports on the host's bridges were changed".to_owned());
        }
        let interfaces = self.forwarding_interfaces(&state, &links, &routes);
        let bridges = lan::hosts_bridges(&state, &links, &interfaces);
        if let Some(name) = lan::moved(&self.bridges, &bridges) {
            return found(format!("the MAC address of bridge {name} has changed"));
        }
        for interface in interfaces {
            if !Setting::forwarding(&interface).is("1")? {
                return found(format!("forwarding on {interface} was disabled"));
            }
        }
        let vlans = PortVlans::read(&handle, &state).await?;
        let vlans = vlans.compare(&state, &links);
        if let Some(difference) =
            vlan::difference(&vlans, &links, &self.firewall.ready(), &self.astray)
        {
            return found(difference);
        }
        let mut astray = links.misattached(&state, index);
        astray.extend(lan::misattached(&state, &links).iter().map(|(tap, _)| *tap));
        Ok(astray.first().map(|tap| Finding {
            what: format!("{} is not a port of its bridge", tap.name),
            may_pass: true,
            since,
        }))
    }

    pub(super) fn record(&mut self) -> Result<Record, NetworkError> {
        if self.record.is_none() {
            self.record = Some(self.record_file.load()?);
        }
        Ok(self.record.clone().unwrap_or_default())
    }

    fn remember(&mut self, record: &Record) -> Result<(), NetworkError> {
        if self.record.as_ref() != Some(record) {
            self.record = None;
            self.record_file.save(record)?;
            self.record = Some(record.clone());
        }
        Ok(())
    }

    pub(super) fn handle(&mut self) -> Result<Handle, NetworkError> {
        if let Some(handle) = &self.handle {
            return Ok(handle.clone());
        }
        let handle = netlink::connect("opening a netlink socket for links")?;
        self.handle = Some(handle.clone());
        Ok(handle)
    }

    /// Interfaces other than the bridge that must forward received packets, because answers to guests arrive there.
    fn forwarding_interfaces(
        &self,
        state: &NetworkState,
        links: &Links,
        routes: &Routes,
    ) -> Vec<String> {
        let mut names: Vec<String> = if self.config.uplinks.is_empty() {
            let mut uplinks = routes.uplinks();
            // A published port can be reached at any address of the host.
            if state.ports.iter().any(|port| !port.publish.is_empty()) {
                uplinks.extend(routes.addressed());
            }
            let names = uplinks.iter().filter_map(|index| links.name_of(*index));
            names.map(str::to_owned).collect()
        } else {
            let there = self.config.uplinks.iter();
            there
                .filter(|name| links.named(name).is_some())
                .cloned()
                .collect()
        };
        names.extend(
            links
                .named(&state.metadata_interface)
                .map(|link| link.name.clone()),
        );
        names.extend(lan::bridges(state, links));
        names.extend(fabrics(state, links).map(|link| link.name.clone()));
        names.retain(|name| *name != state.bridge && name != "lo");
        names.sort();
        names.dedup();
        names
    }

    /// Those of them that forward only for guests: they did not forward before, or do so because of us.
    fn to_switch(
        &self,
        state: &NetworkState,
        links: &Links,
        routes: &Routes,
        record: &Record,
    ) -> Result<Vec<String>, NetworkError> {
        // The administrator made the host a router, so we do not restrict what it forwards.
        if Setting::forwarding_everywhere().is("1")? {
            return Ok(Vec::new());
        }
        let mut switched = self.forwarding_interfaces(state, links, routes);
        let mut failure = None;
        switched.retain(|name| {
            let on = Setting::forwarding(name).is("1");
            let on = on.unwrap_or_else(|error| {
                failure = Some(error);
                false
            });
            !on || record.switched.contains(name)
        });
        failure.map_or(Ok(switched), Err)
    }
}

/// Addresses that no guest may have.
fn addresses_of_host(routes: &Routes) -> HostAddresses {
    HostAddresses {
        own: routes.own(),
        routers: routes.routers(),
    }
}

/// The interfaces whose packets other firewalls must accept.
fn accepted_interfaces(state: &NetworkState) -> Result<AcceptedInterfaces, NetworkError> {
    let mut bridged: Vec<_> = state.lan.iter().map(|p| p.bridge.clone()).collect();
    bridged.sort();
    bridged.dedup();
    if !Setting::bridged_frames_are_filtered().is("1")? {
        bridged.clear();
    }
    let has_identities = state.lan.iter().any(|port| port.identity.is_some());
    Ok(AcceptedInterfaces {
        bridge: state.bridge.clone(),
        metadata: has_identities.then(|| state.metadata_interface.clone()),
        bridged,
    })
}

/// The index of the interface to metadatad, if it exists and is up.
fn metadata_interface(links: &Links, state: &NetworkState) -> Option<u32> {
    let link = links.named(&state.metadata_interface)?;
    link.up.then_some(link.index)
}

/// Refuses a subnet that overlaps a destination of the host's routes.
fn refuse_overlap(
    state: &NetworkState,
    links: &Links,
    routes: &Routes,
) -> Result<(), NetworkError> {
    let ours: Vec<u32> = links
        .named(&state.bridge)
        .map(|link| link.index)
        .into_iter()
        .collect();
    let foreign = routes.foreign(&ours);
    match foreign.iter().find(|other| overlap(**other, state.subnet)) {
        Some(other) => Err(NetworkError::Overlap {
            subnet: state.subnet,
            other: *other,
        }),
        None => Ok(()),
    }
}

/// The interfaces of fabrics that exist.
fn fabrics<'a>(state: &'a NetworkState, links: &'a Links) -> impl Iterator<Item = &'a Link> {
    let fabrics = state.remote_subnets.iter();
    let fabrics: BTreeSet<_> = fabrics.filter_map(|r| r.fabric.as_deref()).collect();
    fabrics.into_iter().filter_map(|name| links.named(name))
}

/// Guest subnets of other nodes that cannot be used here, with the reason.
fn refused_subnets(
    state: &NetworkState,
    links: &Links,
    routes: &Routes,
) -> BTreeMap<Ipv4Net, String> {
    if state.remote_subnets.is_empty() {
        return BTreeMap::new();
    }
    // An uplink has routes of the host, too; those of the fabric are told by their protocol.
    let dedicated = state.remote_subnets.iter().filter(|remote| !remote.shared);
    let dedicated = dedicated.filter_map(|remote| links.named(remote.fabric.as_deref()?));
    let ours = links.named(&state.bridge).into_iter();
    let ours: Vec<_> = ours.chain(dedicated).map(|link| link.index).collect();
    remote::refused(state, &routes.foreign(&ours))
}
