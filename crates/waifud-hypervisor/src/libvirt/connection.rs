//! One connection to libvirtd that heals: opened when first needed, opened anew when it was lost.
//!
//! A keeper thread holds it open, so that events come in while nobody calls, and tries again with growing pauses while
//! libvirtd is away. Calls try at once, so that their error is the real one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use tokio::sync::broadcast;
use virt::connect::Connect;

use super::error::{Fault, unreachable_at};
use super::events::{Registered, Sink, start_loop};
use crate::{DomainEvent, HypervisorError};

/// A daemon that is silent for `KEEPALIVE_SECONDS` × (`KEEPALIVE_COUNT` + 1) is taken for lost.
const KEEPALIVE_SECONDS: i32 = 5;
const KEEPALIVE_COUNT: u32 = 3;
/// Pauses of the keeper while libvirtd is away: doubling between these.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often the keeper looks whether the connection stands, should nobody tell it. A local look, no message.
const LOOK: Duration = Duration::from_secs(15);

/// An open connection.
pub(super) struct Live {
    connect: Connect,
    /// Dropped before the connection is closed; an option for that reason only.
    registered: Option<Registered>,
    sink: Arc<Sink>,
}

impl Live {
    fn usable(&self) -> bool {
        !self.sink.lost.load(Ordering::SeqCst) && self.connect.is_alive().unwrap_or(false)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        drop(self.registered.take());
        // Only a wrong pointer makes this fail, and then there is nothing to close.
        let _closed = self.connect.close();
    }
}

/// Opens and keeps the connection.
pub(super) struct Connector {
    uri: String,
    live: Mutex<Option<Arc<Live>>>,
    events: broadcast::Sender<DomainEvent>,
    wake: mpsc::Sender<()>,
}

impl Connector {
    /// Starts the keeper and returns at once, connected or not.
    pub(super) fn start(uri: String) -> std::io::Result<Arc<Self>> {
        let (wake, woken) = mpsc::channel();
        let connector = Arc::new(Self {
            uri,
            live: Mutex::new(None),
            events: broadcast::Sender::new(1024),
            wake,
        });
        let weak = Arc::downgrade(&connector);
        std::thread::Builder::new()
            .name("libvirt-keeper".to_owned())
            .spawn(move || keep(&weak, &woken))?;
        Ok(connector)
    }

    pub(super) fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.events.subscribe()
    }

    /// Ends the keeper soon after the last other holder is gone.
    pub(super) fn wake(&self) {
        let _gone = self.wake.send(());
    }

    /// Calls libvirt, connecting first if need be. Blocking.
    pub(super) fn with<T>(
        &self,
        call: impl FnOnce(&Connect) -> Result<T, Fault>,
    ) -> Result<T, HypervisorError> {
        let live = self.live()?;
        call(&live.connect).map_err(|fault| fault.into_error(&self.uri, live.usable()))
    }

    fn live(&self) -> Result<Arc<Live>, HypervisorError> {
        let mut slot = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = slot.as_ref().filter(|live| live.usable()) {
            return Ok(Arc::clone(live));
        }
        *slot = None;
        let live = Arc::new(self.open()?);
        *slot = Some(Arc::clone(&live));
        tracing::info!(uri = self.uri, "connected to libvirt");
        live.sink.resync();
        Ok(live)
    }

    fn open(&self) -> Result<Live, HypervisorError> {
        let failed = |error| unreachable_at(&self.uri, &error);
        start_loop().map_err(failed)?;
        let mut live = Live {
            connect: Connect::open(Some(&self.uri)).map_err(failed)?,
            registered: None,
            sink: Arc::new(Sink {
                lost: AtomicBool::new(false),
                events: self.events.clone(),
                wake: self.wake.clone(),
            }),
        };
        live.registered = Some(Registered::new(&live.connect, &live.sink).map_err(failed)?);
        live.connect
            .set_keep_alive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            .map_err(failed)?;
        Ok(live)
    }
}

fn keep(connector: &Weak<Connector>, woken: &mpsc::Receiver<()>) {
    let mut pause = PAUSE_MIN;
    let mut told = false;
    loop {
        let Some(connector) = connector.upgrade() else {
            return;
        };
        let wait = match connector.live() {
            Ok(_live) => {
                pause = PAUSE_MIN;
                told = false;
                LOOK
            }
            Err(error) => {
                if !told {
                    tracing::warn!(%error, "trying again until it answers");
                    told = true;
                }
                let now = pause;
                pause = (pause * 2).min(PAUSE_MAX);
                now
            }
        };
        drop(connector);
        // Woken or not: look. The sender lives as long as the connector, which is looked for next.
        let _woken = woken.recv_timeout(wait);
    }
}
