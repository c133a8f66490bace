//! The guests' network on Linux: a bridge, rules in the kernel's firewall, one dnsmasq, and a watch over them.
//!
//! `ensure` goes in an order in which nothing is ever open that should be closed: rules first (they name interfaces
//! that need not exist), then links, routes and the switch of forwarding, then DHCP. `ensure_absent` goes the other
//! way. Each step looks before it changes, so that a second `ensure` changes nothing.
//!
//! Everything happens in the network namespace of the calling process.

mod dnsmasq;
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
mod probe;
mod process;
mod reach;
mod record;
mod release;
mod removal;
mod routes;
mod sysctl;
mod tool;
mod unfit;
mod watch;

pub use reach::{GuestNic, ReachError, connect};

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tokio::sync::{Mutex, broadcast};
use waifud_types::TapName;
use waifud_types::spec::Protocol;

use self::inner::Inner;
use self::watch::Finding;
use crate::check::check;
use crate::{
    GuestNetwork, HostNetworkFacts, NetworkDrift, NetworkError, NetworkState, PortCounters,
    PortObservation,
};

/// Where things are, and what the host's administrator decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinuxNetworkConfig {
    /// For what is gone after a reboot: configuration for dnsmasq, its pid file, our record. dnsmasq's user must be
    /// able to enter it and all directories above.
    pub run_dir: PathBuf,
    /// For what stays: dnsmasq's memory of leases.
    pub state_dir: PathBuf,
    /// The program.
    pub dnsmasq: PathBuf,
    /// The program.
    pub nft: PathBuf,
    /// The directory of iptables' programs, for firewalls that are kept by it.
    pub iptables: PathBuf,
    /// Names that are not guests' are asked of the servers in this file.
    pub resolv_conf: PathBuf,
    /// How long a guest may use its lease before it must ask again (it asks at half that time).
    pub lease_time: Duration,
    /// Destinations that know the way back to guests, such as other nodes' subnets over a fabric: guests keep their
    /// own address towards them. All others see the host's.
    pub routed: Vec<Ipv4Net>,
    /// Interfaces that lead guests to the outside. Without any, those that default routes lead to.
    pub uplinks: Vec<String>,
}

impl LinuxNetworkConfig {
    /// Debian's places for tools, leases of 12 hours, and uplinks found by default routes.
    pub fn new(run_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            state_dir: state_dir.into(),
            dnsmasq: "/usr/sbin/dnsmasq".into(),
            nft: "/usr/sbin/nft".into(),
            iptables: "/usr/sbin".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            lease_time: Duration::from_hours(12),
            routed: Vec::new(),
            uplinks: Vec::new(),
        }
    }
}

/// The real [`GuestNetwork`]. Needs `CAP_NET_ADMIN` and, for dnsmasq's start, `CAP_NET_RAW`, `CAP_NET_BIND_SERVICE`,
/// `CAP_SETUID` and `CAP_SETGID`.
#[derive(Debug)]
pub struct LinuxNetwork {
    inner: Mutex<Inner>,
    drift: broadcast::Sender<NetworkDrift>,
    looks: tokio::sync::watch::Sender<u64>,
    myself: Weak<Self>,
}

impl LinuxNetwork {
    /// Touches nothing until it is asked to.
    pub fn new(config: LinuxNetworkConfig) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            inner: Mutex::new(Inner::new(config)),
            drift: broadcast::Sender::new(16),
            looks: tokio::sync::watch::Sender::new(0),
            myself: myself.clone(),
        })
    }

    /// Removes everything of ours from this host, for good, and `tunnel` if a tunnel of that name lingers (its process
    /// was killed). Returns what was there, in words; nothing when there was nothing.
    ///
    /// # Errors
    /// What could not be removed. Call it again: it goes on where it stopped.
    pub async fn remove(&self, tunnel: &str) -> Result<Vec<String>, NetworkError> {
        self.inner.lock().await.remove(Some(tunnel)).await
    }

    /// Names of the interfaces that are attached to `bridge`, sorted; none when there is no such bridge.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub async fn attached(&self, bridge: &str) -> Result<Vec<String>, NetworkError> {
        self.inner.lock().await.ports_of(bridge).await
    }

    /// How many looks at the machine have ended, those that found nothing included.
    pub fn looks(&self) -> tokio::sync::watch::Receiver<u64> {
        self.looks.subscribe()
    }

    /// One look at the machine: what is not as it was ensured. `full` looks at links and routes too.
    async fn look(&self, full: bool) -> Result<Option<Finding>, NetworkError> {
        self.inner.lock().await.look(full).await
    }
}

#[async_trait]
impl GuestNetwork for LinuxNetwork {
    async fn host_facts(&self) -> Result<HostNetworkFacts, NetworkError> {
        self.inner.lock().await.host_facts().await
    }

    async fn bridges(&self) -> Result<Vec<String>, NetworkError> {
        self.inner.lock().await.bridges().await
    }

    async fn ensure(&self, state: &NetworkState) -> Result<(), NetworkError> {
        check(state)?;
        let mut inner = self.inner.lock().await;
        if !inner.watched {
            watch::start(self.myself.clone())?;
            inner.watched = true;
        }
        inner.ensure(state).await
    }

    async fn ensure_absent(&self) -> Result<(), NetworkError> {
        self.inner.lock().await.remove(None).await.map(drop)
    }

    async fn listeners(&self) -> Result<BTreeSet<(Protocol, u16)>, NetworkError> {
        listeners::read()
    }

    async fn counters(&self, tap: &TapName) -> Result<Option<PortCounters>, NetworkError> {
        self.inner.lock().await.counters(tap).await
    }

    async fn sights(&self) -> Result<BTreeMap<TapName, PortObservation>, NetworkError> {
        self.inner.lock().await.sights().await
    }

    fn drift(&self) -> broadcast::Receiver<NetworkDrift> {
        self.drift.subscribe()
    }
}

/// An error of the kernel's about links, addresses, routes or rules, in its own words.
fn kernel(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let what = what.to_owned();
    move |error| NetworkError::Kernel {
        what,
        message: match error {
            rtnetlink::Error::NetlinkError(error) => error.to_io().to_string(),
            other => other.to_string(),
        },
    }
}

/// The same for a socket that can't be opened.
fn kernel_io(what: &str) -> impl FnOnce(std::io::Error) -> NetworkError {
    let what = what.to_owned();
    move |error| NetworkError::Kernel {
        what,
        message: error.to_string(),
    }
}
