//! Waiting for a template that waifud downloads: a bar that follows the event stream.

use std::time::Duration;

use futures::StreamExt;
use waifud_api::client::{ClientError, EventQuery};
use waifud_api::{CreateDownload, Download, DownloadState};
use waifud_types::ByteSize;
use waifud_types::template::Template;

use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// Read again at least this often: events are hints.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Shows how far it is until the template is there. Ctrl-C ends the waiting only.
pub async fn until_there(context: &Context, begun: Download) -> Result<Template, Failure> {
    let name = begun.name.to_string();
    tokio::select! {
        done = follow(context, begun) => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("no longer waiting for template {name}; the download goes on"))
                .hint(format!("waifuctl template list shows it; waifuctl template delete {name} ends it")),
        ),
    }
}

/// A template that is asked for and not there: the catalog may know it. Gives the name that it has. `undone` tells who
/// interrupts it what became of what it was wanted for.
pub async fn missing(
    context: &Context,
    wanted: &str,
    unknown: ClientError,
    undone: &str,
) -> Result<String, Failure> {
    // Names are DNS labels, and people type ubuntu-24.04.
    let name = wanted.replace('.', "-");
    if let Ok(template) = context.client.template(&name).await {
        return Ok(template.name.to_string());
    }
    let coming = context.client.download(&name).await?;
    let coming = coming.filter(|coming| coming.state == DownloadState::Running);
    let begun = if let Some(coming) = coming {
        coming
    } else {
        let request = CreateDownload {
            name: name.clone(),
            ..CreateDownload::default()
        };
        match context.client.create_download(&request).await {
            Ok(begun) => begun,
            Err(error) if error.problem().is_some_and(|p| p.code == "not-in-catalog") => {
                return Err(unknown.into());
            }
            Err(error) => return Err(error.into()),
        }
    };
    context.printer.note(&format!(
        "template {name} is not here yet: it is downloaded from {}",
        escape(&begun.source_url)
    ));
    tokio::select! {
        done = follow(context, begun) => done.map(|template| template.name.to_string()),
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("no longer waiting for template {name}; the download goes on"))
                .hint(undone),
        ),
    }
}

async fn follow(context: &Context, begun: Download) -> Result<Template, Failure> {
    let name = begun.name.to_string();
    let bar = progress::bytes(0, &name, context.printer.is_json());
    let query = EventQuery {
        object: Some(name.clone()),
        ..EventQuery::default()
    };
    let mut events = None;
    let mut now = begun;
    loop {
        if let Some(problem) = now.error {
            bar.finish_and_clear();
            return Err(ClientError::Problem(Box::new(problem)).into());
        }
        bar.set_length(now.total_bytes.map_or(0, ByteSize::bytes));
        bar.set_position(now.done_bytes.bytes());
        bar.set_message(match &now.waiting_for {
            Some(why) => format!("{name}: {}", escape(why)),
            None => name.clone(),
        });
        if events.is_none() {
            let asked = tokio::time::timeout(LOOK_AGAIN, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        let mut told = None;
        if let Some(stream) = &mut events {
            match tokio::time::timeout(LOOK_AGAIN, stream.next()).await {
                Ok(Some(Ok(event))) if event.event == "download" => {
                    told = serde_json::from_str(&event.data).ok();
                }
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(Some(Err(_)) | None) => events = None,
            }
        } else {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        now = match told {
            Some(now) => now,
            None => match context.client.download(&name).await {
                Ok(Some(now)) => now,
                Ok(None) => {
                    bar.finish_and_clear();
                    return ended(context, &name).await;
                }
                Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => now,
                Err(error) => return Err(error.into()),
            },
        };
    }
}

/// It is no longer on its way: it is there, or somebody gave it up.
async fn ended(context: &Context, name: &str) -> Result<Template, Failure> {
    match context.client.template(name).await {
        Ok(template) => Ok(template),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Err(Failure::input(
            "download-ended",
            format!("the download of template {name} was given up meanwhile"),
        )),
        Err(error) => Err(error.into()),
    }
}

/// A line below a list of templates.
pub fn remark(coming: &Download) -> String {
    if let Some(error) = &coming.error {
        let hint = error.hint.as_deref().unwrap_or_default();
        return format!(
            "note: {} could not be downloaded: {} ({})",
            coming.name,
            escape(&error.title),
            escape(hint)
        );
    }
    let done = match coming.total_bytes {
        Some(total) if total.bytes() > 0 => {
            format!(
                "{} %",
                coming.done_bytes.bytes().saturating_mul(100) / total.bytes()
            )
        }
        _ => coming.done_bytes.to_string(),
    };
    let why = coming
        .waiting_for
        .as_ref()
        .map_or_else(String::new, |why| format!("; {}", escape(why)));
    format!("note: {} is being downloaded, {done}{why}", coming.name)
}
