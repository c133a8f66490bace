//! Instances that a restored database does not contain.

use waifud_types::InstanceId;

use crate::world::World;

/// Whether a restored database does not contain the instance. One that was deleted since is not known either, until its node
/// has destroyed it.
pub(super) fn is_unknown(world: &World, id: InstanceId) -> bool {
    let promise = world.promises.of(id);
    promise.is_none_or(|promise| promise.unmanaged || promise.forgotten)
}

/// Whether waifud cannot know that an instance uses an address: it was created after a backup that was restored. The backup may
/// contain the former owner of the address, but no instance that was created later gets the address.
pub(super) fn may_share(world: &World, id: InstanceId, owner: Option<InstanceId>) -> bool {
    let is_former = |owner| world.promises.is(owner, |promise| promise.voided);
    is_unknown(world, id) && owner.is_none_or(is_former)
}
