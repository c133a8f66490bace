//! `waifuctl wait`: events say when to look again, and a look decides.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::Serialize;
use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::InstanceState;

use crate::cli_spec::{WaitArgs, WaitFor};
use crate::context::Context;
use crate::failure::Failure;
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
            let seen = until(context, name, args.what, deadline, args.timeout).await?;
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
            Self::Ready => heard && on && (status.ready || status.cloud_init.state.is_final()),
            Self::Stopped => heard && status.state == InstanceState::Stopped,
            Self::Deleted => false,
        }
    }
}

async fn until(
    context: &Context,
    name: &str,
    what: WaitFor,
    deadline: Instant,
    timeout: Duration,
) -> Result<Option<Instance>, Failure> {
    let mut now = match context.client.instance(name).await {
        Err(error) if what == WaitFor::Deleted && is_gone(&error) => return Ok(None),
        found => found?,
    };
    // A name may belong to another instance later.
    let id = now.id.to_string();
    let query = EventQuery {
        object: Some(id.clone()),
        ..EventQuery::default()
    };
    let mut events = None;
    loop {
        if what.reached(&now) {
            let errors = what == WaitFor::Ready && !now.status.ready;
            return if errors { wait::finished(now) } else { Ok(now) }.map(Some);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::deadline(format!(
                "{name} is {} after {}s, not yet what was waited for ({}); the work goes on",
                now.status.state,
                timeout.as_secs(),
                what.word()
            ))
            .hint(format!("waifuctl why {name}")));
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

fn is_gone(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}
