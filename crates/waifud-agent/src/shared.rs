//! What every task of the agent shares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::{Notify, watch};
use waifud_hypervisor::{Hypervisor, HypervisorError};
use waifud_network::GuestNetwork;
use waifud_storage::StoragePool;
use waifud_types::status::HypervisorKind;
use waifud_types::{InstanceId, Name, Timestamp};

use crate::control_link::record::Memory;
use crate::control_link::reports::Reports;
use crate::control_link::table::Table;
use crate::guest::metadata::Metadata;
use crate::images::Images;
use crate::instance::boot_order::BootOrder;
use crate::instance::files::Files;
use crate::instance::signals::Signals;
use crate::interfaces::{Clock, ControlLink, HostPower, MetadataService, MetadataTunnel};
use crate::network::Network;
use crate::settings::Settings;
use crate::streams::{GuestDialer, Streams};

/// The adapters that an agent works with.
#[derive(Clone)]
pub struct Adapters {
    /// Runs machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where disks live; names are unique.
    pub pools: Vec<Arc<dyn StoragePool>>,
    /// The guests' network.
    pub network: Arc<dyn GuestNetwork>,
    /// waifud.
    pub link: Arc<dyn ControlLink>,
    /// metadatad.
    pub metadata: Arc<dyn MetadataService>,
    /// The node's end of the tunnel to it.
    pub tunnel: Arc<dyn MetadataTunnel>,
    /// Connects to guests.
    pub dialer: Arc<dyn GuestDialer>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The machine.
    pub host: Arc<dyn HostPower>,
}

/// What every task of the agent shares.
pub(crate) struct Shared {
    pub settings: Settings,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub pools: BTreeMap<Name, Arc<dyn StoragePool>>,
    pub guest_network: Arc<dyn GuestNetwork>,
    pub link: Arc<dyn ControlLink>,
    pub clock: Arc<dyn Clock>,
    pub host: Arc<dyn HostPower>,
    pub boot_order: BootOrder,
    pub table: Table,
    pub network: Network,
    pub metadata: Metadata,
    pub images: Images,
    pub reports: Reports,
    pub streams: Streams,
    pub dialer: Arc<dyn GuestDialer>,
    pub files: Files,
    pub signals: Signals,
    /// Guests may be started.
    pub start_allowed: watch::Sender<bool>,
    /// waifud knows this process: reports may be sent.
    pub welcomed: watch::Sender<bool>,
    /// What runs guests, once it was found out.
    pub kind: watch::Sender<Option<HypervisorKind>>,
    /// Look for what is in nobody's list.
    pub sweep: Notify,
    /// Look at the guests' network now.
    pub network_check: Notify,
    /// Look at the metadata service now.
    pub metadata_check: Notify,
    /// Gather the node's facts now.
    pub facts_check: Notify,
    /// Look at what guests do soon.
    pub evidence_check: Notify,
    /// The watch has told the whole slice at least once, now or in an earlier process.
    pub slice_known: AtomicBool,
}

impl Shared {
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What runs guests here. Asked for once; the facts keep it up to date.
    pub async fn hypervisor_kind(&self) -> Result<HypervisorKind, HypervisorError> {
        let known = *self.kind.borrow();
        if let Some(kind) = known {
            return Ok(kind);
        }
        let kind = self.hypervisor.host().await?.hypervisor.kind;
        self.kind.send_replace(Some(kind));
        Ok(kind)
    }

    /// What is remembered of an instance; nothing when its record is gone.
    pub fn memory(&self, id: InstanceId) -> Memory {
        let view = self.table.view(id);
        view.map(|view| view.record.memory).unwrap_or_default()
    }

    pub fn pool(&self, name: &Name) -> Option<&Arc<dyn StoragePool>> {
        self.pools.get(name)
    }
}
