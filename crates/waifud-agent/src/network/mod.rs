//! The node's network as a whole: one reconciler that knows which ports are in force.
//!
//! Drivers ask for their port; what is applied is always the state of the whole node, computed from every record. So
//! asking at once costs one change, not one each. A port stays until its instance's order to destroy is carried out:
//! an instance that merely left the slice keeps its lease and its rules.

pub(crate) mod lan;
pub(crate) mod published;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use waifud_network::{
    GuestNetwork, LanPort, NetworkError, NetworkState, Port, PortObservation, check,
};
use waifud_types::spec::PublishSpec;
use waifud_types::{InstanceId, TapName};

use self::published::Published;
use crate::control_link::record::InstanceRecord;
use crate::control_link::table::Table;
use crate::failpoints;
use crate::settings::Settings;

/// How long one change may take; tools that it runs have limits of their own.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How long the look at programs' ports may take; it reads four files.
const LISTENERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The name of the network that the node routes.
pub const DEFAULT_NETWORK: &str = "default";

/// Why a port is not in force.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// In a sentence.
    pub message: String,
    /// Whether trying again will not mend it by itself soon.
    pub lasting: bool,
}

/// Keeps the node's network. See the module's text.
pub struct Network {
    adapter: Arc<dyn GuestNetwork>,
    settings: Settings,
    /// Held while the network is changed.
    changing: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What is in force for certain, apart from `begun`.
    applied: Option<NetworkState>,
    /// What was begun to be applied and has not been confirmed: any part of it may be in force, also after a failure.
    begun: Option<NetworkState>,
    published: Published,
    /// Whose ports are to be removed.
    released: BTreeSet<InstanceId>,
    /// Those of them whose removal was confirmed.
    gone: BTreeSet<InstanceId>,
    /// Ports in force that nothing gets through, and why.
    troubled: BTreeMap<TapName, String>,
    /// Counts invalidations, so that one during a change is not lost.
    invalidated: u64,
}

impl Network {
    /// Nothing is known to be in force.
    pub fn new(adapter: Arc<dyn GuestNetwork>, settings: Settings) -> Self {
        Self {
            adapter,
            settings,
            changing: tokio::sync::Mutex::new(()),
            inner: Mutex::default(),
        }
    }

    /// Whether every port of the instance is in force, as far as known.
    pub fn in_force(&self, record: &InstanceRecord) -> bool {
        let inner = self.inner();
        let in_state = |state: &NetworkState| {
            ports_of(record).is_ok_and(|mut ports| {
                inner.published.leave_out(&mut ports);
                ports.iter().all(|port| {
                    state.ports.contains(port) && !inner.troubled.contains_key(&port.tap)
                })
            }) && lan::ports_of(record).is_ok_and(|ports| {
                ports
                    .iter()
                    .all(|port| state.lan.contains(port) && !inner.troubled.contains_key(&port.tap))
            })
        };
        !inner.released.contains(&record.id)
            && inner.applied.as_ref().is_some_and(in_state)
            && inner.begun.as_ref().is_none_or(in_state)
    }

    /// Those of the instance's published ports that a program of this node has.
    pub fn refused(&self, id: InstanceId) -> Vec<PublishSpec> {
        self.inner().published.refused_of(id)
    }

    /// Whether published ports wait until it is known what programs of this node listen on.
    pub fn listeners_are_unknown(&self) -> bool {
        self.inner().published.is_unseen()
    }

    /// Whether any port of the instance may be in force: yes until their removal was confirmed.
    pub fn may_hold(&self, id: InstanceId) -> bool {
        !self.inner().gone.contains(&id)
    }

    /// Puts the instance's ports in force.
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
        let trouble = conflicts.get(&id).cloned().or_else(|| {
            let inner = self.inner();
            let record = record.as_ref()?;
            let (routed, lan) = (ports_of(record).ok()?, lan::ports_of(record).ok()?);
            let taps = routed.iter().map(|port| &port.tap);
            let mut taps = taps.chain(lan.iter().map(|port| &port.tap));
            taps.find_map(|tap| inner.troubled.get(tap)).cloned()
        });
        trouble.map_or(Ok(()), |message| {
            Err(PortError {
                message,
                lasting: true,
            })
        })
    }

    /// Takes note of what was seen at the ports.
    pub fn note(&self, observations: &BTreeMap<TapName, PortObservation>) {
        let troubled = observations.iter();
        let troubled = troubled.filter_map(|(tap, s)| Some((tap.clone(), s.trouble.clone()?)));
        self.inner().troubled = troubled.collect();
    }

    /// Removes the instance's ports.
    pub async fn release(&self, table: &Table, id: InstanceId) -> Result<(), PortError> {
        self.inner().released.insert(id);
        // Without a subnet nothing was ever applied.
        if table.node().slice.is_none() {
            self.inner().gone.insert(id);
            return Ok(());
        }
        self.apply(table, false).await.map(drop)
    }

    /// What is in force is no longer known: apply again.
    pub fn invalidate(&self) {
        let mut inner = self.inner();
        inner.applied = None;
        inner.invalidated += 1;
    }

    /// Makes the node's network be as the records say; `force` also when it is thought to be so. Returns the
    /// instances whose ports contradict others', with the reason.
    pub async fn apply(
        &self,
        table: &Table,
        force: bool,
    ) -> Result<BTreeMap<InstanceId, String>, PortError> {
        let _one_at_a_time = self.changing.lock().await;
        // Computed under the lock: whoever waited for it finds its own port done by the one before.
        let (applied, released, invalidated) = {
            let inner = self.inner();
            (
                inner.applied.clone(),
                inner.released.clone(),
                inner.invalidated,
            )
        };
        let Some(slice) = table.node().slice else {
            return Err(PortError {
                message: "waifud has not given this node a subnet yet".to_owned(),
                lasting: false,
            });
        };
        let records = table.records();
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
                    message: format!("the network was not ready within {} s", TIMEOUT.as_secs()),
                    lasting: false,
                })?
                .map_err(|error| port_error(&error))?;
        }
        let further = state
            .ports
            .iter()
            .any(|port| !port.allow_addresses.is_empty());
        if state.lan.is_empty() && !further {
            self.inner().troubled.clear();
        } else if let Ok(Ok(observations)) = timeout(TIMEOUT, self.adapter.observe_ports()).await {
            self.note(&observations);
        }
        let mut inner = self.inner();
        inner.begun = None;
        inner.gone = released;
        inner.applied = (inner.invalidated == invalidated).then_some(state);
        Ok(conflicts)
    }

    /// Leaves out published ports that programs of this node have. As long as nobody can say which those are, none that
    /// is not in force already comes into force: it could hide a program's port. All else goes on.
    async fn leave_out_taken(&self, state: &mut NetworkState) -> Result<(), PortError> {
        let listeners = if Published::asks(&state.ports) {
            if let Ok(listeners) = timeout(LISTENERS_TIMEOUT, self.adapter.listeners()).await {
                Some(listeners.map_err(|error| port_error(&error))?)
            } else {
                tracing::warn!("this node did not say in time which ports its programs listen on");
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A state is about to be applied. Whatever ends the wait for that, it may have been carried out, wholly or in part.
    fn begin(&mut self, state: &NetworkState) {
        if self.begun.as_ref().is_some_and(|begun| begun != state) {
            // Of two attempts that were not confirmed, either may be in force.
            self.applied = None;
        }
        self.begun = Some(state.clone());
    }
}

fn port_error(error: &NetworkError) -> PortError {
    let lasting = match error {
        NetworkError::Contradiction(_) | NetworkError::Overlap { .. } => true,
        NetworkError::Tool { .. } | NetworkError::Kernel { .. } | NetworkError::Io { .. } => false,
    };
    PortError {
        message: crate::with_cause(error),
        lasting,
    }
}

/// The ports of one instance on the routed network. An instance of which only the tombstone is known has none.
pub fn ports_of(record: &InstanceRecord) -> Result<Vec<Port>, PortError> {
    let Some(instance) = &record.instance else {
        return Ok(Vec::new());
    };
    let port = |(index, nic): (usize, &waifud_types::spec::NicSpec)| {
        Ok(Port {
            instance: instance.id,
            name: instance.name.clone(),
            tap: TapName::of(instance.id, index),
            mac: nic.mac,
            address: nic.address.ok_or_else(|| PortError {
                message: format!("waifud has not given nic {} an address yet", nic.name),
                lasting: false,
            })?,
            allow_addresses: nic.allow_addresses.clone(),
            publish: if index == 0 {
                instance.spec.publish.clone()
            } else {
                Vec::new()
            },
        })
    };
    let nics = instance.spec.nics.iter().enumerate();
    nics.filter(|(_, nic)| !lan::is_on_lan(nic))
        .map(port)
        .collect()
}

/// The state with every port that can be in it: of two that contradict each other, the one that is in force already
/// stays, and the other waits. One contradiction must not take everybody's network away.
fn choose_ports(
    mut state: NetworkState,
    records: &[InstanceRecord],
    released: &BTreeSet<InstanceId>,
    in_force: &BTreeSet<TapName>,
) -> (NetworkState, BTreeMap<InstanceId, String>) {
    let here = || {
        let records = records.iter();
        records.filter(|record| !record.destroyed && !released.contains(&record.id))
    };
    let mut wanted: Vec<Port> = here()
        .filter_map(|record| ports_of(record).ok())
        .flatten()
        .collect();
    wanted.sort_by_key(|port| (!in_force.contains(&port.tap), port.instance));
    let mut lan: Vec<LanPort> = here()
        .filter_map(|record| lan::ports_of(record).ok())
        .flatten()
        .collect();
    lan.sort_by_key(|port| (!in_force.contains(&port.tap), port.instance));
    let mut conflicts = BTreeMap::new();
    state.ports.clone_from(&wanted);
    state.lan.clone_from(&lan);
    if check(&state).is_err() {
        state.ports.clear();
        state.lan.clear();
        for port in wanted {
            let id = port.instance;
            state.ports.push(port);
            if let Err(error) = check(&state) {
                conflicts.insert(id, error.to_string());
                state.ports.pop();
            }
        }
        for port in lan {
            let id = port.instance;
            state.lan.push(port);
            if let Err(error) = check(&state) {
                conflicts.insert(id, error.to_string());
                state.lan.pop();
            }
        }
    }
    state
        .ports
        .sort_by_key(|port| (port.instance, port.tap.clone()));
    state
        .lan
        .sort_by_key(|port| (port.instance, port.tap.clone()));
    (state, conflicts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::sample_instance;

    fn record(name: &str) -> InstanceRecord {
        let instance = sample_instance(name);
        InstanceRecord {
            instance: Some(instance.clone()),
            managed: true,
            ..InstanceRecord::new(instance.id)
        }
    }

    fn empty() -> NetworkState {
        NetworkState {
            bridge: "waifu0".to_owned(),
            subnet: "10.144.1.0/24".parse().unwrap(),
            gateway: [10, 144, 1, 1].into(),
            gateway_mac: waifud_types::MacAddr::of_guest([0, 0, 1]),
            metadata_interface: "wfmeta0".to_owned(),
            mtu: 1420,
            domain: "waifu.internal".to_owned(),
            ports: Vec::new(),
            lan: Vec::new(),
        }
    }

    fn nic(record: &mut InstanceRecord) -> &mut waifud_types::spec::NicSpec {
        &mut record.instance.as_mut().unwrap().spec.nics[0]
    }

    #[test]
    fn of_two_with_one_address_the_port_in_force_stays() {
        let (mut a, mut b) = (record("a"), record("b"));
        nic(&mut b).address = nic(&mut a).address;
        let in_force = BTreeSet::from([TapName::of(b.id, 0)]);
        let records = [a.clone(), b.clone()];
        let (state, conflicts) = choose_ports(empty(), &records, &BTreeSet::new(), &in_force);
        assert_eq!(state.ports.len(), 1);
        assert_eq!(state.ports[0].instance, b.id);
        assert!(conflicts.contains_key(&a.id) && !conflicts.contains_key(&b.id));
    }

    #[test]
    fn a_port_that_can_not_be_harms_nobody_else() {
        let (mut a, mut b, c) = (record("a"), record("b"), record("c"));
        nic(&mut a).address = Some([192, 168, 0, 1].into());
        nic(&mut b).mac = empty().gateway_mac;
        let records = [a.clone(), b.clone(), c.clone()];
        let (state, conflicts) =
            choose_ports(empty(), &records, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(state.ports.len(), 1);
        assert_eq!(state.ports[0].instance, c.id);
        assert_eq!(conflicts.len(), 2, "{conflicts:?}");
    }

    #[test]
    fn a_port_on_a_lan_that_can_not_be_harms_nobody_else() {
        let (mut a, mut b, c) = (record("a"), record("b"), record("c"));
        for record in [&mut a, &mut b] {
            nic(record).network = "lan".parse().unwrap();
            nic(record).address = None;
            let bridges = &mut record.instance.as_mut().unwrap().bridges;
            bridges.insert("lan".parse().unwrap(), "br0".to_owned());
        }
        nic(&mut b).mac = c.instance.as_ref().unwrap().spec.nics[0].mac;
        let records = [a.clone(), b.clone(), c.clone()];
        let (state, conflicts) =
            choose_ports(empty(), &records, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!((state.ports.len(), state.lan.len()), (1, 1));
        assert_eq!(state.lan[0].instance, a.id);
        assert_eq!(conflicts.keys().collect::<Vec<_>>(), [&b.id]);
    }

    #[test]
    fn what_was_released_or_destroyed_has_no_port_and_what_left_the_slice_keeps_it() {
        let (mut left, released, mut destroyed) = (record("a"), record("b"), record("c"));
        left.managed = false;
        destroyed.destroyed = true;
        let (state, _) = choose_ports(
            empty(),
            &[left.clone(), released.clone(), destroyed],
            &BTreeSet::from([released.id]),
            &BTreeSet::new(),
        );
        assert_eq!(state.ports.len(), 1);
        assert_eq!(state.ports[0].instance, left.id);
    }
}
