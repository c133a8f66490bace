//! The node's network: one reconciler that tracks which ports are applied.
//!
//! Drivers request their port. What is applied is always the state of the whole node, computed from every record, so that
//! concurrent requests cost one change together. A port stays until its instance is deleted: an instance that only left
//! the slice keeps its lease and its rules.

mod clients;
pub(crate) mod dns;
pub(crate) mod fabric;
pub(crate) mod firewall;
pub(crate) mod identity;
pub(crate) mod lan;
mod names;
pub(crate) mod port_error;
pub(crate) mod ports;
pub(crate) mod published;
pub(crate) mod remote;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use waifud_kit::sync::lock;
use waifud_network::fabric::Fabric;
use waifud_network::{GuestNetwork, NetworkState, PortObservation};
use waifud_types::spec::PublishSpec;
use waifud_types::{InstanceId, TapName};

use self::clients::client_subnet;
use self::fabric::NodeFabric;
use self::names::remote_names;
use self::port_error::{PortError, port_error};
use self::ports::{choose_ports, local_addresses, ports_of};
use self::published::Published;
use self::remote::remote_subnets;
use crate::control_link::record::InstanceRecord;
use crate::control_link::table::Table;
use crate::failpoints;
use crate::settings::Settings;

/// The time limit of one change. The tools that it runs have limits of their own.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The time limit for listing the ports that programs listen on, which reads four files.
const LISTENERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The network of a node; see the module documentation.
pub struct Network {
    adapter: Arc<dyn GuestNetwork>,
    fabric: NodeFabric,
    settings: Settings,
    /// Held while the network is changed.
    changing: tokio::sync::Mutex<()>,
    check: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The confirmed state, apart from `begun`.
    applied: Option<NetworkState>,
    /// A change that was begun and is not confirmed: any part of it may be applied, also after a failure.
    begun: Option<NetworkState>,
    published: Published,
    /// Instances whose ports are to be removed.
    released: BTreeSet<InstanceId>,
    /// Released instances whose removal is confirmed.
    gone: BTreeSet<InstanceId>,
    /// Applied ports that carry no traffic, and why.
    blocked: BTreeMap<TapName, String>,
    /// Whether guests' reports are refused.
    refuse_reports: bool,
    /// Counts invalidations, so that one during a change is noticed.
    invalidated: u64,
}

impl Network {
    pub fn new(
        adapter: Arc<dyn GuestNetwork>,
        fabric: Arc<dyn Fabric>,
        settings: Settings,
    ) -> Self {
        Self {
            adapter,
            fabric: NodeFabric::new(fabric, settings.bridge.clone()),
            settings,
            changing: tokio::sync::Mutex::new(()),
            check: Notify::new(),
            inner: Mutex::default(),
        }
    }

    /// What connects the guests to those of other nodes.
    pub fn fabric(&self) -> &NodeFabric {
        &self.fabric
    }

    /// Requests a check of the network.
    pub fn request_check(&self) {
        self.check.notify_one();
    }

    /// Returns when a check was requested.
    pub async fn check_requested(&self) {
        self.check.notified().await;
    }

    /// Whether every port of the instance is applied, as far as known.
    pub fn in_force(&self, record: &InstanceRecord) -> bool {
        let inner = self.inner();
        let in_state = |state: &NetworkState| {
            ports_of(record).is_ok_and(|mut ports| {
                inner.published.leave_out(&mut ports);
                ports.iter().all(|port| {
                    state.ports.contains(port) && !inner.blocked.contains_key(&port.tap)
                })
            }) && lan::ports_of(record).is_ok_and(|ports| {
                ports
                    .iter()
                    .all(|port| state.lan.contains(port) && !inner.blocked.contains_key(&port.tap))
            })
        };
        !inner.released.contains(&record.id)
            && inner.applied.as_ref().is_some_and(in_state)
            && inner.begun.as_ref().is_none_or(in_state)
    }

    /// The instance's published ports that are taken by a program on this node.
    pub fn refused(&self, id: InstanceId) -> Vec<PublishSpec> {
        self.inner().published.refused_of(id)
    }

    /// Whether published ports wait because the ports of this node's programs could not be listed.
    pub fn listeners_are_unknown(&self) -> bool {
        self.inner().published.is_unseen()
    }

    /// Whether a port of the instance may be applied. True until the removal is confirmed.
    pub fn may_hold(&self, id: InstanceId) -> bool {
        !self.inner().gone.contains(&id)
    }

    /// Applies the instance's ports.
    pub async fn ensure(&self, table: &Table, id: InstanceId) -> Result<(), PortError> {
        {
            let mut inner = self.inner();
            inner.released.remove(&id);
            inner.gone.remove(&id);
        }
        let record = table.view(id).map(|view| view.record);
        if let Some(record) = &record {
            ports_of(record)?;
            lan::ports_of(record)?;
            if self.in_force(record) {
                return Ok(());
            }
        }
        let conflicts = self.apply(table, false).await?;
        let problem = conflicts.get(&id).cloned().or_else(|| {
            let inner = self.inner();
            let record = record.as_ref()?;
            let (routed, lan) = (ports_of(record).ok()?, lan::ports_of(record).ok()?);
            let taps = routed.iter().map(|port| &port.tap);
            let mut taps = taps.chain(lan.iter().map(|port| &port.tap));
            taps.find_map(|tap| inner.blocked.get(tap)).cloned()
        });
        problem.map_or(Ok(()), |message| {
            Err(PortError {
                message,
                lasting: true,
            })
        })
    }

    /// Removes the ports that no record has any more.
    pub async fn remove_ports(&self, table: &Table) -> Result<(), PortError> {
        self.apply(table, false).await.map(drop)
    }

    /// Records what was observed at the ports.
    pub fn record_observations(&self, observations: &BTreeMap<TapName, PortObservation>) {
        let blocked = observations.iter();
        let blocked = blocked.filter_map(|(tap, s)| Some((tap.clone(), s.trouble.clone()?)));
        self.inner().blocked = blocked.collect();
    }

    /// Whether guests' reports are, or may be, refused.
    pub fn are_reports_refused(&self) -> bool {
        let inner = self.inner();
        let mut states = inner.applied.iter().chain(&inner.begun);
        inner.refuse_reports || states.any(|state| state.refuse_reports)
    }

    /// Makes the node refuse guests' reports, or accept them again.
    pub async fn set_reports_refused(&self, table: &Table, refused: bool) -> Result<(), PortError> {
        self.inner().refuse_reports = refused;
        // Without a subnet, no rules are applied and no guest has a port.
        if table.node().slice.is_none() {
            return Ok(());
        }
        self.apply(table, false).await.map(drop)
    }

    /// Removes the instance's ports.
    pub async fn release(&self, table: &Table, id: InstanceId) -> Result<(), PortError> {
        self.inner().released.insert(id);
        // Without a subnet nothing was applied.
        if table.node().slice.is_none() {
            self.inner().gone.insert(id);
            return Ok(());
        }
        self.apply(table, false).await.map(drop)
    }

    /// Requests that the whole state is applied again, because the applied state is unknown.
    pub fn invalidate(&self) {
        let mut inner = self.inner();
        inner.applied = None;
        inner.invalidated += 1;
    }

    /// Applies the state that follows from the records; with `force` even if it seems to be applied. Returns the
    /// instances whose ports conflict with others, with the reason.
    pub async fn apply(
        &self,
        table: &Table,
        force: bool,
    ) -> Result<BTreeMap<InstanceId, String>, PortError> {
        let _one_at_a_time = self.changing.lock().await;
        // Computed under the lock: the change before may already include the port of a caller that waited.
        let (applied, released, invalidated, refuse_reports) = {
            let inner = self.inner();
            (
                inner.applied.clone(),
                inner.released.clone(),
                inner.invalidated,
                inner.refuse_reports,
            )
        };
        let Some(slice) = table.node().slice else {
            return Err(PortError {
                message: "waifud has not assigned a subnet to this node yet".to_owned(),
                lasting: false,
            });
        };
        if !self.fabric.was_tried()
            && let Err(error) = self.fabric.apply(table).await
        {
            tracing::warn!(%error, "cannot connect to the guests of other nodes yet");
        }
        let records = table.records();
        let peers = table.peers();
        let local = local_addresses(&records);
        self.fabric.note_local_addresses(&local, &peers);
        self.inner()
            .released
            .retain(|id| records.iter().any(|record| record.id == *id));
        let in_force: BTreeSet<TapName> = applied
            .iter()
            .flat_map(|state| {
                let lan = state.lan.iter().map(|port| &port.tap);
                state.ports.iter().map(|port| &port.tap).chain(lan)
            })
            .cloned()
            .collect();
        let applied_fabric = self.fabric.applied();
        let empty = NetworkState {
            bridge: self.settings.bridge.clone(),
            subnet: slice.subnet,
            gateway: slice.gateway,
            gateway_mac: slice.gateway_mac,
            metadata_interface: self.settings.metadata_interface.clone(),
            mtu: self.settings.mtu,
            domain: self.settings.domain.clone(),
            ports: Vec::new(),
            lan: Vec::new(),
            refuse_reports,
            remote_subnets: remote_subnets(&peers, &local, &applied_fabric)
                .into_iter()
                .chain(client_subnet(&slice, &applied_fabric))
                .collect(),
            remote_names: remote_names(&table.names(), &peers, &records).into(),
        };
        let (mut state, conflicts) = choose_ports(empty, &records, &released, &in_force);
        self.leave_out_taken(&mut state).await?;
        if force || applied.as_ref() != Some(&state) || self.inner().begun.is_some() {
            self.inner().begin(&state);
            let ensured = failpoints::NETWORK
                .around(timeout(TIMEOUT, self.adapter.ensure(&state)))
                .await;
            ensured
                .map_err(|_| PortError {
                    message: format!(
                        "applying the network took longer than {} s",
                        TIMEOUT.as_secs()
                    ),
                    lasting: false,
                })?
                .map_err(|error| port_error(&error))?;
        }
        let further = state
            .ports
            .iter()
            .any(|port| !port.allow_addresses.is_empty());
        if state.lan.is_empty() && !further {
            self.inner().blocked.clear();
        } else if let Ok(Ok(observations)) = timeout(TIMEOUT, self.adapter.observe_ports()).await {
            self.record_observations(&observations);
        }
        let mut inner = self.inner();
        inner.begun = None;
        inner.gone = released;
        inner.applied = (inner.invalidated == invalidated).then_some(state);
        Ok(conflicts)
    }

    /// Omits published ports that programs on this node listen on. While those cannot be listed, only the published ports
    /// that are already applied stay: another one might shadow the port of a program. Everything else is applied.
    async fn leave_out_taken(&self, state: &mut NetworkState) -> Result<(), PortError> {
        let listeners = if Published::is_needed(&state.ports) {
            if let Ok(listeners) = timeout(LISTENERS_TIMEOUT, self.adapter.listeners()).await {
                Some(listeners.map_err(|error| port_error(&error))?)
            } else {
                tracing::warn!(
                    "listing the ports that this node's programs listen on took too long"
                );
                None
            }
        } else {
            Some(BTreeSet::new())
        };
        let mut inner = self.inner();
        match &listeners {
            Some(listeners) => inner.published.decide(&state.ports, listeners),
            None => inner.published.decide_unseen(&state.ports),
        }
        inner.published.leave_out(&mut state.ports);
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// Records that a state is about to be applied. However the wait ends, all or a part of it may be applied.
    fn begin(&mut self, state: &NetworkState) {
        if self.begun.as_ref().is_some_and(|begun| begun != state) {
            // After two unconfirmed changes, either may be applied.
            self.applied = None;
        }
        self.begun = Some(state.clone());
    }
}
