//! Guests that echo what they receive, on ports chosen by a test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use waifud_kit::labeled_stream::LabeledStream;
use waifud_kit::sync::lock;
use waifud_network::linux::{GuestNic, ReachError};
use waifud_types::MacAddr;

use crate::streams::{GuestConnection, GuestDialer};

/// Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct FakeDialer {
    listening: Arc<Mutex<BTreeSet<(Ipv4Addr, u16)>>>,
    owners: Arc<Mutex<BTreeMap<Ipv4Addr, MacAddr>>>,
    dialed: Arc<Mutex<Vec<(Ipv4Addr, u16)>>>,
    resets: Arc<Mutex<usize>>,
    open: Arc<Mutex<usize>>,
}

impl FakeDialer {
    /// From now on, something listens at that address.
    pub fn listen(&self, address: Ipv4Addr, port: u16) {
        lock(&self.listening).insert((address, port));
    }

    /// Makes the address belong to the machine with this MAC address.
    pub fn belongs_to(&self, address: Ipv4Addr, mac: MacAddr) {
        lock(&self.owners).insert(address, mac);
    }

    /// Every attempted connection.
    pub fn dialed(&self) -> Vec<(Ipv4Addr, u16)> {
        lock(&self.dialed).clone()
    }

    /// How many connections the agent has open.
    pub fn open(&self) -> usize {
        *lock(&self.open)
    }

    /// How many connections were reset.
    pub fn resets(&self) -> usize {
        *lock(&self.resets)
    }
}

#[async_trait]
impl GuestDialer for FakeDialer {
    async fn dial(
        &self,
        nic: &GuestNic,
        port: u16,
    ) -> Result<Box<dyn GuestConnection>, ReachError> {
        let address = nic.address;
        lock(&self.dialed).push((address, port));
        if lock(&self.owners)
            .get(&address)
            .is_some_and(|mac| *mac != nic.mac)
        {
            return Err(ReachError::NotTheGuest(format!(
                "{address} belongs to another machine"
            )));
        }
        if !lock(&self.listening).contains(&(address, port)) {
            return Err(ReachError::Refused);
        }
        *lock(&self.open) += 1;
        let counters = Counters {
            resets: Arc::clone(&self.resets),
            open: Arc::clone(&self.open),
        };
        let (ours, theirs) = LabeledStream::pair(counters, 16 << 10);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let _ended = tokio::io::copy(&mut reader, &mut writer).await;
        });
        Ok(Box::new(ours))
    }
}

/// Counters of one connection.
struct Counters {
    resets: Arc<Mutex<usize>>,
    open: Arc<Mutex<usize>>,
}

impl Drop for Counters {
    fn drop(&mut self) {
        *lock(&self.open) -= 1;
    }
}

impl GuestConnection for LabeledStream<Counters> {
    fn reset(self: Box<Self>) {
        *lock(&self.label.resets) += 1;
    }
}
