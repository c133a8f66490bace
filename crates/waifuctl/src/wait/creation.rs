//! `create --wait`: prints each step of a new instance as it is reached.

use std::time::{Duration, Instant};

use waifud_api::Instance;
use waifud_types::InstanceState;
use waifud_types::spec::RestartPolicy;
use waifud_types::status::{CloudInitState, InstanceStatus, ReadyBy, StoppedBy};

use super::watch::{InstanceWatch, deleted};
use super::{check_cloud_init, cloud_init_is_over, waiting_for};
use crate::address::primary_address;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// The longest pause between two reads.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// A step that is printed when it is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Milestone {
    Placed,
    Disk,
    Started,
    CloudInit,
}

impl Milestone {
    const ALL: [Self; 4] = [Self::Placed, Self::Disk, Self::Started, Self::CloudInit];

    fn reached(self, status: &InstanceStatus) -> bool {
        let started = matches!(status.state, InstanceState::Running | InstanceState::Paused);
        match self {
            Self::Placed => status.node.is_some(),
            Self::Disk => started || status.state == InstanceState::Starting,
            Self::Started => started,
            Self::CloudInit => started && cloud_init_is_over(status),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Disk => "disk",
            Self::Started => "started",
            Self::CloudInit => "cloud-init",
        }
    }

    fn describe(self, instance: &Instance) -> String {
        let status = &instance.status;
        let node = status.node.as_ref().map_or("-", |n| n.as_str());
        match self {
            Self::Placed => node.to_owned(),
            Self::Disk => instance
                .spec
                .disks
                .first()
                .map_or_else(String::new, |disk| {
                    format!(
                        "{} on {}, clone of {}@{}",
                        disk.size_bytes,
                        disk.pool,
                        instance.spec.template,
                        instance.spec.image.short()
                    )
                }),
            Self::Started => {
                let kind = status.hypervisor.map_or("-", |h| h.as_str());
                let address =
                    primary_address(status).unwrap_or_else(|| "no address yet".to_owned());
                format!("{kind}, {address}")
            }
            Self::CloudInit => cloud_init_end(status),
        }
    }
}

/// The result of cloud-init in a few words.
fn cloud_init_end(status: &InstanceStatus) -> String {
    let word = match status.cloud_init.state {
        // These report the end but not the result.
        CloudInitState::Done
            if matches!(
                status.ready_by,
                Some(ReadyBy::PhoneHome | ReadyBy::Console | ReadyBy::Other)
            ) =>
        {
            "finished; its result was not reported"
        }
        CloudInitState::Done => "done",
        CloudInitState::Degraded => "done, with recoverable errors",
        CloudInitState::Error => "finished with errors; the VM is running",
        CloudInitState::Disabled => "disabled in the guest",
        CloudInitState::Pending | CloudInitState::Running | CloudInitState::Unknown => {
            "unknown; the VM is running"
        }
    };
    word.to_owned()
}

/// Prints the steps of a new instance until cloud-init has finished. Returns the instance in that state.
pub async fn until_ready(
    context: &Context,
    instance: Instance,
    timeout: Duration,
) -> Result<Instance, Failure> {
    let begun = Instant::now();
    let printer = context.printer;
    let spinner = progress::spinner(!printer.shows_progress());
    let mut open: Vec<Milestone> = Milestone::ALL.to_vec();
    let mut watch = InstanceWatch::new(context, &instance);
    let mut now = instance;
    loop {
        let reached: Vec<_> = open.extract_if(.., |m| m.reached(&now.status)).collect();
        for milestone in reached {
            let state = now.status.cloud_init.state;
            let mark = match state {
                CloudInitState::Error if milestone == Milestone::CloudInit => printer.red("✗"),
                CloudInitState::Unknown if milestone == Milestone::CloudInit => "?".to_owned(),
                _ => printer.green("✓"),
            };
            let line = format!(
                "{mark} {:<11} {:<45} {:>6.1}s",
                milestone.label(),
                escape(&milestone.describe(&now)),
                begun.elapsed().as_secs_f64()
            );
            spinner.suspend(|| printer.note(line.trim_end()));
        }
        if open.is_empty() {
            spinner.finish_and_clear();
            return check_cloud_init(now);
        }
        if let Some(end) = ended_early(&now) {
            spinner.finish_and_clear();
            return end.and_then(|()| check_cloud_init(now));
        }
        if matches!(now.status.state, InstanceState::Deleting) {
            spinner.finish_and_clear();
            return Err(deleted(now.name.as_str()));
        }
        spinner.set_message(escape(&waiting_for(&now.status)));
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            spinner.finish_and_clear();
            return Err(Failure::deadline(format!(
                "{} is not ready after {}s ({}); waifud continues in the background",
                now.name,
                timeout.as_secs(),
                escape(&waiting_for(&now.status))
            ))
            .hint(format!("waifuctl why {}", now.name)));
        }
        now = watch.next_existing(now, left.min(POLL_INTERVAL)).await?;
    }
}

/// A guest that was powered off by the guest itself or by a user does not become ready; for example with `power_state: poweroff`
/// in user-data.
fn ended_early(instance: &Instance) -> Option<Result<(), Failure>> {
    let status = &instance.status;
    let stays_off = status.state == InstanceState::Stopped
        && instance.spec.restart != RestartPolicy::Always
        && matches!(status.stopped_by, Some(StoppedBy::Guest | StoppedBy::User));
    stays_off.then(|| {
        if status.cloud_init.state.is_final() {
            return Ok(());
        }
        Err(Failure::input(
            "stopped",
            format!(
                "{} was stopped before cloud-init was reported as finished",
                instance.name
            ),
        )
        .hint(format!("waifuctl why {}", instance.name)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: CloudInitState, ready_by: Option<ReadyBy>) -> InstanceStatus {
        let mut status = InstanceStatus::pending(None);
        status.state = InstanceState::Running;
        status.ready = ready_by.is_some();
        status.ready_by = ready_by;
        status.cloud_init.state = state;
        status
    }

    #[test]
    fn the_result_of_cloud_init_is_described_as_far_as_it_is_known() {
        for (state, by, text) in [
            (CloudInitState::Done, Some(ReadyBy::GuestAgent), "done"),
            (CloudInitState::Done, Some(ReadyBy::Reporter), "done"),
            (
                CloudInitState::Done,
                Some(ReadyBy::PhoneHome),
                "finished; its result was not reported",
            ),
            (
                CloudInitState::Done,
                Some(ReadyBy::Console),
                "finished; its result was not reported",
            ),
            (
                CloudInitState::Error,
                Some(ReadyBy::Reporter),
                "finished with errors; the VM is running",
            ),
        ] {
            let status = status(state, by);
            assert!(Milestone::CloudInit.reached(&status));
            assert_eq!(cloud_init_end(&status), text);
        }
        let mut unknown = status(CloudInitState::Unknown, None);
        assert!(!Milestone::CloudInit.reached(&unknown), "not yet");
        unknown.cloud_init.unknown_because = Some("x".to_owned());
        assert!(Milestone::CloudInit.reached(&unknown));
        assert_eq!(cloud_init_end(&unknown), "unknown; the VM is running");
    }
}
