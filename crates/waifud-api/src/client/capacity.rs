//! Capacity.

use waifud_types::ByteSize;

use super::{Client, ClientError};
use crate::capacity::Capacity;

/// The size to ask for; `None` is the size of a new instance by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct CapacityQuery {
    /// Number of virtual CPUs.
    pub cpus: Option<u32>,
    /// Memory.
    pub memory: Option<ByteSize>,
    /// Size of the disk.
    pub disk: Option<ByteSize>,
    /// The number of nodes that are assumed to be off.
    pub survive: Option<u32>,
}

impl Client {
    /// Gets how many more instances of a size fit.
    pub async fn capacity(&self, query: CapacityQuery) -> Result<Capacity, ClientError> {
        let parameters = [
            ("cpus", query.cpus.map(u64::from)),
            ("memory_bytes", query.memory.map(ByteSize::bytes)),
            ("disk_bytes", query.disk.map(ByteSize::bytes)),
            ("survive", query.survive.map(u64::from)),
        ];
        let given: Vec<_> = parameters
            .iter()
            .filter_map(|(name, value)| Some((*name, (*value)?)))
            .collect();
        self.json(self.get(&["capacity"]).query(&given)).await
    }
}
