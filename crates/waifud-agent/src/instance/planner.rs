//! The next step for one instance: a pure function of the desired state, the observed state, and what was tried.
//!
//! A driver calls [`next`] after each step until it returns [`Step::Idle`] or [`Step::Wait`]. Nothing else decides
//! about an instance, so the rules that protect users' instances are all written and tested here:
//!
//! - **Nothing is destroyed without a tombstone** of the copy's epoch or a later one, and nothing while an administrator has
//!   to confirm a restored database first.
//! - **No nic exists without its port's rules.** They are applied before it is added, and removed after the guest has released
//!   it.
//! - **Nothing is started before its port's rules and its documents are in place.** The order is image, volumes,
//!   definition, port, bundle, start. Each step is an *ensure*, so repeating them recovers from a crash at any point.
//! - **Nothing is started after a release**: it only stops the guest, unless it lets a running one continue. The disks and
//!   the definition stay.
//! - A running guest is left running whatever fails around it: a port or a bundle that cannot be ensured is retried
//!   later and is never a reason to stop the guest.
//!
//! ```text
//!   Keep, off:   EnsureImage → EnsureVolumes → EnsureSeed → Define → EnsurePort → EnsureBundle → (run?) Start
//!   Keep, on:    EnsurePort → EnsureNics (→ EnsurePort) → EnsureBundle → GrowDisks → WatchReady → Idle
//!                (run = false: RequestShutdown → wait → ForceOff; a reboot: the same, then as when off)
//!   Release:     (on and stop? RequestShutdown → wait → ForceOff) → ReleaseBundle → ReleasePort → CompleteRelease → Idle
//!   Destroy:     ForceOff → Undefine → DestroyVolumes → ReleaseBundle → ReleasePort → ConfirmDestroyed
//! ```

use waifud_api::agent::AgentInstance;
use waifud_hypervisor::DomainState;
use waifud_types::{Epoch, Name};

use crate::control_link::record::{Deletion, DesiredState, Handover, Memory};
use crate::instance::restart_policy;

/// What was observed of an instance on its node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub struct Observed {
    /// The state of its domain; `None` without a domain.
    pub domain: Option<DomainState>,
    /// The epoch that the domain is marked with.
    pub epoch: Option<Epoch>,
    /// A domain has the instance's id but was not created by waifud.
    pub foreign: bool,
    /// This process defined the domain from the present spec.
    pub defined: bool,
    /// Every pool that it needs has the image.
    pub image: bool,
    /// This process ensured every disk.
    pub volumes: bool,
    /// This process ensured the disk with its documents, or that there is none if it needs none.
    pub seed: bool,
    /// It reads its documents from that disk and does not need metadatad.
    pub by_disk: bool,
    /// A disk that was created earlier and is missing.
    pub lost: Option<Name>,
    /// A volume of it exists; for a deletion, also any other file.
    pub leftovers: bool,
    /// Its lease and firewall rules are applied.
    pub port: bool,
    /// The running guest has exactly its nics, as far as this process has ensured that.
    pub nics: bool,
    /// Its documents are served, through a tunnel that is up.
    pub bundle: bool,
    /// metadatad may hold something of it, because it has not confirmed a release.
    pub assigned: bool,
    /// Every disk has its desired size, as far as recorded.
    pub grown: bool,
    /// cloud-init has finished in this boot, or nothing more can be learned about it.
    pub readiness_final: bool,
}

/// What was tried since the observation, and what timers and permissions allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, named where they are used"
)]
pub struct Circumstances {
    /// Guests may be started: waifud has answered, or the node may start them alone.
    pub start_allowed: bool,
    /// The back-off before a restart is over.
    pub restart_due: bool,
    /// The grace period for a shutdown is over.
    pub grace_over: bool,
    /// This process has not asked the guest to shut down, or long enough ago that it may have missed the request.
    pub ask_again: bool,
    /// The pool of a paused guest has free space again.
    pub space_returned: bool,
    /// waifud's database was restored, and no administrator has confirmed that for this node.
    pub unconfirmed: bool,
    /// The host is shutting down: nothing is started on it.
    pub host_stopping: bool,
    /// `GrowDisks` failed in this pass.
    pub grow_failed: bool,
    /// `EnsurePort` failed in this pass.
    pub port_failed: bool,
    /// `EnsureNics` failed in this pass.
    pub nics_failed: bool,
    /// `EnsureBundle` failed in this pass.
    pub bundle_failed: bool,
}

/// The next step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Import the image into the pools that need it.
    EnsureImage,
    /// Clone the disks.
    EnsureVolumes,
    /// Write the disk with its documents, if it uses one.
    EnsureSeed,
    /// Apply the lease and the firewall rules, and remove those of nics that the guest has released.
    EnsurePort,
    /// Add nics to the running guest, and have it release those that were removed.
    EnsureNics,
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
    /// Force the guest off.
    ForceOff,
    /// Remove the domain.
    Undefine,
    /// Destroy its volumes.
    DestroyVolumes,
    /// Have metadatad release it.
    ReleaseBundle,
    /// Remove the lease and the rules.
    ReleasePort,
    /// Report to waifud that nothing is left.
    ConfirmDestroyed,
    /// Record that the instance is given up.
    CompleteRelease,
    /// Watch cloud-init.
    WatchReady,
    /// Nothing can be done until something else happens.
    Wait(Wait),
    /// Nothing needs to be done.
    Idle,
}

/// What an instance waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// An administrator who confirms the restored database.
    Confirmation,
    /// Nothing: the deletion is for an older copy than this one.
    StaleDeletion,
    /// An administrator who removes a domain that has the id and was not created by waifud.
    ForeignDomain,
    /// A newer epoch from waifud: the domain on this node has one.
    NewerCopy,
    /// An administrator who brings back a missing disk.
    LostDisk,
    /// An administrator who confirms that an instance of the restored database, which does not exist here, is still wanted.
    Restored,
    /// waifud, or the time after which the node may start guests alone.
    StartAllowed,
    /// The host, which is shutting down.
    Host,
    /// The back-off before a restart.
    Backoff,
    /// The guest, which was asked to shut down.
    Shutdown,
    /// Free space on the pool.
    DiskSpace,
    /// Someone who resumes the guest.
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

/// The next step; see the module documentation.
pub fn next(desired: &DesiredState, memory: &Memory, seen: &Observed, now: Circumstances) -> Step {
    match desired {
        // Its pass is another one: `driver/receive.rs`.
        DesiredState::LeaveAlone | DesiredState::Receive(_) => Step::Idle,
        DesiredState::Destroy(deletion) => destroy(deletion, seen),
        DesiredState::Release(handover) => release(handover, memory, seen, now),
        DesiredState::Keep(want) => keep(want, memory, seen, now),
    }
}

fn destroy(deletion: &Deletion, seen: &Observed) -> Step {
    let copy = seen.epoch.max(deletion.epoch);
    if deletion.done {
        Step::ConfirmDestroyed
    } else if deletion.held {
        Step::Wait(Wait::Confirmation)
    } else if copy.is_some_and(|copy| copy > deletion.tombstone.epoch) {
        Step::Wait(Wait::StaleDeletion)
    } else if seen.domain.is_some() && seen.foreign {
        Step::Wait(Wait::ForeignDomain)
    } else if seen.is_on() {
        Step::ForceOff
    } else if seen.domain.is_some() {
        Step::Undefine
    } else if seen.leftovers {
        Step::DestroyVolumes
    } else {
        disconnect(seen).unwrap_or(Step::ConfirmDestroyed)
    }
}

/// The next step until nothing serves the instance any more; `None` then.
fn disconnect(seen: &Observed) -> Option<Step> {
    if seen.assigned {
        Some(Step::ReleaseBundle)
    } else if seen.port {
        Some(Step::ReleasePort)
    } else {
        None
    }
}

fn release(handover: &Handover, memory: &Memory, seen: &Observed, now: Circumstances) -> Step {
    let record = handover.record;
    if seen.domain.is_some() && seen.foreign {
        Step::Wait(Wait::ForeignDomain)
    } else if seen.epoch > Some(record.release.epoch) {
        Step::Wait(Wait::NewerCopy)
    } else if seen.domain == Some(DomainState::Crashed) {
        Step::ForceOff
    } else if seen.is_on() {
        // Someone may have started it by hand since the release was complete.
        if record.release.stop || record.completed {
            shut_down(memory, now, false)
        } else {
            Step::Idle
        }
    } else if record.completed {
        Step::Idle
    } else {
        disconnect(seen).unwrap_or(Step::CompleteRelease)
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
        // A reboot is a shutdown and the start that follows.
        Some(_) if seen.is_on() && restart_policy::reboot_requested(memory, want) => {
            shut_down(memory, now, want.spec.power.force_reboot)
        }
        Some(_) if seen.is_on() => {
            let running = seen.domain == Some(DomainState::Running);
            let released = memory.removed_nics.iter().any(|nic| nic.released);
            if (!seen.port || released) && !now.port_failed {
                Step::EnsurePort
            } else if running && seen.port && !seen.nics && !now.nics_failed {
                Step::EnsureNics
            } else if !seen.bundle && !now.bundle_failed {
                Step::EnsureBundle
            } else if running && !seen.grown && !now.grow_failed {
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
        _ if seen.readiness_final => Step::Idle,
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
    } else if !seen.port || !memory.removed_nics.is_empty() {
        // The definition does not have the removed nics any more, so their ports can be removed.
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

/// The steps from an image to a running guest, in order.
pub(crate) const START: [Step; 7] = [
    Step::EnsureImage,
    Step::EnsureVolumes,
    Step::EnsureSeed,
    Step::Define,
    Step::EnsurePort,
    Step::EnsureBundle,
    Step::Start,
];

/// The steps that release an instance, in order.
pub(crate) const RELEASE: [Step; 4] = [
    Step::ForceOff,
    Step::ReleaseBundle,
    Step::ReleasePort,
    Step::CompleteRelease,
];

/// The steps that remove a running guest, in order.
pub(crate) const DESTROY: [Step; 6] = [
    Step::ForceOff,
    Step::Undefine,
    Step::DestroyVolumes,
    Step::ReleaseBundle,
    Step::ReleasePort,
    Step::ConfirmDestroyed,
];

/// Whether `step` is `later` or precedes it, in the plan of an instance that is off or is destroyed.
pub fn leads_to(step: Step, later: Step) -> bool {
    let on = |plan: &[Step]| {
        let place = |wanted| plan.iter().position(|step| *step == wanted);
        place(step).is_some_and(|at| place(later).is_some_and(|end| at <= end))
    };
    let same = matches!(
        step,
        Step::GrowDisks | Step::EnsureNics | Step::RequestShutdown
    ) && step == later;
    same || on(&START) || on(&RELEASE) || on(&DESTROY)
}

impl Step {
    /// The step's name on the wire; `None` for `Idle`.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::EnsureImage => "image",
            Self::EnsureVolumes => "volume",
            Self::EnsureSeed => "seed",
            Self::EnsurePort => "network",
            Self::EnsureNics => "nics",
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
            Self::CompleteRelease => "complete-release",
            Self::WatchReady => "ready",
            Self::Wait(_) => "wait",
            Self::Idle => return None,
        })
    }
}

impl Wait {
    /// The text of `waiting_for` on a node of this name.
    pub fn text(self, node: &Name) -> String {
        let text = match self {
            Self::Confirmation => {
                return format!(
                    "an administrator to confirm node {node}, because waifud's database was restored"
                );
            }
            Self::StaleDeletion => {
                "nothing: the deletion is for an older copy than the one on this node"
            }
            Self::ForeignDomain => {
                "an administrator to undefine (virsh undefine) a domain that has this instance's id but was not created by waifud"
            }
            Self::NewerCopy => {
                "waifud: the copy of the instance on this node is newer than the one that waifud requested"
            }
            Self::LostDisk => {
                "a disk that was created earlier and is now missing; is the pool's filesystem mounted?"
            }
            Self::Restored => {
                return format!(
                    "an administrator: the instance is in the restored database but not on node {node}, so it may have been \
                     deleted after the backup; delete it, or confirm node {node} to create it again"
                );
            }
            Self::StartAllowed => "waifud to answer before this node starts its guests",
            Self::Host => "the host to start again: it is shutting down",
            Self::Backoff => "the pause before the next restart",
            Self::Shutdown => "the guest to shut down",
            Self::DiskSpace => "free space on the pool: the guest could not write to its disk",
            Self::Pause => "a user to resume the guest, which was paused outside waifud",
        };
        text.to_owned()
    }
}
