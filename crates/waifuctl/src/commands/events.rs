//! `waifuctl events`

use futures::StreamExt;
use waifud_api::client::{ClientError, EventQuery};
use waifud_types::event::Event;
use waifud_types::revision::RevisionError;

use crate::cli::EventsArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::{clock, escape};

/// Prints what happened and, with `--follow`, what happens.
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
    // A page that ends early goes on where it ended; a whole one shows everything up to its revision.
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
            // waifud restarts within a second; anything else is for the caller to see.
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
        // The stream ended: waifud stops, or history was trimmed under it. Not so fast that asking again is a load.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// A name that nothing has and that the history does not know is a typing error.
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
        // Of these, whatever exists has an event that says so.
        _ => false,
    };
    if found {
        return Ok(());
    }
    Err(Failure::input(
        "not-found",
        format!("there are no events about {object:?}"),
    )
    .field("OBJECT")
    .hint("waifuctl events without a name shows all; TYPE/NAME also names the type, for example token/laptop"))
}

/// One event on one line.
pub fn line(event: &Event) -> String {
    // What nodes and waifud do by themselves needs no name beside the object's.
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
