//! What serving streams needs from the rest of the agent, and who has each console.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use waifud_hypervisor::Hypervisor;
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

use super::dial::GuestDialer;
use super::requests::StreamInbox;
use crate::control_link::reports::Reports;
use crate::control_link::table::Table;
use crate::instance::files::Files;
use crate::interfaces::ControlLink;
use crate::shared::Pools;

/// Serves streams of this node's instances.
pub(crate) struct StreamServer {
    pub inbox: StreamInbox,
    pub consoles: Consoles,
    pub link: Arc<dyn ControlLink>,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub dialer: Arc<dyn GuestDialer>,
    pub table: Arc<Table>,
    pub reports: Arc<Reports>,
    pub files: Files,
    pub pools: Arc<Pools>,
    /// The bridge of the routed network.
    pub bridge: String,
}

/// Who has each console.
#[derive(Debug, Default)]
pub(crate) struct Consoles(Mutex<HashMap<InstanceId, CancellationToken>>);

impl Consoles {
    /// Takes a console over. A guest's serial port serves one client at a time, and the newest one wins. The token of
    /// the previous client is canceled.
    pub(super) fn take_over(&self, id: InstanceId) -> CancellationToken {
        let mine = CancellationToken::new();
        let mut consoles = lock(&self.0);
        consoles.retain(|_, token| !token.is_cancelled());
        if let Some(before) = consoles.insert(id, mine.clone()) {
            before.cancel();
        }
        mine
    }
}
