//! A connection to libvirtd that is opened when first needed and reopened when lost.
//!
//! A thread keeps it open, so that events arrive even without calls, and reconnects with increasing pauses while
//! libvirtd is unavailable. Calls connect immediately, so that they return the actual error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;

use tokio::sync::broadcast;
use virt::connect::Connect;
use waifud_kit::sync::lock;

use super::error::{Fault, unreachable_at};
use super::events::{Registered, Sink, start_loop};
use crate::{DomainEvent, HypervisorError};

/// A daemon that is silent for `KEEPALIVE_SECONDS` × (`KEEPALIVE_COUNT` + 1) is considered lost.
const KEEPALIVE_SECONDS: i32 = 5;
const KEEPALIVE_COUNT: u32 = 3;
/// The pauses between attempts to reconnect: they double between these bounds.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often the connection is checked without a notification. The check is local and sends no message.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// An open connection.
pub(super) struct OpenConnection {
    connect: Connect,
    /// An `Option` only so that it can be dropped before the connection is closed.
    registered: Option<Registered>,
    sink: Arc<Sink>,
}

impl OpenConnection {
    fn usable(&self) -> bool {
        !self.sink.lost.load(Ordering::SeqCst) && self.connect.is_alive().unwrap_or(false)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        drop(self.registered.take());
        // This fails only for an invalid pointer, and then there is nothing to close.
        let _closed = self.connect.close();
    }
}

/// Opens and keeps the connection.
pub(super) struct Connector {
    uri: String,
    connection: Mutex<Option<Arc<OpenConnection>>>,
    events: broadcast::Sender<DomainEvent>,
    wake: mpsc::Sender<()>,
}

impl Connector {
    /// Starts the reconnecting thread and returns at once, without waiting for a connection.
    pub(super) fn start(uri: String) -> std::io::Result<Arc<Self>> {
        let (wake, woken) = mpsc::channel();
        let connector = Arc::new(Self {
            uri,
            connection: Mutex::new(None),
            events: broadcast::Sender::new(1024),
            wake,
        });
        let weak = Arc::downgrade(&connector);
        std::thread::Builder::new()
            .name("libvirt-connect".to_owned())
            .spawn(move || reconnect(&weak, &woken))?;
        Ok(connector)
    }

    pub(super) fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.events.subscribe()
    }

    /// Stops the reconnecting thread soon after the last other reference is dropped.
    pub(super) fn wake(&self) {
        let _thread_may_have_ended = self.wake.send(());
    }

    /// Calls libvirt, after connecting if necessary. Blocking.
    pub(super) fn with<T>(
        &self,
        call: impl FnOnce(&Connect) -> Result<T, Fault>,
    ) -> Result<T, HypervisorError> {
        let connection = self.connection()?;
        call(&connection.connect).map_err(|fault| fault.into_error(&self.uri, connection.usable()))
    }

    fn connection(&self) -> Result<Arc<OpenConnection>, HypervisorError> {
        let mut current = lock(&self.connection);
        if let Some(connection) = current.as_ref().filter(|connection| connection.usable()) {
            return Ok(Arc::clone(connection));
        }
        *current = None;
        let connection = Arc::new(self.open()?);
        *current = Some(Arc::clone(&connection));
        tracing::info!(uri = self.uri, "connected to libvirt");
        connection.sink.resync();
        Ok(connection)
    }

    fn open(&self) -> Result<OpenConnection, HypervisorError> {
        let failed = |error| unreachable_at(&self.uri, &error);
        start_loop().map_err(failed)?;
        let mut connection = OpenConnection {
            connect: Connect::open(Some(&self.uri)).map_err(failed)?,
            registered: None,
            sink: Arc::new(Sink {
                lost: AtomicBool::new(false),
                events: self.events.clone(),
                wake: self.wake.clone(),
            }),
        };
        connection.registered =
            Some(Registered::new(&connection.connect, &connection.sink).map_err(failed)?);
        connection
            .connect
            .set_keep_alive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            .map_err(failed)?;
        Ok(connection)
    }
}

fn reconnect(connector: &Weak<Connector>, woken: &mpsc::Receiver<()>) {
    let mut pause = PAUSE_MIN;
    let mut warned = false;
    loop {
        let Some(connector) = connector.upgrade() else {
            return;
        };
        let wait = match connector.connection() {
            Ok(_live) => {
                pause = PAUSE_MIN;
                warned = false;
                CHECK_INTERVAL
            }
            Err(error) => {
                if !warned {
                    tracing::warn!(%error, "cannot connect to libvirt; retrying");
                    warned = true;
                }
                let current = pause;
                pause = (pause * 2).min(PAUSE_MAX);
                current
            }
        };
        drop(connector);
        // The loop checks the connection after a wake-up and after a timeout alike. A closed channel means that the
        // connector is gone, which `upgrade` reports.
        let _woken = woken.recv_timeout(wait);
    }
}
