//! What every task of the agent shares.

use std::collections::BTreeMap;
use std::sync::Arc;

use waifud_hypervisor::Hypervisor;
use waifud_network::GuestNetwork;
use waifud_network::fabric::Fabric;
use waifud_storage::StoragePool;
use waifud_types::{InstanceId, Name, Timestamp};

use crate::control_link::record::Memory;
use crate::control_link::reports::Reports;
use crate::control_link::table::Table;
use crate::guest::diagnostics_requests::DiagnosticsRequests;
use crate::guest::metadata::Metadata;
use crate::instance::parts::InstanceParts;
use crate::instance::signals::Signals;
use crate::interfaces::{
    Clock, ControlLink, HostPower, MetadataService, MetadataTunnel, PeerNetwork,
};
use crate::network::Network;
use crate::node::checks::NodeChecks;
use crate::peer_port::PortStatus;
use crate::peer_port::avoided::Avoided;
use crate::peer_port::tickets::Tickets;
use crate::settings::Settings;
use crate::streams::GuestDialer;
use crate::streams::requests::StreamRequests;

/// The adapters that an agent works with.
#[derive(Clone)]
pub struct Adapters {
    /// Runs guests.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Storage pools, with unique names.
    pub pools: Vec<Arc<dyn StoragePool>>,
    /// The guests' network.
    pub network: Arc<dyn GuestNetwork>,
    /// What connects the guests to those of other nodes.
    pub fabric: Arc<dyn Fabric>,
    /// The link to waifud.
    pub link: Arc<dyn ControlLink>,
    /// Connections to and from other nodes.
    pub peers: Arc<dyn PeerNetwork>,
    /// The metadata service.
    pub metadata: Arc<dyn MetadataService>,
    /// The node's end of the tunnel to the metadata service.
    pub tunnel: Arc<dyn MetadataTunnel>,
    /// Connects to guests.
    pub dialer: Arc<dyn GuestDialer>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The machine.
    pub host: Arc<dyn HostPower>,
}

/// What the agent's tasks share. Each part owns its state and offers verbs on it.
pub(crate) struct Shared {
    pub settings: Settings,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub pools: Arc<Pools>,
    pub guest_network: Arc<dyn GuestNetwork>,
    pub link: Arc<dyn ControlLink>,
    pub peers: Arc<dyn PeerNetwork>,
    pub port: PortStatus,
    pub tickets: Tickets,
    /// Instances whose disks go through waifud for now.
    pub avoided_paths: Avoided<InstanceId>,
    pub clock: Arc<dyn Clock>,
    pub host: Arc<dyn HostPower>,
    pub instances: InstanceParts,
    pub table: Arc<Table>,
    pub network: Network,
    pub metadata: Metadata,
    pub diagnostics: DiagnosticsRequests,
    pub reports: Arc<Reports>,
    pub stream_requests: StreamRequests,
    pub signals: Signals,
    pub node_checks: Arc<NodeChecks>,
}

/// The node's pools by name.
pub(crate) type Pools = BTreeMap<Name, Arc<dyn StoragePool>>;

impl Shared {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What is remembered of an instance; the default if there is no record.
    pub fn memory(&self, id: InstanceId) -> Memory {
        let view = self.table.view(id);
        view.map(|view| view.record.memory).unwrap_or_default()
    }

    pub fn pool(&self, name: &Name) -> Option<&Arc<dyn StoragePool>> {
        self.pools.get(name)
    }
}
