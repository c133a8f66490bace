//! Converts libvirt's states, reasons and events into waifud's. No I/O.
//!
//! Numbers and their meaning: <https://libvirt.org/html/libvirt-libvirt-domain.html>.

use virt_sys as sys;

use crate::{DomainEventKind, DomainState, OffReason};

/// The result of `virDomainGetState`.
pub(super) fn domain_state(state: u32, reason: i32) -> DomainState {
    let reason = u32::try_from(reason).unwrap_or(u32::MAX);
    match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => DomainState::Running,
        sys::VIR_DOMAIN_PAUSED => match reason {
            sys::VIR_DOMAIN_PAUSED_CRASHED => DomainState::Crashed,
            sys::VIR_DOMAIN_PAUSED_SHUTTING_DOWN => DomainState::ShuttingDown,
            reason => DomainState::Paused {
                io_error: reason == sys::VIR_DOMAIN_PAUSED_IOERROR,
            },
        },
        sys::VIR_DOMAIN_PMSUSPENDED => DomainState::Paused { io_error: false },
        sys::VIR_DOMAIN_SHUTDOWN => DomainState::ShuttingDown,
        sys::VIR_DOMAIN_CRASHED => DomainState::Crashed,
        sys::VIR_DOMAIN_SHUTOFF => DomainState::Off(match reason {
            sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN => OffReason::GuestShutdown,
            sys::VIR_DOMAIN_SHUTOFF_DESTROYED => OffReason::Destroyed,
            sys::VIR_DOMAIN_SHUTOFF_CRASHED => OffReason::Crashed,
            sys::VIR_DOMAIN_SHUTOFF_FAILED => OffReason::StartFailed,
            _ => OffReason::Unknown,
        }),
        // `NOSTATE` is for hypervisors without states; QEMU's driver never returns it.
        _ => DomainState::Off(OffReason::Unknown),
    }
}

/// The meaning of a lifecycle event; `None` if it is irrelevant.
pub(super) fn lifecycle(event: i32, detail: i32) -> Option<DomainEventKind> {
    let detail = u32::try_from(detail).unwrap_or(u32::MAX);
    Some(match u32::try_from(event).ok()? {
        sys::VIR_DOMAIN_EVENT_STARTED | sys::VIR_DOMAIN_EVENT_RESUMED => DomainEventKind::Started,
        sys::VIR_DOMAIN_EVENT_SUSPENDED | sys::VIR_DOMAIN_EVENT_PMSUSPENDED => {
            DomainEventKind::Paused
        }
        sys::VIR_DOMAIN_EVENT_STOPPED => DomainEventKind::Stopped(match detail {
            sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => OffReason::GuestShutdown,
            sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => OffReason::Destroyed,
            // For a QEMU that died, the event of QEMU's driver is `FAILED`, but the reason of the state is `CRASHED`. A
            // failed start causes no event.
            sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED | sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => {
                OffReason::Crashed
            }
            _ => OffReason::Unknown,
        }),
        sys::VIR_DOMAIN_EVENT_CRASHED => DomainEventKind::Stopped(OffReason::Crashed),
        sys::VIR_DOMAIN_EVENT_DEFINED
        | sys::VIR_DOMAIN_EVENT_UNDEFINED
        | sys::VIR_DOMAIN_EVENT_SHUTDOWN => DomainEventKind::Changed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_converted() {
        let off = DomainState::Off;
        let paused = |io_error| DomainState::Paused { io_error };
        for (state, reason, expected) in [
            (0, 0, off(OffReason::Unknown)),
            (1, 1, DomainState::Running),
            (2, 0, DomainState::Running),
            (3, 1, paused(false)),
            (3, 5, paused(true)),
            (3, 8, DomainState::ShuttingDown),
            (3, 10, DomainState::Crashed),
            (3, -1, paused(false)),
            (4, 1, DomainState::ShuttingDown),
            (5, 0, off(OffReason::Unknown)),
            (5, 1, off(OffReason::GuestShutdown)),
            (5, 2, off(OffReason::Destroyed)),
            (5, 3, off(OffReason::Crashed)),
            (5, 6, off(OffReason::StartFailed)),
            (5, 99, off(OffReason::Unknown)),
            (6, 1, DomainState::Crashed),
            (7, 0, paused(false)),
            (99, 0, off(OffReason::Unknown)),
        ] {
            assert_eq!(domain_state(state, reason), expected, "{state} {reason}");
        }
    }

    #[test]
    fn every_event_is_converted_and_unknown_events_are_ignored() {
        use DomainEventKind::{Changed, Paused, Started, Stopped};
        for (event, detail, expected) in [
            (0, 0, Some(Changed)),
            (1, 0, Some(Changed)),
            (2, 0, Some(Started)),
            (3, 2, Some(Paused)),
            (4, 0, Some(Started)),
            (5, 0, Some(Stopped(OffReason::GuestShutdown))),
            (5, 1, Some(Stopped(OffReason::Destroyed))),
            (5, 2, Some(Stopped(OffReason::Crashed))),
            (5, 5, Some(Stopped(OffReason::Crashed))),
            (5, 99, Some(Stopped(OffReason::Unknown))),
            (6, 0, Some(Changed)),
            (7, 0, Some(Paused)),
            (8, 0, Some(Stopped(OffReason::Crashed))),
            (99, 0, None),
            (-1, 0, None),
        ] {
            assert_eq!(lifecycle(event, detail), expected, "{event} {detail}");
        }
    }
}
