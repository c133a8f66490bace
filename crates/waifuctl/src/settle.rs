//! `--wait` of the verbs that change a living instance: until its node has done what was ordered.
//!
//! Waiting is watching: an event is the hint to read the instance again, and a lost connection is made again until the
//! deadline.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, timeout};
use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::InstanceState;
use waifud_types::status::StoppedBy;

use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;
use crate::wait::waiting_for;

/// Read again at least this often: events are hints.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Waits until the instance is as its present spec wants it. Returns it as it then is.
pub async fn until_settled(
    context: &Context,
    ordered: Instance,
    deadline: Instant,
) -> Result<Instance, Failure> {
    let id = ordered.id.to_string();
    let query = EventQuery {
        object: Some(id.clone()),
        ..EventQuery::default()
    };
    let mut now = ordered.clone();
    let mut events = None;
    let spinner = progress::spinner(!context.printer.shows_progress());
    loop {
        spinner.set_message(format!(
            "{}: {}",
            now.name,
            escape(&waiting_for(&now.status))
        ));
        if is_settled(&now, &ordered) {
            return Ok(now);
        }
        if let Some(end) = hopeless(&now, &ordered) {
            return Err(end.hint(format!("waifuctl why {}", now.name)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let state = now.status.state;
            return Err(
                Failure::deadline(format!("{} is {state}; the work goes on", now.name))
                    .hint(format!("waifuctl why {}", now.name)),
            );
        }
        let pause = left.min(LOOK_AGAIN);
        if events.is_none() {
            let asked = timeout(pause, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        match &mut events {
            Some(stream) => {
                if let Ok(Some(Err(_)) | None) = timeout(pause, stream.next()).await {
                    events = None;
                }
            }
            None => tokio::time::sleep(pause.min(Duration::from_millis(500))).await,
        }
        now = match context.client.instance(&id).await {
            Ok(instance) => instance,
            Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => now,
            Err(ClientError::Problem(problem)) if problem.status == 404 => {
                let gone = format!("{} was deleted meanwhile", ordered.name);
                return Err(Failure::input("deleted", gone));
            }
            Err(error) => return Err(error.into()),
        };
    }
}

fn is_settled(now: &Instance, ordered: &Instance) -> bool {
    let status = &now.status;
    let wanted = if ordered.spec.run {
        InstanceState::Running
    } else {
        InstanceState::Stopped
    };
    // Looking for readiness is no part of the work.
    let at_rest = status.step.as_ref().is_none_or(|step| step.name == "ready");
    status.observed_generation >= Some(ordered.generation) && status.state == wanted && at_rest
}

/// Why it will not get there by itself soon.
fn hopeless(now: &Instance, ordered: &Instance) -> Option<Failure> {
    let status = &now.status;
    let name = &now.name;
    if status.state == InstanceState::Deleting {
        let text = format!("{name} is being deleted");
        return Some(Failure::input("deleted", text));
    }
    if status.observed_generation < Some(ordered.generation) {
        return None;
    }
    match (status.state, status.stopped_by) {
        (InstanceState::Failed, _) => {
            let why = status.reason.as_deref().unwrap_or("no reason was given");
            let text = format!("{name} failed: {}", escape(why));
            Some(Failure::input("failed", text))
        }
        (InstanceState::Stopped, Some(StoppedBy::Guest)) if status.step.is_none() => {
            let text = format!("{name} powered itself off");
            Some(Failure::input("stopped", text))
        }
        _ => None,
    }
}
