//! Wakes drivers: one signal per instance, and a queue of instances that need a driver.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, mpsc};
use waifud_kit::sync::lock;
use waifud_types::InstanceId;

/// One driver's signal. Several signals before the next pass are merged.
#[derive(Debug, Default)]
pub struct Signal {
    notify: Notify,
    reprobe: AtomicBool,
    rebooted: AtomicBool,
}

impl Signal {
    /// Returns once the signal was raised since the last call.
    pub async fn raised(&self) {
        self.notify.notified().await;
    }

    /// The next `raised` returns at once.
    pub fn raise(&self) {
        self.notify.notify_one();
    }

    /// Whether cloud-init has to be probed again; the call resets this.
    pub fn take_reprobe(&self) -> bool {
        self.reprobe.swap(false, Ordering::Relaxed)
    }

    /// Whether the guest was reset; the call resets this.
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
    /// The receiver gets an entry for each driver that has to be started.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<(InstanceId, Arc<Signal>)>) {
        let (spawn, spawned) = mpsc::unbounded_channel();
        let signals = Self {
            signals: Mutex::default(),
            spawn,
        };
        (signals, spawned)
    }

    /// Wakes the instance's driver, or starts one.
    pub fn wake(&self, id: InstanceId) {
        let mut signals = self.signals();
        if let Some(signal) = signals.get(&id) {
            signal.raise();
        } else {
            let signal = Arc::new(Signal::default());
            signals.insert(id, signal.clone());
            // Without a receiver the agent is stopping.
            let _ending = self.spawn.send((id, signal));
        }
    }

    /// Wakes the instance's driver if there is one.
    pub fn nudge(&self, id: InstanceId) {
        if let Some(signal) = self.signals().get(&id) {
            signal.raise();
        }
    }

    /// The guest agent connected or disconnected: cloud-init may have to be probed again.
    pub fn reprobe(&self, id: InstanceId) {
        if let Some(signal) = self.signals().get(&id) {
            signal.reprobe.store(true, Ordering::Relaxed);
            signal.raise();
        }
    }

    /// The guest was reset and boots again.
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
        lock(&self.signals)
    }
}
