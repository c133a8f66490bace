//! `create --wait`: watches the events of one instance and prints each step as it is reached.
//!
//! Waiting is watching: an event (or a progress frame) is the hint to read the instance again, and what is printed
//! follows from what was read. A lost connection is made again until the deadline.

use std::time::{Duration, Instant};

use futures::StreamExt;
use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::InstanceState;
use waifud_types::spec::RestartPolicy;
use waifud_types::status::{CloudInitState, InstanceStatus, ReadyBy, StoppedBy};

use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// Read again at least this often: events are hints, and a hint can be lost with a connection.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A step that people wait for.
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
                    primary_address(status).unwrap_or_else(|| "no address seen yet".to_owned());
                format!("{kind}, {address}")
            }
            Self::CloudInit => cloud_init_end(status),
        }
    }
}

/// Whether nothing more is to be waited for: it has finished, or that can't be learned.
pub fn cloud_init_is_over(status: &InstanceStatus) -> bool {
    let cloud_init = &status.cloud_init;
    status.ready || cloud_init.state.is_final() || cloud_init.unknown_because.is_some()
}

/// How it ended, in a few words.
fn cloud_init_end(status: &InstanceStatus) -> String {
    let word = match status.cloud_init.state {
        // The call at the end says that it ended, and not how.
        CloudInitState::Done if status.ready_by == Some(ReadyBy::PhoneHome) => {
            "finished; its result was not reported"
        }
        CloudInitState::Done => "done",
        CloudInitState::Degraded => "done, with recoverable errors",
        CloudInitState::Error => "finished with errors; the VM runs",
        CloudInitState::Disabled => "switched off in the guest",
        CloudInitState::Pending | CloudInitState::Running | CloudInitState::Unknown => {
            "cannot be known; the VM runs"
        }
    };
    word.to_owned()
}

/// The address that `waifuctl ip` prints.
pub fn primary_address(status: &InstanceStatus) -> Option<String> {
    let addresses = &status.addresses;
    addresses
        .iter()
        .find(|a| a.primary)
        .or_else(|| addresses.first())
        .map(|a| a.address.to_string())
}

/// Why the primary address may not be the guest's, when it took another one by itself.
pub fn another_address(status: &InstanceStatus) -> Option<&str> {
    let mut conditions = status.conditions.iter();
    let told =
        conditions.find(|c| c.kind == "address" && !c.ok && c.reason == "another-address")?;
    Some(&told.message)
}

/// Prints the steps of a new instance until cloud-init has finished. Returns the instance as it then is.
pub async fn until_ready(
    context: &Context,
    instance: Instance,
    timeout: Duration,
) -> Result<Instance, Failure> {
    let begun = Instant::now();
    let printer = context.printer;
    let spinner = progress::spinner(!printer.shows_progress());
    let mut open: Vec<Milestone> = Milestone::ALL.to_vec();
    let mut now = instance;
    let id = now.id.to_string();
    let query = EventQuery {
        object: Some(id.clone()),
        ..EventQuery::default()
    };
    let mut events = None;
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
            return finished(now);
        }
        if let Some(end) = ended_early(&now) {
            spinner.finish_and_clear();
            return end.and_then(|()| finished(now));
        }
        if matches!(now.status.state, InstanceState::Deleting) {
            spinner.finish_and_clear();
            return Err(Failure::input(
                "deleted",
                format!("{} was deleted meanwhile", now.name),
            ));
        }
        spinner.set_message(escape(&waiting_for(&now.status)));
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            spinner.finish_and_clear();
            return Err(Failure::deadline(format!(
                "{} is not ready after {}s ({}); the work goes on",
                now.name,
                timeout.as_secs(),
                escape(&waiting_for(&now.status))
            ))
            .hint(format!("waifuctl why {}", now.name)));
        }
        let pause = left.min(LOOK_AGAIN);
        if events.is_none() {
            let asked = tokio::time::timeout(pause, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        if let Some(stream) = &mut events {
            match tokio::time::timeout(pause, stream.next()).await {
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(Some(Err(_)) | None) => events = None,
            }
        } else {
            tokio::time::sleep(pause.min(Duration::from_secs(1))).await;
        }
        now = match context.client.instance(&id).await {
            Ok(instance) => instance,
            Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => now,
            Err(ClientError::Problem(problem)) if problem.status == 404 => {
                spinner.finish_and_clear();
                return Err(Failure::input(
                    "deleted",
                    format!("{} was deleted meanwhile", now.name),
                ));
            }
            Err(error) => return Err(error.into()),
        };
    }
}

/// A guest that is off by its own or somebody's will gets no readier: `power_state: poweroff` in user-data is such an end.
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
                "{} was switched off before cloud-init was seen to finish",
                instance.name
            ),
        )
        .hint(format!("waifuctl why {}", instance.name)))
    })
}

/// Waits for `what`; Ctrl-C ends the waiting and not the work.
pub async fn or_detach<T>(
    what: impl Future<Output = Result<T, Failure>>,
    names: &str,
) -> Result<T, Failure> {
    tokio::select! {
        done = what => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("no longer waiting for {names}; the work goes on"))
                .hint("waifuctl list, or waifuctl why NAME"),
        ),
    }
}

/// What keeps it, in a few words.
pub fn waiting_for(status: &InstanceStatus) -> String {
    if let Some(step) = &status.step {
        let percent = step.percent.map_or_else(String::new, |p| format!(" {p}%"));
        let waiting = step
            .waiting_for
            .as_ref()
            .map_or_else(String::new, |w| format!(", waiting for: {w}"));
        return format!("{}{percent}{waiting}", step.name);
    }
    match (&status.reason, status.state) {
        (Some(reason), state) => format!("{state}, {reason}"),
        (None, InstanceState::Running) => "waiting for cloud-init in the guest".to_owned(),
        (None, state) => state.to_string(),
    }
}

/// The end of the wait: errors of cloud-init are the caller's to mend, and what can't be known is not claimed.
pub fn finished(instance: Instance) -> Result<Instance, Failure> {
    let cloud_init = &instance.status.cloud_init;
    if cloud_init.state == CloudInitState::Unknown
        && let Some(because) = &cloud_init.unknown_because
    {
        return Err(Failure::input(
            "cloud-init-unknown",
            format!(
                "whether cloud-init in {} has finished cannot be known: {}",
                instance.name,
                escape(because)
            ),
        )
        .hint(format!(
            "the VM runs; waifuctl wait {} --for running waits for that only",
            instance.name
        )));
    }
    if cloud_init.state != CloudInitState::Error {
        return Ok(instance);
    }
    let first = cloud_init
        .errors
        .first()
        .map_or_else(String::new, |e| format!(": {}", escape(e)));
    Err(Failure::input(
        "cloud-init-error",
        format!(
            "cloud-init in {} finished with errors{first}",
            instance.name
        ),
    )
    .hint(format!("waifuctl why {}; the VM runs", instance.name)))
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
    fn the_end_is_told_as_far_as_it_is_known() {
        for (state, by, told) in [
            (CloudInitState::Done, Some(ReadyBy::GuestAgent), "done"),
            (CloudInitState::Done, Some(ReadyBy::Reporter), "done"),
            (
                CloudInitState::Done,
                Some(ReadyBy::PhoneHome),
                "finished; its result was not reported",
            ),
            (
                CloudInitState::Error,
                Some(ReadyBy::Reporter),
                "finished with errors; the VM runs",
            ),
        ] {
            let status = status(state, by);
            assert!(Milestone::CloudInit.reached(&status));
            assert_eq!(cloud_init_end(&status), told);
        }
        let mut unknown = status(CloudInitState::Unknown, None);
        assert!(!Milestone::CloudInit.reached(&unknown), "not yet");
        unknown.cloud_init.unknown_because = Some("x".to_owned());
        assert!(Milestone::CloudInit.reached(&unknown));
        assert_eq!(cloud_init_end(&unknown), "cannot be known; the VM runs");
    }
}
