//! Requests without an answer, because waifud crashed meanwhile: they have happened completely, or not at all.

use waifud_kit::sync::lock;
use waifud_store::{InstanceFilter, StoreError};
use waifud_types::{InstanceId, OwnershipRole};

use super::{Fields, Promise, Release, World};

/// A request without an answer.
#[derive(Clone, Debug)]
pub enum Unanswered {
    /// What would have been promised for a new instance.
    Create(Promise),
    /// What would be promised now.
    Change(InstanceId, Promise),
    /// The removal of the node with this name.
    Remove(String),
    /// New disks for an instance that was lost.
    Recreate(InstanceId),
}

impl World {
    /// Remembers a request. Until waifud runs again, its consequences are possible.
    pub fn remember_unanswered(&self, unanswered: Unanswered) {
        if let Unanswered::Change(id, after) = &unanswered {
            self.promises.change(*id, |promise| {
                promise.may_stop = true;
                promise.may_vanish |= after.deleted;
                promise.was_released |= after.was_released;
                promise.moved |= after.moved;
            });
        }
        lock(&self.unanswered).push(unanswered);
    }

    /// Asks waifud's database what became of them, if waifud runs.
    pub async fn settle_unanswered(&self) {
        if lock(&self.unanswered).is_empty() {
            return;
        }
        let read = self.waifud.read(|tx| {
            let all = tx.instances(&InstanceFilter::default(), "", 10_000)?;
            let with_role = all.into_iter().map(|row| {
                let part = tx.ownership(row.id)?.into_iter().next();
                Ok::<_, StoreError>((row, part))
            });
            with_role.collect::<Result<Vec<_>, _>>()
        });
        // An error of the database is found by the invariants.
        let Some(Ok(rows)) = read.await else {
            return;
        };
        let all = std::mem::take(&mut *lock(&self.unanswered));
        for unanswered in all {
            match unanswered {
                Unanswered::Create(promise) => {
                    let known = self.promises.all();
                    let mut made = rows.iter().map(|(row, _)| row);
                    let made = made.find(|row| {
                        row.name.as_str() == promise.name && !known.contains_key(&row.id)
                    });
                    if let Some(row) = made {
                        self.promises.set(row.id, promise);
                    }
                }
                Unanswered::Remove(name) => self.settle_removal(&name).await,
                Unanswered::Recreate(id) => {
                    let row = rows.iter().find(|(row, _)| row.id == id);
                    if let Some((row, _)) = row.filter(|(row, _)| row.lost_node.is_none()) {
                        self.note_recreation(id, Some(row.generation.0));
                    }
                }
                Unanswered::Change(id, after) => {
                    let found = rows.iter().find(|(row, _)| row.id == id);
                    let Some((row, part)) = found else {
                        if after.deleted {
                            self.promises.set(id, after);
                        }
                        continue;
                    };
                    let done = row.deleting == after.deleted && Fields::of(row) == after.fields;
                    // During a move, the release belongs to it. After a restore, it is withdrawn.
                    let part = part.filter(|part| {
                        part.role != OwnershipRole::Owner
                            && row.moving.is_none()
                            && !self.was_restored()
                    });
                    self.promises.change(id, |promise| {
                        if done {
                            *promise = after;
                            promise.generation = row.generation.0;
                        }
                        promise.release = part.map(|part| Release { stop: part.stop });
                    });
                }
            }
        }
    }

    async fn settle_removal(&self, name: &str) {
        let mut members = self.members();
        let Some(node) = members.find(|node| node.name == name) else {
            return;
        };
        let Some(id) = node.id() else {
            return;
        };
        if let Some(Ok(None)) = self.waifud.read(move |tx| tx.node(id)).await {
            self.note_removal(node).await;
        }
    }
}
