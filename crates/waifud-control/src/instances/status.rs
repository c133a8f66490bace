//! Merges a node's report into the stored status of an instance, and derives the events.
//!
//! Pure. A report that changes only the progress of a step has no effect here: progress is never stored.

use waifud_api::agent::InstanceReport;
use waifud_types::status::{
    AddressFamily, AddressSource, CloudInitState, InstanceAddress, InstanceStatus, StoppedBy,
};
use waifud_types::{Generation, InstanceState as S};

/// The new status and its events.
#[derive(Clone, PartialEq, Debug)]
pub struct Merged {
    /// The status to store.
    pub status: InstanceStatus,
    /// The events to write, in this order.
    pub events: Vec<StatusEvent>,
}

/// An event to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusEvent {
    /// For example `instance.started`.
    pub kind: &'static str,
    /// A code for scripts.
    pub reason: Option<String>,
    /// The text for users.
    pub message: String,
}

/// Merges a report about generation `seen` into the stored status; `None` if nothing has to be stored. `own` is whether the
/// report is about the instance's own system with its current spec, not about a rescue system.
pub fn merge(
    old: &InstanceStatus,
    report: &InstanceReport,
    seen: Generation,
    own: bool,
) -> Option<Merged> {
    // States between two reports are not reported, so any state may follow any other. But waifud decides about pending,
    // deleting and unknown.
    let state = match report.state {
        S::Pending | S::Deleting | S::Unknown => old.state,
        reported => reported,
    };
    // An instance that is off is not ready.
    let ready = report.ready && matches!(state, S::Running | S::Paused);
    let ready_by = report.ready_by.filter(|_| ready);
    let status = InstanceStatus {
        observed_generation: Some(seen).max(old.observed_generation),
        state,
        reason: report.reason.clone(),
        cause: None,
        ready,
        ready_by,
        last_ready_by: ready_by.filter(|_| own).or(old.last_ready_by),
        node: old.node.clone(),
        hypervisor: report.hypervisor,
        started_at: report.started_at,
        stopped_by: report.stopped_by,
        last_state: None,
        last_seen: None,
        addresses: report
            .addresses
            .iter()
            .filter(|address| address.source == AddressSource::Observed)
            .cloned()
            .collect(),
        nics: report.nics.clone().unwrap_or_else(|| old.nics.clone()),
        step: None,
        restart_needed: report.restart_needed.clone(),
        cloud_init: report.cloud_init.clone(),
        conditions: report.conditions.clone(),
    };
    if status == *old {
        return None;
    }
    let mut events = Vec::new();
    let failed_anew = status.state == S::Failed && status.reason != old.reason;
    if status.state != old.state || failed_anew {
        events.extend(entered(&status));
    } else if was_restarted(old, &status) {
        events.extend(entered(&status).map(|start| StatusEvent {
            message: "it was restarted while its node was not connected".to_owned(),
            ..start
        }));
    }
    events.extend(
        status
            .addresses
            .iter()
            .filter_map(|seen| first_seen(old, seen)),
    );
    if status.ready && !old.ready {
        events.push(StatusEvent {
            kind: "instance.ready",
            reason: status.ready_by.and_then(word),
            message: match status.cloud_init.state {
                CloudInitState::Error | CloudInitState::Degraded => {
                    "cloud-init has finished with errors"
                }
                CloudInitState::Disabled => "cloud-init is disabled in the guest",
                _ => "cloud-init is done",
            }
            .to_owned(),
        });
    }
    let cloud_init = status.cloud_init.state;
    if cloud_init != old.cloud_init.state
        && matches!(cloud_init, CloudInitState::Error | CloudInitState::Degraded)
    {
        // cloud-init's own messages may contain secrets of the guest, so they are only in the status.
        events.push(StatusEvent {
            kind: "instance.cloud-init-failed",
            reason: word(cloud_init),
            message: "cloud-init finished with errors; the instance is running".to_owned(),
        });
    }
    if cloud_init == CloudInitState::Unknown && old.cloud_init.state != cloud_init {
        events.push(StatusEvent {
            kind: "instance.cloud-init-unknown",
            reason: None,
            message: format!(
                "it is unknown whether cloud-init has finished: {}",
                status
                    .cloud_init
                    .unknown_because
                    .as_deref()
                    .unwrap_or("the guest has not reported anything")
            ),
        });
    }
    Some(Merged { status, events })
}

/// Whether the instance was restarted while its node was not connected, for example because of a power failure.
fn was_restarted(old: &InstanceStatus, new: &InstanceStatus) -> bool {
    let starts = old.started_at.zip(new.started_at);
    new.state == S::Running && starts.is_some_and(|(before, now)| before != now)
}

/// The event of a newly observed address, for clients that wait for one. IPv6 is left out: guests change those addresses
/// every day (RFC 8981).
fn first_seen(old: &InstanceStatus, seen: &InstanceAddress) -> Option<StatusEvent> {
    let known = |other: &InstanceAddress| other.address == seen.address;
    if seen.family != AddressFamily::Ipv4 || old.addresses.iter().any(known) {
        return None;
    }
    Some(StatusEvent {
        kind: "instance.address",
        reason: None,
        message: format!("{} was observed on {}", seen.address, seen.network),
    })
}

fn word(value: impl serde::Serialize) -> Option<String> {
    let value = serde_json::to_value(value).ok()?;
    value.as_str().map(str::to_owned)
}

fn entered(status: &InstanceStatus) -> Option<StatusEvent> {
    let plain = |kind, message: &str| {
        Some(StatusEvent {
            kind,
            reason: None,
            message: message.to_owned(),
        })
    };
    let because = |otherwise: &str| {
        status
            .reason
            .clone()
            .unwrap_or_else(|| otherwise.to_owned())
    };
    match status.state {
        S::Preparing => plain(
            "instance.preparing",
            "its node is preparing the image, the disk, the network and the metadata",
        ),
        S::Starting => plain("instance.starting", "the hypervisor is starting it"),
        S::Running => Some(StatusEvent {
            kind: "instance.started",
            reason: status.hypervisor.map(|kind| kind.as_str().to_owned()),
            message: match status.hypervisor {
                Some(kind) => format!("running on {}", kind.as_str()),
                None => "running".to_owned(),
            },
        }),
        S::Paused => plain("instance.paused", &because("it was paused")),
        S::Stopping => plain("instance.stopping", "shutdown requested"),
        S::Stopped => Some(StatusEvent {
            kind: "instance.stopped",
            reason: status.stopped_by.and_then(word),
            message: match status.stopped_by {
                Some(StoppedBy::User) | None => "stopped".to_owned(),
                Some(StoppedBy::Guest) => "the guest powered itself off".to_owned(),
                Some(StoppedBy::Crash) => "it crashed".to_owned(),
                Some(StoppedBy::Host) => "its node shut down".to_owned(),
                Some(StoppedBy::Outside) => "it was stopped outside waifud".to_owned(),
            },
        }),
        S::Moving => plain("instance.moving", "moving to another node"),
        S::Failed => Some(StatusEvent {
            kind: "instance.failed",
            reason: None,
            message: because("its node did not report a reason"),
        }),
        S::Pending | S::Deleting | S::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{CloudInitState, InstanceReport, InstanceStatus, Merged, S};
    use waifud_types::status::{HypervisorKind, ReadyBy};
    use waifud_types::{InstanceId, Timestamp};

    fn report(state: S) -> InstanceReport {
        InstanceReport {
            hypervisor: Some(HypervisorKind::Tcg),
            ..InstanceReport::of_state(InstanceId::generate(), state)
        }
    }

    fn ready_by(by: ReadyBy) -> InstanceReport {
        InstanceReport {
            ready: true,
            ready_by: Some(by),
            ..report(S::Running)
        }
    }

    fn merge(old: &InstanceStatus, report: &InstanceReport) -> Option<Merged> {
        super::merge(old, report, report.observed_generation, true)
    }

    fn kinds(merged: &Merged) -> Vec<&str> {
        merged.events.iter().map(|event| event.kind).collect()
    }

    #[test]
    fn each_state_of_a_first_start_causes_one_event() {
        let mut status = InstanceStatus::pending(None);
        for (state, kind) in [
            (S::Preparing, "instance.preparing"),
            (S::Starting, "instance.starting"),
            (S::Running, "instance.started"),
        ] {
            let merged = merge(&status, &report(state)).unwrap();
            assert_eq!(kinds(&merged), [kind]);
            assert_eq!(merge(&merged.status, &report(state)), None);
            status = merged.status;
        }
        let ready = ready_by(ReadyBy::PhoneHome);
        let merged = merge(&status, &ready).unwrap();
        assert_eq!(kinds(&merged), ["instance.ready"]);
        assert_eq!(merged.events[0].reason.as_deref(), Some("phone-home"));
    }

    #[test]
    fn an_unobserved_restart_causes_one_event() {
        let at = |second| InstanceReport {
            started_at: Timestamp::from_second(second).ok(),
            ..report(S::Running)
        };
        let first = merge(&InstanceStatus::pending(None), &at(1)).unwrap();
        let again = merge(&first.status, &at(2)).unwrap();
        assert_eq!(kinds(&again), ["instance.started"]);
        assert!(again.events[0].message.contains("restarted"));
        assert_eq!(merge(&again.status, &at(2)), None);
        // Older agents do not report the start time.
        let silent = merge(&again.status, &report(S::Running)).unwrap();
        assert!(silent.events.is_empty());
    }

    #[test]
    fn messages_of_cloud_init_are_not_in_events() {
        let running = merge(&InstanceStatus::pending(None), &report(S::Running));
        let mut failed = report(S::Running);
        failed.cloud_init.state = CloudInitState::Error;
        failed.cloud_init.errors = vec!["password hunter2 refused".to_owned()];
        let old = running.map_or_else(|| InstanceStatus::pending(None), |m| m.status);
        let merged = merge(&old, &failed).unwrap();
        assert_eq!(kinds(&merged).last(), Some(&"instance.cloud-init-failed"));
        assert!(
            merged
                .events
                .iter()
                .all(|event| !event.message.contains("hunter2"))
        );
        assert_eq!(merged.status.cloud_init.errors.len(), 1);
    }

    #[test]
    fn an_instance_that_is_off_is_not_ready() {
        for state in [S::Starting, S::Stopping, S::Stopped, S::Failed] {
            let mut after = report(state);
            after.ready = true;
            after.ready_by = Some(ReadyBy::GuestAgent);
            let merged = merge(&InstanceStatus::pending(None), &after).unwrap();
            assert!(!merged.status.ready && merged.status.ready_by.is_none());
        }
        let mut rebooted = report(S::Running);
        rebooted.ready_by = Some(ReadyBy::GuestAgent);
        let merged = merge(&InstanceStatus::pending(None), &rebooted).unwrap();
        assert_eq!(
            merged.status.ready_by, None,
            "it is about the previous boot"
        );
    }

    #[test]
    fn how_an_instance_was_last_ready_is_kept_while_it_is_off_and_boots() {
        let ready = ready_by(ReadyBy::Reporter);
        let mut status = merge(&InstanceStatus::pending(None), &ready)
            .unwrap()
            .status;
        assert_eq!(status.last_ready_by, Some(ReadyBy::Reporter));
        for state in [S::Stopped, S::Starting, S::Running] {
            status = merge(&status, &report(state)).unwrap().status;
            assert_eq!(status.ready_by, None, "{state}");
            assert_eq!(status.last_ready_by, Some(ReadyBy::Reporter), "{state}");
        }
    }

    #[test]
    fn a_rescue_system_does_not_change_how_the_instance_was_last_ready() {
        let ready = ready_by(ReadyBy::Console);
        let old = InstanceStatus::pending(None);
        let status = super::merge(&old, &ready, ready.observed_generation, false)
            .unwrap()
            .status;
        assert_eq!(status.ready_by, Some(ReadyBy::Console));
        assert_eq!(status.last_ready_by, None);
    }

    #[test]
    fn a_report_cannot_unplace_an_instance() {
        let placed = merge(&InstanceStatus::pending(None), &report(S::Preparing))
            .unwrap()
            .status;
        assert_eq!(
            merge(&placed, &report(S::Pending)).map(|m| m.status.state),
            None
        );
    }
}
