//! Wakes drivers: one signal per instance, and the list of instances that need a driver.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};
use waifud_types::InstanceId;

/// One driver's signal. Signals between two looks count once.
#[derive(Debug, Default)]
pub struct Signal {
    notify: Notify,
    reprobe: AtomicBool,
    rebooted: AtomicBool,
}

impl Signal {
    /// Returns when something happened since the last time.
    pub async fn raised(&self) {
        self.notify.notified().await;
    }

    /// Something happened: the next `raised` returns at once.
    pub fn raise(&self) {
        self.notify.notify_one();
    }

    /// Whether cloud-init has to be looked at again; asking resets it.
    pub fn take_reprobe(&self) -> bool {
        self.reprobe.swap(false, Ordering::Relaxed)
    }

    /// Whether the guest was reset; asking resets it.
    pub fn take_rebooted(&self) -> bool {
        self.rebooted.swap(false, Ordering::Relaxed)
    }
}

/// Every driver's signal.
#[derive(Debug)]
pub struct Signals {
    signals: Mutex<BTreeMap<InstanceId, Arc<Signal>>>,
    spawn: mpsc::UnboundedSender<(InstanceId, Arc<Signal>)>,
}

impl Signals {
    /// No driver yet. The receiver is told of each that has to be started.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<(InstanceId, Arc<Signal>)>) {
        let (spawn, spawned) = mpsc::unbounded_channel();
        let signals = Self {
            signals: Mutex::default(),
            spawn,
        };
        (signals, spawned)
    }

    /// Wakes the instance's driver, or has one started.
    pub fn wake(&self, id: InstanceId) {
        let mut signals = self.signals();
        if let Some(signal) = signals.get(&id) {
            signal.raise();
        } else {
            let signal = Arc::new(Signal::default());
            signals.insert(id, signal.clone());
            // Nobody listening: the agent is on its way out.
            let _ending = self.spawn.send((id, signal));
        }
    }

    /// Wakes the instance's driver where there is one.
    pub fn nudge(&self, id: InstanceId) {
        if let Some(signal) = self.signals().get(&id) {
            signal.raise();
        }
    }

    /// The guest agent came or left: cloud-init may have to be looked at again.
    pub fn reprobe(&self, id: InstanceId) {
        if let Some(signal) = self.signals().get(&id) {
            signal.reprobe.store(true, Ordering::Relaxed);
            signal.raise();
        }
    }

    /// The guest was reset: it boots anew.
    pub fn rebooted(&self, id: InstanceId) {
        if let Some(signal) = self.signals().get(&id) {
            signal.rebooted.store(true, Ordering::Relaxed);
            signal.raise();
        }
    }

    /// Wakes every driver.
    pub fn nudge_all(&self) {
        for signal in self.signals().values() {
            signal.raise();
        }
    }

    /// The driver ended.
    pub fn ended(&self, id: InstanceId) {
        self.signals().remove(&id);
    }

    fn signals(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Arc<Signal>>> {
        self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
