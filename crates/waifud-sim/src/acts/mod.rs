//! What can happen: requests of users, faults, and the end of faults.

mod crash;
mod drains;
mod faults;
mod moves;
mod network;
mod nodes;
mod requests;
mod restore;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use waifud_kit::sync::lock;

pub use moves::guests_write;

use crate::random::Random;
use crate::world::{Cuts, Promise, World};

/// Something that happens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Act {
    /// A user creates an instance.
    Create,
    /// A user deletes one.
    Delete,
    /// A user starts one.
    Start,
    /// A user stops one.
    Stop,
    /// A user changes the user-data, labels or policies of one.
    Edit,
    /// A user changes the CPUs, the memory or the disk of one.
    Resize,
    /// A user publishes ports of one, or ends that.
    Publish,
    /// A user changes the firewall of one.
    Firewall,
    /// A user adds a nic to one.
    AddNic,
    /// A user removes one of its nics.
    RemoveNic,
    /// A user reboots one.
    Reboot,
    /// waifud orders a node to release an instance.
    Release,
    /// waifud withdraws a release.
    Withdraw,
    /// A user moves an instance to another node.
    Move,
    /// A user cancels a move.
    CancelMove,
    /// An operator cordons a node.
    Cordon,
    /// An operator uncordons a node.
    Uncordon,
    /// An operator drains a node.
    Drain,
    /// An operator cancels a drain.
    CancelDrain,
    /// An operator removes a node without instances.
    RemoveNode,
    /// An operator removes a node that seems to be dead, and confirms that it is off.
    RemoveByForce,
    /// A machine joins the cluster, or joins it again.
    Join,
    /// The disks of a removed machine are lost and replaced.
    LoseDisks,
    /// A user gives new disks to an instance that was lost with its node.
    Recreate,
    /// A wire is cut, in one direction or both.
    CutWire,
    /// A wire is healed.
    HealWire,
    /// waifud is killed.
    KillWaifud,
    /// waifud is started again.
    StartWaifud,
    /// An agent is killed and started again.
    RestartAgent,
    /// A node loses its power.
    CutPower,
    /// A node boots again.
    Boot,
    /// The clock of a machine is set forwards or backwards.
    JumpClock,
    /// waifud, an agent or a node crashes soon, in the middle of something.
    Crash,
    /// waifud's database is copied.
    BackUp,
    /// waifud's database is replaced with an older copy.
    Restore,
    /// An operator confirms a restored database for a node.
    Confirm,
    /// An operator adopts an unmanaged instance.
    Adopt,
    /// An operator deletes an unmanaged instance.
    DeleteUnmanaged,
}

impl Act {
    /// Its name in words.
    pub fn words(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push(' ');
            }
            name.extend(letter.to_lowercase());
        }
        name
    }
}

/// The names of all acts.
pub fn all_names() -> Vec<String> {
    WEIGHTS.iter().map(|(act, _)| act.words()).collect()
}

/// Each act and how often it happens, compared with the others that are possible.
const WEIGHTS: &[(Act, u64)] = &[
    (Act::Create, 20),
    (Act::Delete, 8),
    (Act::Start, 8),
    (Act::Stop, 8),
    (Act::Edit, 8),
    (Act::Resize, 6),
    (Act::Publish, 4),
    (Act::Firewall, 4),
    (Act::AddNic, 4),
    (Act::RemoveNic, 3),
    (Act::Reboot, 4),
    (Act::Release, 6),
    (Act::Withdraw, 6),
    (Act::Move, 10),
    (Act::CancelMove, 3),
    (Act::Cordon, 2),
    (Act::Uncordon, 4),
    (Act::Drain, 2),
    (Act::CancelDrain, 2),
    (Act::RemoveNode, 2),
    (Act::RemoveByForce, 3),
    (Act::Join, 6),
    (Act::LoseDisks, 3),
    (Act::Recreate, 8),
    (Act::CutWire, 6),
    (Act::HealWire, 8),
    (Act::KillWaifud, 5),
    (Act::StartWaifud, 30),
    (Act::RestartAgent, 4),
    (Act::CutPower, 4),
    (Act::Boot, 8),
    (Act::JumpClock, 3),
    (Act::Crash, 8),
    (Act::BackUp, 4),
    (Act::Restore, 4),
    (Act::Confirm, 2),
    (Act::Adopt, 4),
    (Act::DeleteUnmanaged, 2),
];

/// The acts that are faults.
pub const FAULTS: &[Act] = &[
    Act::CutWire,
    Act::KillWaifud,
    Act::RestartAgent,
    Act::CutPower,
    Act::JumpClock,
    Act::Crash,
    Act::LoseDisks,
    Act::Restore,
];

/// How often each act happened.
pub type Counts = BTreeMap<Act, u64>;

/// One act, chosen by chance among those that can happen. Returns it, unless waifud refused it.
pub async fn one(world: &Arc<World>, random: &Random) -> Result<Option<Act>> {
    let act = choose(world, random);
    // Until the promises are updated.
    world.set_asking(true);
    let happened = match act {
        Act::Create => requests::create(world, random).await,
        Act::Delete => requests::delete(world, random).await,
        Act::Start => requests::start(world, random).await,
        Act::Stop => requests::stop(world, random).await,
        Act::Edit => requests::edit(world, random).await,
        Act::Resize => requests::resize(world, random).await,
        Act::Publish => requests::publish(world, random).await,
        Act::Firewall => network::firewall(world, random).await,
        Act::AddNic => network::add_nic(world, random).await,
        Act::RemoveNic => network::remove_nic(world, random).await,
        Act::Reboot => requests::reboot(world, random).await,
        Act::Release | Act::Withdraw => {
            requests::release(world, random, act == Act::Withdraw).await
        }
        Act::Move => moves::begin(world, random).await,
        Act::CancelMove => moves::cancel(world, random).await,
        Act::Cordon | Act::Uncordon => nodes::cordon(world, random, act == Act::Cordon).await,
        Act::Drain => drains::begin(world, random).await,
        Act::CancelDrain => drains::cancel(world, random).await,
        Act::RemoveNode | Act::RemoveByForce => {
            nodes::remove(world, random, act == Act::RemoveByForce).await
        }
        Act::Join => nodes::join(world, random).await?,
        Act::LoseDisks => nodes::lose_disks(world, random).await?,
        Act::Recreate => nodes::recreate(world, random).await,
        Act::BackUp => restore::back_up(world).await?,
        Act::Restore => restore::restore(world).await?,
        Act::Confirm => restore::confirm(world, random).await,
        Act::Adopt | Act::DeleteUnmanaged => {
            restore::resolve_one(world, random, act == Act::Adopt).await
        }
        Act::Crash => crash::prepare(world, random),
        fault => {
            // Faults promise nothing.
            world.set_asking(false);
            faults::one(world, random, fault).await?
        }
    };
    world.set_asking(false);
    Ok(happened.then_some(act))
}

/// Whether an act can happen.
fn is_possible(act: Act, world: &World, living: &[Promise]) -> bool {
    let any = |fits: fn(&Promise) -> bool| living.iter().any(fits);
    let by_request = match act {
        Act::Create => living.len() < requests::NAMES.len(),
        Act::Delete | Act::Edit | Act::Resize | Act::Publish | Act::Firewall | Act::AddNic => {
            !living.is_empty()
        }
        Act::RemoveNic => any(|promise| !promise.fields.nics.is_empty()),
        Act::Start => any(|promise| !promise.fields.run),
        Act::Stop | Act::Reboot => any(|promise| promise.fields.run),
        // A restored database may contain it without a move, and waifud then withdraws it.
        Act::Release => {
            !world.was_restored()
                && lock(&world.drains).is_empty()
                && any(|promise| promise.release.is_none() && !promise.moved)
        }
        Act::Move => any(|promise| promise.release.is_none()),
        Act::Drain => drains::is_possible(world, living),
        Act::CancelDrain => !lock(&world.drains).is_empty(),
        Act::CancelMove => any(|promise| promise.moved),
        Act::Withdraw => any(|promise| promise.release.is_some()),
        Act::BackUp => restore::can_back_up(world),
        Act::Restore => {
            let has_backup = lock(&world.backup).is_some();
            return world.restores && has_backup && lock(&world.unanswered).is_empty();
        }
        Act::Confirm => !lock(&world.unconfirmed).is_empty(),
        Act::Adopt | Act::DeleteUnmanaged => restore::has_unmanaged(world),
        Act::LoseDisks => return nodes::is_possible(act, world, living),
        // First operators decide about what a restored database does not contain.
        Act::RemoveNode | Act::RemoveByForce | Act::Join | Act::Recreate
            if world.is_undecided() =>
        {
            false
        }
        Act::Cordon
        | Act::Uncordon
        | Act::RemoveNode
        | Act::RemoveByForce
        | Act::Join
        | Act::Recreate => nodes::is_possible(act, world, living),
        fault => return faults::is_possible(fault, world),
    };
    by_request && world.waifud.is_running()
}

fn choose(world: &World, random: &Random) -> Act {
    let living: Vec<Promise> = world
        .promises
        .living()
        .into_iter()
        .map(|(_, p)| p)
        .collect();
    let possible = WEIGHTS.iter();
    let possible: Vec<&(Act, u64)> = possible
        .filter(|(act, _)| is_possible(*act, world, &living))
        .collect();
    let total = possible.iter().map(|(_, weight)| weight).sum();
    let mut left = random.below(total);
    for (act, weight) in possible {
        if left < *weight {
            return *act;
        }
        left -= weight;
    }
    // A node always has power or none, so something is always possible.
    Act::Boot
}

/// Ends every fault.
pub async fn heal(world: &Arc<World>) -> Result<()> {
    world.history.act("every fault ends");
    // Those that are still to come do not come.
    let mut crashes = std::mem::take(&mut *lock(&world.crashes));
    crashes.shutdown().await;
    if !world.waifud.is_running() {
        world.waifud.start().await?;
    }
    for node in &world.nodes {
        node.wire.set_calm(true);
        node.wire.set_cuts(Cuts::default());
        if !node.is_powered() {
            node.boot(world)?;
        }
    }
    for id in std::mem::take(&mut *lock(&world.holding_nics)) {
        world.hold_nics(id, false);
    }
    Ok(())
}

/// Operators decide everything that is undecided.
pub async fn decide_everything(world: &World) {
    world.settle_unanswered().await;
    world.set_asking(true);
    restore::decide(world).await;
    nodes::resolve_copies(world).await;
    world.set_asking(false);
}

/// The cluster has come to rest. Operators end what would go on.
pub async fn rest(world: &World) {
    world.set_asking(true);
    drains::cancel_all(world).await;
    world.set_asking(false);
    world.settled();
}

/// Messages are slow and arrive twice from now on.
pub fn disturb(world: &World) {
    for node in &world.nodes {
        node.wire.set_calm(false);
    }
}
