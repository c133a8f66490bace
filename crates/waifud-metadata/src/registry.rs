//! Assignments in memory: by instance for the agent, by address inside the tunnel for guests.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, PoisonError, RwLock},
};

use waifud_api::metadatad::{Assignment, Held};
use waifud_cloudinit::Documents;
use waifud_types::{Digest, InstanceId};

/// An assignment with its documents.
#[derive(Debug)]
pub(crate) struct Entry {
    pub instance: InstanceId,
    pub assignment: Assignment,
    pub documents: Documents,
}

/// All assignments. Reads never wait for the disk: changes are added once they are durable.
#[derive(Debug, Default)]
pub(crate) struct Registry(RwLock<Maps>);

#[derive(Debug, Default)]
struct Maps {
    by_instance: HashMap<InstanceId, Arc<Entry>>,
    by_address: HashMap<Ipv4Addr, Arc<Entry>>,
}

impl Registry {
    /// The assignment of an address.
    pub fn at(&self, address: Ipv4Addr) -> Option<Arc<Entry>> {
        self.read(|maps| maps.by_address.get(&address).cloned())
    }

    pub fn get(&self, instance: InstanceId) -> Option<Arc<Entry>> {
        self.read(|maps| maps.by_instance.get(&instance).cloned())
    }

    /// Whether an assignment uses the bundle.
    pub fn uses(&self, bundle: Digest) -> bool {
        self.read(|maps| {
            maps.by_instance
                .values()
                .any(|entry| entry.assignment.bundle.digest == bundle)
        })
    }

    /// All assignments by id.
    pub fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> = self.read(|maps| {
            maps.by_instance
                .values()
                .map(|entry| Held {
                    id: entry.instance,
                    address: entry.assignment.address,
                    bundle: entry.assignment.bundle.digest,
                })
                .collect()
        });
        held.sort_by_key(|held| held.id);
        held
    }

    /// Replaces the instance's entry atomically. If another instance has the address, returns that instance as an error.
    pub fn put(&self, entry: Entry) -> Result<(), InstanceId> {
        let entry = Arc::new(entry);
        let address = entry.assignment.address;
        self.write(|maps| {
            match maps.by_address.get(&address) {
                Some(holder) if holder.instance != entry.instance => return Err(holder.instance),
                _ => {}
            }
            let former = maps.by_instance.insert(entry.instance, Arc::clone(&entry));
            if let Some(former) = former {
                maps.by_address.remove(&former.assignment.address);
            }
            maps.by_address.insert(address, entry);
            Ok(())
        })
    }

    pub fn remove(&self, instance: InstanceId) -> Option<Arc<Entry>> {
        self.write(|maps| {
            let former = maps.by_instance.remove(&instance)?;
            maps.by_address.remove(&former.assignment.address);
            Some(former)
        })
    }

    fn read<T>(&self, query: impl FnOnce(&Maps) -> T) -> T {
        query(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Maps) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}
