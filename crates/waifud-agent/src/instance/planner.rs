//! What to do next about one instance: a pure function of what should be, what is, and what was tried.
//!
//! A driver calls [`next`] again after each step until it says [`Step::Idle`] or [`Step::Wait`]. Nothing else decides
//! about an instance, so the rules that keep people's machines alive can be read, and are tested, here:
//!
//! - **Nothing is destroyed without a tombstone** of the copy's epoch or a later one, and none while an operator has to
//!   confirm a restored database first.
//! - **Nothing is started before its port's rules and its documents are in place.** The order is image, volumes,
//!   definition, port, bundle, start; each is an *ensure*, so a crash anywhere is mended by going through them again.
//! - A running guest is left running whatever fails around it: a port or a bundle that can't be ensured is tried again
//!   later and never a reason to stop.
//!
//! ```text
//!   Keep, off:   EnsureImage → EnsureVolumes → EnsureSeed → Define → EnsurePort → EnsureBundle → (run?) Start
//!   Keep, on:    EnsurePort → EnsureBundle → GrowDisks → WatchReady → Idle
//!                (run = false: RequestShutdown → wait → ForceOff; a reboot: the same, then as when off)
//!   Destroy:     ForceOff → Undefine → DestroyVolumes → ReleaseBundle → ReleasePort → ConfirmDestroyed
//! ```

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::DomainState;
use waifud_types::{Epoch, Name};

use crate::control_link::record::{DesiredState, Memory, Order};
use crate::instance::restart_policy;

/// What was seen of an instance on its node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub struct Observed {
    /// Its domain's state; null without a domain.
    pub domain: Option<DomainState>,
    /// The epoch that the domain is marked with.
    pub epoch: Option<Epoch>,
    /// The domain has its id and is not ours.
    pub foreign: bool,
    /// The domain was defined from the present spec by this process.
    pub defined: bool,
    /// Every pool that it needs has its image.
    pub image: bool,
    /// Every disk is there, as ensured by this process.
    pub volumes: bool,
    /// The disk with its documents is there, as ensured by this process; or it needs none and has none.
    pub seed: bool,
    /// It reads its documents from that disk, and can do without metadatad.
    pub by_disk: bool,
    /// A disk that was made once and is not there.
    pub lost: Option<Name>,
    /// Any volume of it exists; under an order to destroy, also any other file.
    pub leftovers: bool,
    /// Its lease and rules are in force.
    pub port: bool,
    /// Its documents are served, through a tunnel that is up.
    pub bundle: bool,
    /// metadatad may hold something of it: it has not confirmed a release.
    pub assigned: bool,
    /// Every disk is as large as it should be, as far as remembered.
    pub grown: bool,
    /// cloud-init has come to its end in this run, or there is nothing more to learn.
    pub settled: bool,
}

/// What was tried since the observation, and what the clock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub struct Circumstances {
    /// Guests may be started: waifud was heard, or the node may start alone.
    pub start_allowed: bool,
    /// A restart's back-off has passed.
    pub restart_due: bool,
    /// The guest has had its time to shut down.
    pub grace_over: bool,
    /// The guest was not asked to shut down by this process, or so long ago that it may have slept through it.
    pub ask_again: bool,
    /// A paused guest's pool has room again.
    pub space_returned: bool,
    /// waifud's database was restored, and no operator has confirmed it for this node.
    pub unconfirmed: bool,
    /// The host is going down: nothing is started on it.
    pub host_stopping: bool,
    /// `GrowDisks` failed in this pass.
    pub grow_failed: bool,
    /// `EnsurePort` failed in this pass.
    pub port_failed: bool,
    /// `EnsureBundle` failed in this pass.
    pub bundle_failed: bool,
}

/// The next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Get the image into the pools that need it.
    EnsureImage,
    /// Clone the disks.
    EnsureVolumes,
    /// Write the disk with its documents, where it has one.
    EnsureSeed,
    /// Put lease and rules in force.
    EnsurePort,
    /// Have metadatad serve the documents.
    EnsureBundle,
    /// Define the domain.
    Define,
    /// Start it, or resume it.
    Start,
    /// Grow the running guest's disks.
    GrowDisks,
    /// Ask the guest to shut down.
    RequestShutdown,
    /// Pull the plug.
    ForceOff,
    /// Remove the domain.
    Undefine,
    /// Destroy its volumes.
    DestroyVolumes,
    /// Have metadatad forget it.
    ReleaseBundle,
    /// Remove lease and rules.
    ReleasePort,
    /// Tell waifud that nothing is left.
    ConfirmDestroyed,
    /// Look at cloud-init.
    WatchReady,
    /// Nothing can be done now.
    Wait(Wait),
    /// Nothing is to be done.
    Idle,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// An operator's word that the restored database is the right one.
    Confirmation,
    /// Nothing: the order is for an older copy than this.
    StaleOrder,
    /// Somebody to remove a domain that has the id and is not ours.
    ForeignDomain,
    /// Nothing: a domain of a newer epoch is here.
    NewerCopy,
    /// Somebody to bring back a disk.
    LostDisk,
    /// An operator's word that an instance of the restored database, of which nothing is here, is still wanted.
    Restored,
    /// waifud, or the time after which a node may start alone.
    StartAllowed,
    /// The host, which is going down.
    Host,
    /// The restart's back-off.
    Backoff,
    /// The guest, which was asked to shut down.
    Shutdown,
    /// Room on the pool.
    DiskSpace,
    /// Whoever paused it.
    Pause,
}

impl Observed {
    /// Whether a QEMU process runs for it.
    pub fn is_on(&self) -> bool {
        matches!(
            self.domain,
            Some(DomainState::Running | DomainState::Paused { .. } | DomainState::ShuttingDown)
        )
    }
}

/// The next step. See the module's text.
pub fn next(wish: &DesiredState, memory: &Memory, seen: &Observed, now: Circumstances) -> Step {
    match wish {
        DesiredState::LeaveAlone => Step::Idle,
        DesiredState::Destroy(order) => destroy(order, seen),
        DesiredState::Keep(want) => keep(want, memory, seen, now),
    }
}

fn destroy(order: &Order, seen: &Observed) -> Step {
    let copy = seen.epoch.max(order.epoch);
    if order.done {
        Step::ConfirmDestroyed
    } else if order.held {
        Step::Wait(Wait::Confirmation)
    } else if copy.is_some_and(|copy| copy > order.tombstone.epoch) {
        Step::Wait(Wait::StaleOrder)
    } else if seen.domain.is_some() && seen.foreign {
        Step::Wait(Wait::ForeignDomain)
    } else if seen.is_on() {
        Step::ForceOff
    } else if seen.domain.is_some() {
        Step::Undefine
    } else if seen.leftovers {
        Step::DestroyVolumes
    } else if seen.assigned {
        Step::ReleaseBundle
    } else if seen.port {
        Step::ReleasePort
    } else {
        Step::ConfirmDestroyed
    }
}

fn keep(want: &AgentInstance, memory: &Memory, seen: &Observed, now: Circumstances) -> Step {
    if seen.domain.is_some() && seen.foreign {
        return Step::Wait(Wait::ForeignDomain);
    }
    if seen.epoch.is_some_and(|epoch| epoch > want.epoch) {
        return Step::Wait(Wait::NewerCopy);
    }
    match seen.domain {
        Some(DomainState::Crashed) => Step::ForceOff,
        Some(_) if seen.is_on() && !want.spec.run => {
            shut_down(memory, now, want.spec.power.force_off)
        }
        // The start that follows is the other half of it.
        Some(_) if seen.is_on() && restart_policy::reboot_ordered(memory, want) => {
            shut_down(memory, now, want.spec.power.force_reboot)
        }
        Some(_) if seen.is_on() => {
            if !seen.port && !now.port_failed {
                Step::EnsurePort
            } else if !seen.bundle && !now.bundle_failed {
                Step::EnsureBundle
            } else if seen.domain == Some(DomainState::Running) && !seen.grown && !now.grow_failed {
                Step::GrowDisks
            } else {
                look_after(seen, now)
            }
        }
        _ => prepare(want, memory, seen, now),
    }
}

fn shut_down(memory: &Memory, now: Circumstances, force: bool) -> Step {
    if force || now.grace_over {
        Step::ForceOff
    } else if memory.stop_requested && !now.ask_again {
        Step::Wait(Wait::Shutdown)
    } else {
        Step::RequestShutdown
    }
}

fn look_after(seen: &Observed, now: Circumstances) -> Step {
    match seen.domain {
        Some(DomainState::Paused { io_error: true }) if now.space_returned => Step::Start,
        Some(DomainState::Paused { io_error: true }) => Step::Wait(Wait::DiskSpace),
        Some(DomainState::Paused { io_error: false }) => Step::Wait(Wait::Pause),
        Some(DomainState::ShuttingDown) => Step::Wait(Wait::Shutdown),
        _ if seen.settled => Step::Idle,
        _ => Step::WatchReady,
    }
}

fn prepare(want: &AgentInstance, memory: &Memory, seen: &Observed, now: Circumstances) -> Step {
    if seen.lost.is_some() {
        Step::Wait(Wait::LostDisk)
    } else if want.restored && now.unconfirmed && seen.domain.is_none() && !memory.defined {
        Step::Wait(Wait::Restored)
    } else if !seen.image {
        Step::EnsureImage
    } else if !seen.volumes {
        Step::EnsureVolumes
    } else if !seen.seed {
        Step::EnsureSeed
    } else if seen.domain.is_none() || !seen.defined {
        Step::Define
    } else if !seen.port {
        Step::EnsurePort
    } else if !(seen.bundle || seen.by_disk && now.bundle_failed) {
        Step::EnsureBundle
    } else if !want.spec.run || !restart_policy::may_start(memory, want.spec.restart) {
        Step::Idle
    } else if now.host_stopping {
        Step::Wait(Wait::Host)
    } else if !now.start_allowed {
        Step::Wait(Wait::StartAllowed)
    } else if restart_policy::is_restart(memory) && !now.restart_due {
        Step::Wait(Wait::Backoff)
    } else {
        Step::Start
    }
}

/// Whether trying `step` is a part of trying `later`: it is the same work, or comes before it in the plan of an instance
/// that is off, or is destroyed.
pub fn leads_to(step: Step, later: Step) -> bool {
    const START: [Step; 7] = [
        Step::EnsureImage,
        Step::EnsureVolumes,
        Step::EnsureSeed,
        Step::Define,
        Step::EnsurePort,
        Step::EnsureBundle,
        Step::Start,
    ];
    const DESTROY: [Step; 6] = [
        Step::ForceOff,
        Step::Undefine,
        Step::DestroyVolumes,
        Step::ReleaseBundle,
        Step::ReleasePort,
        Step::ConfirmDestroyed,
    ];
    let on = |way: &[Step]| {
        let place = |wanted| way.iter().position(|step| *step == wanted);
        place(step).is_some_and(|at| place(later).is_some_and(|end| at <= end))
    };
    let same = matches!(step, Step::GrowDisks | Step::RequestShutdown) && step == later;
    same || on(&START) || on(&DESTROY)
}

impl Step {
    /// The step's name on the wire; null for what is no work.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EnsureImage => "image",
            Self::EnsureVolumes => "volume",
            Self::EnsureSeed => "seed",
            Self::EnsurePort => "network",
            Self::EnsureBundle => "bundle",
            Self::Define => "define",
            Self::Start => "start",
            Self::GrowDisks => "grow",
            Self::RequestShutdown | Self::Wait(Wait::Shutdown) => "shutdown",
            Self::ForceOff => "force-off",
            Self::Undefine => "undefine",
            Self::DestroyVolumes => "destroy-volumes",
            Self::ReleaseBundle => "release-bundle",
            Self::ReleasePort => "release-network",
            Self::ConfirmDestroyed => "confirm",
            Self::WatchReady => "ready",
            Self::Wait(_) => "wait",
            Self::Idle => return None,
        })
    }
}

impl Wait {
    /// In words, for `waiting_for`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmation => {
                "an operator to confirm that waifud's restored database is the right one: waifuctl node confirm"
            }
            Self::StaleOrder => {
                "nothing: the order to delete is for an older copy than the one here"
            }
            Self::ForeignDomain => {
                "the domain with this instance's id, which is not waifud's, to be undefined"
            }
            Self::NewerCopy => "a newer owner's word: the domain here is of a newer epoch",
            Self::LostDisk => {
                "a disk that was made earlier and is missing; is the pool's filesystem mounted?"
            }
            Self::Restored => {
                "an operator: it is in the restored database and nothing of it is on this node, so it may have been \
                 deleted since the backup; delete it, or confirm the node to make it anew"
            }
            Self::StartAllowed => "waifud, before this node may start its guests",
            Self::Host => "its host, which is going down, to come back",
            Self::Backoff => "the pause before the next restart",
            Self::Shutdown => "the guest to shut down",
            Self::DiskSpace => "room on the pool: the guest could not write to its disk",
            Self::Pause => "whoever paused it to resume it",
        }
    }
}
