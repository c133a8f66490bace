//! `waifuctl events`

use futures::StreamExt;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::event::Event;
use waifud_types::revision::RevisionError;

use crate::cli::EventsArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::{clock, escape};

/// Prints past events and, with `--follow`, new ones.
pub async fn run(context: &Context, args: EventsArgs) -> Result<(), Failure> {
    let since = args
        .since
        .map(|s| s.parse())
        .transpose()
        .map_err(|e: RevisionError| {
            Failure::input("invalid-revision", e.to_string())
                .field("--since")
                .hint("waifuctl events --json shows revisions")
        })?;
    let mut query = EventQuery {
        since,
        object: args.object,
        limit: Some(args.limit),
    };
    let page = context.client.events(&query).await?;
    if page.items.is_empty()
        && query.since.is_none()
        && let Some(object) = &query.object
    {
        is_known(context, object).await?;
    }
    if context.printer.is_json() && !args.follow {
        return context.printer.print(&page, String::new);
    }
    for event in &page.items {
        context.printer.print_line(event, || line(event))?;
    }
    if !args.follow {
        return Ok(());
    }
    // A truncated page continues after its last event; a complete one contains everything up to its revision.
    let seen = match (&page.next, page.items.last()) {
        (Some(_), Some(last)) => last.revision,
        _ => page.revision,
    };
    query = EventQuery {
        since: Some(seen),
        limit: None,
        ..query
    };
    loop {
        let mut stream = match context.client.watch_events(&query).await {
            Ok(stream) => Box::pin(stream),
            // waifud restarts within a second; other errors are reported.
            Err(ClientError::Unreachable { .. }) => {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        while let Some(Ok(frame)) = stream.next().await {
            let Ok(event) = serde_json::from_str::<Event>(&frame.data) else {
                continue;
            };
            query.since = Some(event.revision);
            context.printer.print_line(&event, || line(&event))?;
        }
        // The stream ended because waifud stops or the history was trimmed. The pause limits the load.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// Fails if neither an object nor an event has the name.
async fn is_known(context: &Context, object: &str) -> Result<(), Failure> {
    let (kind, name) = object.split_once('/').unwrap_or(("", object));
    let client = &context.client;
    let found = match kind {
        "instance" => client.instance(name).await.is_ok(),
        "template" => client.template(name).await.is_ok(),
        "node" => client.node(name).await.is_ok(),
        "" => {
            client.instance(name).await.is_ok()
                || client.template(name).await.is_ok()
                || client.node(name).await.is_ok()
        }
        // Every object of other types has an event of its creation.
        _ => false,
    };
    if found {
        return Ok(());
    }
    Err(Failure::input(
        "not-found",
        format!("there is no object or event for {object:?}"),
    )
    .field("OBJECT")
    .hint("waifuctl events lists all events; TYPE/NAME selects a type, for example token/laptop"))
}

/// Formats an event on one line.
pub fn line(event: &Event) -> String {
    // Only users are named; nodes and waifud are obvious.
    let by = if event.actor.kind == "user" {
        format!("  (by {})", escape(&event.actor.name))
    } else {
        String::new()
    };
    format!(
        "{}  {:<22} {:<20} {}{by}",
        clock(event.at),
        escape(&event.kind),
        escape(&event.object.name),
        escape(&event.message)
    )
    .trim_end()
    .to_owned()
}
