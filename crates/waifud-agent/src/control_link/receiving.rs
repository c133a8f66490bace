//! The records of instances that this node receives from another one.

use waifud_api::agent::Incoming;
use waifud_types::InstanceId;

use super::durable::DurableError;
use super::outcome::Affected;
use super::record::{DiskMemory, IncomingRecord, Memory, RunMemory};
use super::table::{Inner, Table};

impl Table {
    /// Applies the order to receive an instance.
    pub(super) fn put_incoming(
        &self,
        inner: &mut Inner,
        incoming: Incoming,
    ) -> Result<Affected, DurableError> {
        let id = incoming.id;
        inner.name(id);
        let held = inner.is_held();
        let copy = inner.copy(id);
        // What an earlier move left was deleted, and the report about that may still be on its way.
        let was_deleted = inner.is_destroyed(id);
        let outdated = match copy.epoch {
            _ if was_deleted => None,
            Some(_) => Some("this node has a copy of the instance".to_owned()),
            None => copy
                .check_put(incoming.epoch, held)
                .err()
                .map(|outdated| outdated.to_string()),
        };
        if let Some(outdated) = outdated {
            tracing::warn!(instance = %id, epoch = %incoming.epoch, "not receiving an instance: {outdated}");
            return Ok(Affected::None);
        }
        self.change(inner, id, |record| {
            let known = record.incoming.as_ref();
            let same = known.is_some_and(|known| known.incoming.epoch == incoming.epoch);
            let received = same && known.is_some_and(|known| known.received);
            if !same {
                record.memory = Memory::default();
            }
            record.tombstone = None;
            record.destroyed = false;
            record.release = None;
            record.managed = false;
            record.instance = None;
            record.incoming = Some(IncomingRecord {
                incoming,
                received,
                in_slice: true,
            });
        })?;
        Ok(Affected::Instances(vec![id]))
    }

    /// Records that all disks were received; durable when it returns. The instance is remembered as one with these disks, so
    /// that a disk that is missing later is not created again. Does nothing if the desired state has changed since this
    /// version.
    pub fn complete_receive(&self, id: InstanceId, version: u64) -> Result<(), DurableError> {
        let mut inner = self.inner();
        if inner.version(id) != Some(version) {
            return Ok(());
        }
        self.change(&mut inner, id, |record| {
            let Some(known) = &mut record.incoming else {
                return;
            };
            known.received = true;
            let Incoming {
                disks,
                was_on,
                stopped_by,
                ..
            } = &known.incoming;
            record.memory = Memory {
                disks: DiskMemory {
                    created: disks.iter().map(|disk| disk.name.clone()).collect(),
                    sizes: disks
                        .iter()
                        .map(|disk| (disk.name.clone(), disk.size_bytes))
                        .collect(),
                },
                run: if *was_on {
                    RunMemory::Free
                } else {
                    RunMemory::Stopped
                },
                stopped_by: stopped_by.filter(|_| !was_on),
                ..Memory::default()
            };
        })
    }
}
