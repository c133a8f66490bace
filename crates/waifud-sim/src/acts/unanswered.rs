//! Requests without an answer, because waifud crashed meanwhile: they have happened completely, or not at all.

use waifud_kit::sync::lock;
use waifud_store::{InstanceFilter, StoreError};
use waifud_types::{InstanceId, OwnershipRole};

use crate::world::{Fields, Promise, Release, World};

/// A request without an answer.
#[derive(Clone, Debug)]
pub enum Unanswered {
    /// What would have been promised for a new instance.
    Create(Promise),
    /// What would be promised now.
    Change(InstanceId, Promise),
}

/// Remembers a request. Until waifud runs again, its consequences are possible.
pub(super) fn remember(world: &World, unanswered: Unanswered) {
    if let Unanswered::Change(id, after) = &unanswered {
        world.promises.change(*id, |promise| {
            promise.may_stop = true;
            promise.may_vanish |= after.deleted;
            promise.was_released |= after.was_released;
        });
    }
    lock(&world.unanswered).push(unanswered);
}

/// Asks waifud's database what became of them, if waifud runs.
pub async fn settle(world: &World) {
    if lock(&world.unanswered).is_empty() {
        return;
    }
    let read = world.waifud.read(|tx| {
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
    for unanswered in std::mem::take(&mut *lock(&world.unanswered)) {
        match unanswered {
            Unanswered::Create(promise) => {
                let known = world.promises.all();
                let mut made = rows.iter().map(|(row, _)| row);
                let made = made
                    .find(|row| row.name.as_str() == promise.name && !known.contains_key(&row.id));
                if let Some(row) = made {
                    world.promises.set(row.id, promise);
                }
            }
            Unanswered::Change(id, after) => {
                let found = rows.iter().find(|(row, _)| row.id == id);
                let Some((row, part)) = found else {
                    if after.deleted {
                        world.promises.set(id, after);
                    }
                    continue;
                };
                let done = row.deleting == after.deleted && Fields::of(row) == after.fields;
                let part = part.filter(|part| part.role != OwnershipRole::Owner);
                world.promises.change(id, |promise| {
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
