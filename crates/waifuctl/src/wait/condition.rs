//! Waits until an instance reaches a state that the user names.

use std::time::Duration;

use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::InstanceState;
use waifud_types::status::{CloudInitState, InstanceStatus, ReadyBy};

use super::applied::is_lost;
use super::deadline::{Deadline, slowness};
use super::watch::{InstanceWatch, deleted};
use super::{cannot_go_on, check_cloud_init, cloud_init_is_over, waiting_for};
use crate::cli::WaitFor;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// The longest pause between two reads.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The name of a condition on the command line.
pub fn word(condition: WaitFor) -> &'static str {
    match condition {
        WaitFor::Running => "running",
        WaitFor::Address => "address",
        WaitFor::Ready => "ready",
        WaitFor::Stopped => "stopped",
        WaitFor::Deleted => "deleted",
    }
}

fn is_reached(condition: WaitFor, instance: &Instance) -> bool {
    let status = &instance.status;
    let on = matches!(status.state, InstanceState::Running | InstanceState::Paused);
    // A status from before the last change is outdated.
    let current = status.observed_generation >= Some(instance.generation);
    match condition {
        WaitFor::Running => current && status.state == InstanceState::Running,
        WaitFor::Address => !status.addresses.is_empty(),
        WaitFor::Ready => current && on && cloud_init_is_over(status),
        WaitFor::Stopped => current && status.state == InstanceState::Stopped,
        WaitFor::Deleted => false,
    }
}

/// Waits for one instance. Returns `None` if the instance is deleted and the wait was for that. Fails if cloud-init failed.
pub async fn until_condition(
    context: &Context,
    name: &str,
    condition: WaitFor,
    deadline: Deadline,
) -> Result<Option<Instance>, Failure> {
    let reached = until_reached(context, name, condition, deadline, |_| None).await?;
    check(condition, reached)
}

fn check(condition: WaitFor, reached: Option<Instance>) -> Result<Option<Instance>, Failure> {
    match reached {
        Some(instance) if condition == WaitFor::Ready => check_cloud_init(instance).map(Some),
        reached => Ok(reached),
    }
}

/// As [`until_condition`], but does not check the result of cloud-init, and fails as soon as `gives_up` returns a failure.
pub async fn until_reached(
    context: &Context,
    name: &str,
    condition: WaitFor,
    deadline: Deadline,
    gives_up: impl Fn(&Instance) -> Option<Failure>,
) -> Result<Option<Instance>, Failure> {
    let mut now = match context.client.instance(name).await {
        Err(error) if condition == WaitFor::Deleted && is_not_found(&error) => {
            has_existed(context, name, error).await?;
            return Ok(None);
        }
        found => found?,
    };
    let name = now.name.to_string();
    let mut watch = InstanceWatch::new(context, &now);
    let spinner = progress::spinner(!context.printer.shows_progress());
    loop {
        spinner.set_message(format!(
            "{name} is {}; waiting for {}{}",
            escape(&waiting_for(&now.status)),
            word(condition),
            slowness(&now.status)
        ));
        if is_reached(condition, &now) {
            return Ok(Some(now));
        }
        if let Some(failure) = gives_up(&now) {
            return Err(failure);
        }
        if is_lost(&now)
            && condition != WaitFor::Deleted
            && let Some(failure) = cannot_go_on(&now)
        {
            return Err(failure);
        }
        let left = deadline.left(&now.status);
        if left.is_zero() {
            return Err(Failure::deadline(format!(
                "{name} was {} and not yet {} when the deadline passed; waifud continues in the background",
                now.status.state,
                word(condition)
            ))
            .hint(format!("waifuctl why {name}")));
        }
        now = match watch.next(now, left.min(POLL_INTERVAL)).await? {
            Some(instance) => instance,
            None if condition == WaitFor::Deleted => return Ok(None),
            None => return Err(deleted(&name)),
        };
    }
}

/// After a start: waits until cloud-init has finished in this boot, if that can be known. cloud-init phones home only once
/// per instance: an instance that became ready by that call makes no second one. The first boot can always be observed, or
/// waifud says why it cannot.
pub async fn until_ready_again(
    context: &Context,
    before: &Instance,
    now: &Instance,
    deadline: Deadline,
) -> Result<Option<Instance>, Failure> {
    let runs = now.spec.run && now.spec.rescue.is_none();
    if !runs || !(is_known_at_each_boot(before) || has_never_booted(&before.status)) {
        return Ok(None);
    }
    let id = now.id.to_string();
    let reached = until_reached(context, &id, WaitFor::Ready, deadline, cannot_go_on).await?;
    check(WaitFor::Ready, reached)
}

/// Whether the instance has been ready in a boot of its own, by a means that shows the end of each boot.
fn is_known_at_each_boot(instance: &Instance) -> bool {
    let status = &instance.status;
    // Older versions of waifud do not report the last one.
    let own = status.ready_by.filter(|_| instance.spec.rescue.is_none());
    let last = status.last_ready_by.or(own);
    last.is_some_and(|by| by != ReadyBy::PhoneHome)
}

fn has_never_booted(status: &InstanceStatus) -> bool {
    status.cloud_init.state == CloudInitState::Pending
        && status.stopped_by.is_none()
        && matches!(
            status.state,
            InstanceState::Pending | InstanceState::Preparing | InstanceState::Stopped
        )
}

/// Distinguishes a deleted instance from a name that never existed, by the history of events.
async fn has_existed(context: &Context, name: &str, unknown: ClientError) -> Result<(), Failure> {
    let query = EventQuery {
        object: Some(format!("instance/{name}")),
        limit: Some(1),
        ..EventQuery::default()
    };
    if context.client.events(&query).await?.items.is_empty() {
        return Err(Failure::from(unknown));
    }
    Ok(())
}

fn is_not_found(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}
