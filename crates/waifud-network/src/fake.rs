//! A fake network in memory with fault injection, for the agent's tests and the simulation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::broadcast;
use waifud_types::spec::Protocol;
use waifud_types::{TapName, Timestamp};

use crate::check::check;
use crate::host_addresses;
use crate::remote;
use crate::vlan;
use crate::{
    Bridges, DnsAddress, GuestNetwork, HostAddresses, HostNetworkFacts, NetworkDrift, NetworkError,
    NetworkState, Port, PortCounters, PortObservation,
};

/// The calls that tests can make fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// [`GuestNetwork::host_facts`].
    HostFacts,
    /// [`GuestNetwork::ensure`].
    Ensure,
    /// [`GuestNetwork::ensure_absent`].
    EnsureAbsent,
    /// [`GuestNetwork::listeners`].
    Listeners,
    /// [`GuestNetwork::counters`].
    Counters,
    /// [`GuestNetwork::observe_ports`].
    Sights,
}

/// The fake. It passes the same conformance tests as the real adapter.
#[derive(Debug)]
pub struct FakeNetwork {
    inner: Mutex<Inner>,
    drift: broadcast::Sender<NetworkDrift>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Option<NetworkState>,
    facts: HostNetworkFacts,
    listeners: BTreeSet<(Protocol, u16)>,
    counters: HashMap<TapName, PortCounters>,
    acknowledged: HashMap<TapName, Timestamp>,
    learned: HashMap<TapName, BTreeSet<IpAddr>>,
    no_bridges: BTreeSet<String>,
    dns: Vec<DnsAddress>,
    addresses: HostAddresses,
    silent_listeners: bool,
    faults: HashMap<Call, u32>,
    loses_answers: bool,
    ensured: u64,
}

impl FakeNetwork {
    /// A host without bridges, routes or programs.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            drift: broadcast::Sender::new(16),
        })
    }

    /// The state that was ensured last; `None` before the first `ensure` and after `ensure_absent`.
    pub fn state(&self) -> Option<NetworkState> {
        self.lock().state.clone()
    }

    /// The ports in the state that was ensured last.
    pub fn ports(&self) -> Vec<Port> {
        let inner = self.lock();
        inner
            .state
            .as_ref()
            .map_or_else(Vec::new, |state| state.ports.clone())
    }

    /// How many times `ensure` was called, including failures.
    pub fn ensured(&self) -> u64 {
        self.lock().ensured
    }

    /// Sets what `host_facts` returns.
    pub fn set_facts(&self, facts: HostNetworkFacts) {
        self.lock().facts = facts;
    }

    /// Sets the ports that programs of the host listen on.
    pub fn set_listeners(&self, listeners: impl IntoIterator<Item = (Protocol, u16)>) {
        self.lock().listeners = listeners.into_iter().collect();
    }

    /// Makes the next `times` calls fail without a change.
    pub fn fail(&self, call: Call, times: u32) {
        self.lock().faults.insert(call, times);
    }

    /// Sets whether `ensure` returns an error after applying the state, as if its answer came too late.
    pub fn lose_answers(&self, lose: bool) {
        self.lock().loses_answers = lose;
    }

    /// Sets the counters of a port, if it is known.
    pub fn set_counters(&self, tap: &TapName, counters: PortCounters) {
        if let Some(held) = self.lock().counters.get_mut(tap) {
            *held = counters;
        }
    }

    /// Records that a guest's lease was confirmed. Forgotten when its port is removed.
    pub fn acknowledge(&self, tap: &TapName, at: Timestamp) {
        self.lock().acknowledged.insert(tap.clone(), at);
    }

    /// Records an address learned at a port on a bridge of the host. Forgotten when its port is removed.
    pub fn learn(&self, tap: &TapName, address: IpAddr) {
        let mut inner = self.lock();
        inner
            .learned
            .entry(tap.clone())
            .or_default()
            .insert(address);
    }

    /// Removes a bridge of the host, for ports of [`NetworkState::lan`].
    pub fn lose_bridge(&self, name: &str) {
        self.lock().no_bridges.insert(name.to_owned());
    }

    /// Sets the addresses at which guests' names resolve once a state is ensured.
    pub fn set_dns(&self, dns: Vec<DnsAddress>) {
        self.lock().dns = dns;
    }

    /// Sets the addresses of the host and its routers, which no port gets.
    pub fn set_addresses(&self, addresses: HostAddresses) {
        self.lock().addresses = addresses;
    }

    /// Makes `listeners` hang until this is changed.
    pub fn set_listeners_silent(&self, silent: bool) {
        self.lock().silent_listeners = silent;
    }

    /// Drops the rules, as `nft flush ruleset` would, and reports the drift.
    pub fn cause_drift(&self, what: &str) {
        let mut inner = self.lock();
        inner.state = None;
        inner.counters.clear();
        drop(inner);
        // There may be no subscriber.
        let _ = self.drift.send(NetworkDrift {
            what: what.to_owned(),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The data are plain values, which stay valid after a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn trouble(&self, tap: &TapName) -> Option<String> {
        let state = self.state.as_ref()?;
        if let Some(why) = host_addresses::troubles(state, &self.addresses).remove(tap) {
            return Some(why);
        }
        let port = state.lan.iter().find(|port| port.tap == *tap)?;
        if self.no_bridges.contains(&port.bridge) {
            return Some(format!("this node has no bridge {}", port.bridge));
        }
        let is_aware = self.facts.vlan_bridges.contains(&port.bridge);
        vlan::not_aware(port).filter(|_| !is_aware)
    }

    fn fault(&mut self, call: Call) -> Result<(), NetworkError> {
        match self.faults.get_mut(&call) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(NetworkError::Tool {
                    tool: "fake",
                    message: format!("injected failure of {call:?}"),
                })
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl GuestNetwork for FakeNetwork {
    async fn bridges(&self) -> Result<Bridges, NetworkError> {
        self.host_facts().await.map(|facts| Bridges {
            all: facts.bridges,
            vlan_aware: facts.vlan_bridges,
        })
    }

    async fn host_facts(&self) -> Result<HostNetworkFacts, NetworkError> {
        let mut inner = self.lock();
        inner.fault(Call::HostFacts)?;
        let mut facts = inner.facts.clone();
        if let Some(state) = &inner.state
            && !facts.bridges.contains(&state.bridge)
        {
            facts.bridges.push(state.bridge.clone());
        }
        if let Some(state) = &inner.state {
            facts.refused_subnets = remote::refused(state, &facts.routes);
        }
        Ok(facts)
    }

    async fn ensure(&self, state: &NetworkState) -> Result<(), NetworkError> {
        let mut inner = self.lock();
        inner.ensured += 1;
        inner.fault(Call::Ensure)?;
        check(state)?;
        let taken = inner
            .facts
            .routes
            .iter()
            .find(|route| crate::check::overlap(**route, state.subnet));
        if let Some(other) = taken {
            return Err(NetworkError::Overlap {
                subnet: state.subnet,
                other: *other,
            });
        }
        let taps = state.ports.iter().map(|port| &port.tap);
        let taps = taps.chain(state.lan.iter().map(|port| &port.tap));
        let counters = taps
            .map(|tap| {
                let mut held = inner.counters.get(tap).cloned().unwrap_or_default();
                let mut ports = state.ports.iter().filter(|port| port.tap == *tap);
                let rules = ports.next().map_or(&[][..], |port| &port.firewall.rules);
                let counted = std::mem::take(&mut held.firewall.rules);
                held.firewall.rules = rules
                    .iter()
                    .map(|rule| (rule.id, counted.get(&rule.id).copied().unwrap_or_default()))
                    .collect();
                (tap.clone(), held)
            })
            .collect();
        inner.counters = counters;
        let ports = &state.ports;
        inner
            .acknowledged
            .retain(|tap, _| ports.iter().any(|port| port.tap == *tap));
        let lan = &state.lan;
        inner
            .learned
            .retain(|tap, _| lan.iter().any(|port| port.tap == *tap));
        inner.state = Some(state.clone());
        if inner.loses_answers {
            return Err(NetworkError::Tool {
                tool: "fake",
                message: "the answer was lost".to_owned(),
            });
        }
        Ok(())
    }

    async fn ensure_absent(&self) -> Result<(), NetworkError> {
        let mut inner = self.lock();
        inner.fault(Call::EnsureAbsent)?;
        inner.state = None;
        inner.counters.clear();
        inner.acknowledged.clear();
        inner.learned.clear();
        Ok(())
    }

    async fn dns(&self) -> Vec<DnsAddress> {
        let inner = self.lock();
        let is_ensured = inner.state.is_some();
        let dns = inner.dns.iter().filter(|_| is_ensured);
        dns.cloned().collect()
    }

    async fn listeners(&self) -> Result<BTreeSet<(Protocol, u16)>, NetworkError> {
        if self.lock().silent_listeners {
            std::future::pending::<()>().await;
        }
        let mut inner = self.lock();
        inner.fault(Call::Listeners)?;
        Ok(inner.listeners.clone())
    }

    async fn counters(&self, tap: &TapName) -> Result<Option<PortCounters>, NetworkError> {
        let mut inner = self.lock();
        inner.fault(Call::Counters)?;
        Ok(inner.counters.get(tap).cloned())
    }

    async fn observe_ports(&self) -> Result<BTreeMap<TapName, PortObservation>, NetworkError> {
        let mut inner = self.lock();
        inner.fault(Call::Sights)?;
        let observation = |(tap, counters): (&TapName, &PortCounters)| {
            let observation = PortObservation {
                counters: counters.clone(),
                acknowledged: inner.acknowledged.get(tap).copied(),
                learned: inner
                    .learned
                    .get(tap)
                    .into_iter()
                    .flatten()
                    .copied()
                    .collect(),
                trouble: inner.trouble(tap),
            };
            (tap.clone(), observation)
        };
        Ok(inner.counters.iter().map(observation).collect())
    }

    fn drift(&self) -> broadcast::Receiver<NetworkDrift> {
        self.drift.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{lan_port, state};

    #[tokio::test]
    async fn the_fake_store_passes_the_conformance_tests() {
        let network = FakeNetwork::new();
        let mut state = state(3);
        state.lan = vec![lan_port(0), lan_port(1)];
        crate::conformance::all(network.as_ref(), &state).await;
        network.set_facts(HostNetworkFacts {
            bridges: vec!["br0".to_owned()],
            vlan_bridges: vec!["br0".to_owned()],
            ..HostNetworkFacts::default()
        });
        crate::conformance::all(network.as_ref(), &state).await;
    }

    #[tokio::test]
    async fn an_injected_failure_occurs_as_often_as_requested_and_changes_nothing() {
        let network = FakeNetwork::new();
        network.fail(Call::Ensure, 2);
        for _ in 0..2 {
            network.ensure(&state(1)).await.unwrap_err();
            assert_eq!(network.state(), None);
        }
        network.ensure(&state(1)).await.unwrap();
        assert_eq!(network.ensured(), 3);
    }

    #[tokio::test]
    async fn drift_is_reported_and_needs_an_ensure() {
        let network = FakeNetwork::new();
        let mut drift = network.drift();
        network.ensure(&state(1)).await.unwrap();
        network.cause_drift("rules flushed");
        assert_eq!(drift.recv().await.unwrap().what, "rules flushed");
        assert_eq!(network.state(), None);
    }

    #[tokio::test]
    async fn a_subnet_that_the_host_already_routes_is_refused() {
        let network = FakeNetwork::new();
        network.set_facts(HostNetworkFacts {
            routes: vec!["10.144.0.0/16".parse().unwrap()],
            ..HostNetworkFacts::default()
        });
        let error = network.ensure(&state(0)).await.unwrap_err();
        assert!(matches!(error, NetworkError::Overlap { .. }), "{error}");
    }
}
