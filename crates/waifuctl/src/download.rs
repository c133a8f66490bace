//! Waiting for a template that waifud downloads: a bar that follows the event stream.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;
use waifud_api::client::{ClientError, EventQuery};
use waifud_api::{CreateDownload, Download, DownloadState};
use waifud_types::ByteSize;
use waifud_types::template::Template;

use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// The exit code of a deadline.
const DEADLINE_PASSED: u8 = 3;
/// Read again at least this often: events are hints.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Shows how far it is until the template is there. Ctrl-C ends the waiting only.
pub async fn until_there(context: &Context, begun: Download) -> Result<Template, Failure> {
    let name = begun.name.to_string();
    tokio::select! {
        done = follow(context, begun, None) => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("no longer waiting for template {name}; the download goes on"))
                .hint(format!("waifuctl template list shows it; waifuctl template delete {name} ends it")),
        ),
    }
}

/// A template that is asked for and not there: the catalog may know it. Gives the name that it has. `undone` tells who
/// interrupts it what became of what it was wanted for. The waiting ends at the deadline, the download goes on.
pub async fn missing(
    context: &Context,
    wanted: &str,
    unknown: ClientError,
    undone: &str,
    deadline: Option<Instant>,
) -> Result<String, Failure> {
    // Names are DNS labels, and people type ubuntu-24.04.
    let name = wanted.replace('.', "-");
    match context.client.template(&name).await {
        Ok(template) => return Ok(template.name.to_string()),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => {}
        Err(error) => return Err(error.into()),
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
        done = follow(context, begun, deadline) => match done {
            Err(failure) if failure.exit_code() == DEADLINE_PASSED => Err(failure.hint(undone)),
            done => done.map(|template| template.name.to_string()),
        },
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("no longer waiting for template {name}; the download goes on"))
                .hint(undone),
        ),
    }
}

/// Whether a template that is not here would be downloaded by its name.
pub async fn is_in_catalog(context: &Context, name: &str) -> Result<bool, Failure> {
    let catalog = context.client.catalog().await?;
    Ok(catalog
        .items
        .iter()
        .any(|entry| entry.name.as_str() == name))
}

async fn follow(
    context: &Context,
    begun: Download,
    deadline: Option<Instant>,
) -> Result<Template, Failure> {
    let name = begun.name.to_string();
    let bar = progress::bytes(0, &name, !context.printer.shows_progress());
    bar.enable_steady_tick(Duration::from_millis(120));
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
        let waiting = now.waiting_for.as_deref().map(escape);
        progress::show_download(
            &bar,
            &name,
            now.done_bytes.bytes(),
            now.total_bytes.map(ByteSize::bytes),
            waiting.as_deref(),
        );
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            bar.finish_and_clear();
            return Err(late(&now));
        }
        let pause = left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN));
        if events.is_none() {
            let asked = tokio::time::timeout(pause, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        let mut told = None;
        if let Some(stream) = &mut events {
            match tokio::time::timeout(pause, stream.next()).await {
                Ok(Some(Ok(event))) if event.event == "download" => {
                    told = serde_json::from_str(&event.data).ok();
                }
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(Some(Err(_)) | None) => events = None,
            }
        } else {
            tokio::time::sleep(pause).await;
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
                Err(error) => {
                    bar.finish_and_clear();
                    return Err(error.into());
                }
            },
        };
    }
}

/// The deadline has passed, and it is not there.
fn late(now: &Download) -> Failure {
    let why = match (&now.waiting_for, now.total_bytes) {
        (Some(why), _) => format!(" ({})", escape(why)),
        (None, Some(total)) => format!(" ({} of {total})", now.done_bytes),
        (None, None) => String::new(),
    };
    Failure::deadline(format!(
        "template {} is not downloaded yet{why}; the download goes on",
        now.name
    ))
    .hint(format!(
        "waifuctl template list shows it; waifuctl template delete {} ends it",
        now.name
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn coming(waiting_for: Option<&str>) -> Download {
        serde_json::from_value(serde_json::json!({
            "name": "alpine", "state": "running", "source_url": "https://example.org/a",
            "checksum": null, "done_bytes": 1 << 20, "total_bytes": 4 << 20,
            "waiting_for": waiting_for, "error": null, "created_at": "2026-11-29T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_deadline_says_how_far_the_download_is_and_that_it_goes_on() {
        let failure = late(&coming(None));
        assert_eq!(failure.exit_code(), DEADLINE_PASSED);
        let text = failure.to_text();
        assert!(text.contains("1M of 4M"), "{text}");
        assert!(text.contains("goes on"), "{text}");
        let text = late(&coming(Some("no connection\u{1b}[2J"))).to_text();
        assert!(
            text.contains("no connection") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
}
