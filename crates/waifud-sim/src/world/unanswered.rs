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
        for unanswered in std::mem::take(&mut *lock(&self.unanswered)) {
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
                Unanswered::Change(id, after) => {
                    let found = rows.iter().find(|(row, _)| row.id == id);
                    let Some((row, part)) = found else {
                        if after.deleted {
                            self.promises.set(id, after);
                        }
                        continue;
                    };
                    let done = row.deleting == after.deleted && Fields::of(row) == after.fields;
                    // During a move, the release belongs to it.
                    let part = part
                        .filter(|part| part.role != OwnershipRole::Owner && row.moving.is_none());
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
}
