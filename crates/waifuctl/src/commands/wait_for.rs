//! `waifuctl wait`: events say when to look again, and a look decides.

use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use tokio::time::Instant;
use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::InstanceState;

use crate::cli_spec::{WaitArgs, WaitFor};
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;
use crate::wait;

/// Look again at least this often: an event can be lost with a connection.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What is printed with `--json`: the instances as they were when the wait ended, without those that are gone.
#[derive(Serialize)]
struct Seen {
    items: Vec<Instance>,
}

/// Waits for each in its turn, all until the same deadline.
pub async fn run(context: &Context, args: WaitArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + args.timeout;
    let all = async {
        let mut items = Vec::new();
        let mut lines = Vec::new();
        for name in &args.names {
            let seen = until(context, name, args.what, deadline).await?;
            lines.push(format!("{name}: {}", args.what.word()));
            items.extend(seen);
        }
        Ok((Seen { items }, lines))
    };
    let (seen, lines) = wait::or_detach(all, &args.names.join(", ")).await?;
    context.printer.print(&seen, || lines.join("\n"))
}

impl WaitFor {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Address => "address",
            Self::Ready => "ready",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }

    fn reached(self, instance: &Instance) -> bool {
        let status = &instance.status;
        let on = matches!(status.state, InstanceState::Running | InstanceState::Paused);
        // What was true before the last order was carried out may be about to end.
        let heard = status.observed_generation >= Some(instance.generation);
        match self {
            Self::Running => heard && status.state == InstanceState::Running,
            Self::Address => !status.addresses.is_empty(),
            Self::Ready => heard && on && wait::cloud_init_is_over(status),
            Self::Stopped => heard && status.state == InstanceState::Stopped,
            Self::Deleted => false,
        }
    }
}

/// Waits for one; `None` when it is gone and that was waited for.
pub(super) async fn until(
    context: &Context,
    name: &str,
    what: WaitFor,
    deadline: Instant,
) -> Result<Option<Instance>, Failure> {
    let mut now = match context.client.instance(name).await {
        Err(error) if what == WaitFor::Deleted && is_gone(&error) => {
            was_there(context, name, error).await?;
            return Ok(None);
        }
        found => found?,
    };
    // A name may belong to another instance later.
    let id = now.id.to_string();
    let name = now.name.to_string();
    let query = EventQuery {
        object: Some(id.clone()),
        ..EventQuery::default()
    };
    let mut events = None;
    let spinner = progress::spinner(!context.printer.shows_progress());
    loop {
        spinner.set_message(format!(
            "{name} is {}; waiting for {}",
            escape(&wait::waiting_for(&now.status)),
            what.word()
        ));
        if what.reached(&now) {
            let ended = what == WaitFor::Ready;
            return if ended { wait::finished(now) } else { Ok(now) }.map(Some);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::deadline(format!(
                "{} is {} and not yet {} when the deadline passed; the work continues",
                now.name,
                now.status.state,
                what.word()
            ))
            .hint(format!("waifuctl why {}", now.name)));
        }
        let pause = left.min(LOOK_AGAIN);
        if events.is_none() {
            let asked = tokio::time::timeout(pause, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        } else if let Some(stream) = &mut events {
            match tokio::time::timeout(pause, stream.next()).await {
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(Some(Err(_)) | None) => {
                    events = None;
                    // Whoever ended it may need a moment.
                    tokio::time::sleep(pause.min(Duration::from_secs(1))).await;
                }
            }
        }
        now = match context.client.instance(&id).await {
            Ok(instance) => instance,
            Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => {
                tokio::time::sleep(pause.min(Duration::from_secs(1))).await;
                now
            }
            Err(error) if is_gone(&error) => {
                if what == WaitFor::Deleted {
                    return Ok(None);
                }
                let title = format!("{name} was deleted meanwhile");
                return Err(Failure::input("deleted", title));
            }
            Err(error) => return Err(error.into()),
        };
    }
}

/// A name that nothing was ever known by is a typing error and not a deletion. The history knows.
async fn was_there(context: &Context, name: &str, unknown: ClientError) -> Result<(), Failure> {
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

fn is_gone(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}
