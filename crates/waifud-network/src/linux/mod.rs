//! The guests' network on Linux: a bridge, nftables rules, one dnsmasq, and a watch over them.
//!
//! `ensure` works in an order in which no forbidden traffic is ever accepted: rules first (they name interfaces that need
//! not exist), then links, routes and forwarding, then DHCP. `ensure_absent` works in the opposite order. Each step reads
//! the present state before it changes anything, so a second `ensure` changes nothing.
//!
//! Everything happens in the network namespace of the calling process.

mod config;
mod dnsmasq;
mod fabric;
mod files;
mod firewall;
mod foreign;
mod generation;
mod in_use;
mod inner;
mod lan;
mod learned;
mod links;
mod listeners;
mod neighbors;
mod netlink;
mod nft_session;
mod probe;
mod process;
mod reach;
mod record;
mod release;
mod removal;
mod return_route;
mod routes;
mod served;
mod sysctl;
mod tool;
mod unfit;
mod vlan;
mod watch;

pub use config::LinuxNetworkConfig;
pub use fabric::LinuxFabric;
pub use reach::{GuestNic, ReachError, connect};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, broadcast};
use waifud_types::TapName;
use waifud_types::spec::Protocol;

use self::inner::Inner;
use self::watch::Finding;
use crate::check::check;
use crate::{
    Bridges, DnsAddress, GuestNetwork, HostNetworkFacts, NetworkDrift, NetworkError, NetworkState,
    PortCounters, PortObservation,
};

/// The real [`GuestNetwork`]. Needs `CAP_NET_ADMIN` and, for dnsmasq's start, `CAP_NET_RAW`, `CAP_NET_BIND_SERVICE`,
/// `CAP_SETUID` and `CAP_SETGID`.
#[derive(Debug)]
pub struct LinuxNetwork {
    inner: Mutex<Inner>,
    drift: broadcast::Sender<NetworkDrift>,
    checks: tokio::sync::watch::Sender<u64>,
    full_check: Duration,
    myself: Weak<Self>,
}

impl LinuxNetwork {
    /// Changes nothing until [`GuestNetwork::ensure`] is called.
    pub fn new(config: LinuxNetworkConfig) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            full_check: config.full_check,
            inner: Mutex::new(Inner::new(config)),
            drift: broadcast::Sender::new(16),
            checks: tokio::sync::watch::Sender::new(0),
            myself: myself.clone(),
        })
    }

    /// Removes from this host everything that waifud added, and the tunnel interface `tunnel` if a killed process has left it
    /// behind. Returns what was removed, as text.
    ///
    /// # Errors
    /// What could not be removed. A further call continues there.
    pub async fn remove(&self, tunnel: &str) -> Result<Vec<String>, NetworkError> {
        self.inner.lock().await.remove(Some(tunnel)).await
    }

    /// Names of the interfaces that are attached to `bridge`, sorted. Empty if there is no such bridge.
    ///
    /// # Errors
    /// The kernel does not list its links.
    pub async fn attached(&self, bridge: &str) -> Result<Vec<String>, NetworkError> {
        self.inner.lock().await.ports_of(bridge).await
    }

    /// How many checks for drift have ended, with or without a finding.
    pub fn checks(&self) -> tokio::sync::watch::Receiver<u64> {
        self.checks.subscribe()
    }

    /// Compares the machine with the ensured state. `full` includes links and routes.
    async fn find_drift(&self, full: bool) -> Result<Option<Finding>, NetworkError> {
        self.inner.lock().await.find_drift(full).await
    }
}

#[async_trait]
impl GuestNetwork for LinuxNetwork {
    async fn host_facts(&self) -> Result<HostNetworkFacts, NetworkError> {
        self.inner.lock().await.host_facts().await
    }

    async fn bridges(&self) -> Result<Bridges, NetworkError> {
        self.inner.lock().await.bridges().await
    }

    async fn ensure(&self, state: &NetworkState) -> Result<(), NetworkError> {
        check(state)?;
        let mut inner = self.inner.lock().await;
        if !inner.watched {
            watch::start(self.myself.clone(), self.full_check)?;
            inner.watched = true;
        }
        inner.ensure(state).await
    }

    async fn ensure_absent(&self) -> Result<(), NetworkError> {
        self.inner.lock().await.remove(None).await.map(drop)
    }

    async fn dns(&self) -> Vec<DnsAddress> {
        self.inner.lock().await.served.status()
    }

    async fn listeners(&self) -> Result<BTreeSet<(Protocol, u16)>, NetworkError> {
        listeners::read()
    }

    async fn counters(&self, tap: &TapName) -> Result<Option<PortCounters>, NetworkError> {
        self.inner.lock().await.counters(tap).await
    }

    async fn observe_ports(&self) -> Result<BTreeMap<TapName, PortObservation>, NetworkError> {
        self.inner.lock().await.observe_ports().await
    }

    fn drift(&self) -> broadcast::Receiver<NetworkDrift> {
        self.drift.subscribe()
    }
}
