//! A bug that tests plant, so that the simulation has something to find.

use waifud_api::agent::Tombstone;

use super::record::InstanceRecord;

/// The planted bug: an order that waifud never gave.
pub(super) fn destroy_without_an_order(record: &mut InstanceRecord) {
    let instance = record.instance.as_ref();
    record.tombstone = instance.map(|instance| Tombstone {
        instance: instance.id,
        name: instance.name.clone(),
        epoch: instance.epoch,
    });
}
