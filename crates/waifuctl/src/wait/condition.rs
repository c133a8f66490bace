//! Waits until an instance reaches a state that the user names.

use std::time::Duration;

use tokio::time::Instant;
use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::InstanceState;
use waifud_types::status::ReadyBy;

use super::watch::{InstanceWatch, deleted};
use super::{check_cloud_init, cloud_init_is_over, waiting_for};
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
    deadline: Instant,
) -> Result<Option<Instance>, Failure> {
    match until_reached(context, name, condition, deadline).await? {
        Some(instance) if condition == WaitFor::Ready => check_cloud_init(instance).map(Some),
        reached => Ok(reached),
    }
}

/// As [`until_condition`], but does not check the result of cloud-init.
pub async fn until_reached(
    context: &Context,
    name: &str,
    condition: WaitFor,
    deadline: Instant,
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
            "{name} is {}; waiting for {}",
            escape(&waiting_for(&now.status)),
            word(condition)
        ));
        if is_reached(condition, &now) {
            return Ok(Some(now));
        }
        let left = deadline.saturating_duration_since(Instant::now());
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
/// per instance: an instance that became ready by that call makes no second one.
pub async fn until_ready_again(
    context: &Context,
    before: &Instance,
    now: &Instance,
    deadline: Instant,
) -> Result<Option<Instance>, Failure> {
    let ready_by = before.status.ready_by;
    let will_be_known = ready_by.is_some_and(|by| by != ReadyBy::PhoneHome);
    let runs = now.spec.run && now.spec.rescue.is_none();
    if !(will_be_known && runs) {
        return Ok(None);
    }
    until_condition(context, &now.id.to_string(), WaitFor::Ready, deadline).await
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
