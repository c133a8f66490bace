//! Waits for the download of a template and shows its progress.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;
use waifud_api::client::{ClientError, EventQuery};
use waifud_api::{CreateDownload, Download, DownloadState};
use waifud_types::ByteSize;
use waifud_types::template::Template;

use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::progress;
use crate::text::escape;

/// The exit code of a passed deadline.
const DEADLINE_PASSED: u8 = 3;
/// The longest pause between two reads.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Waits until a template is downloaded. Ctrl-C ends only the wait.
pub async fn until_downloaded(context: &Context, begun: Download) -> Result<Template, Failure> {
    let name = begun.name.to_string();
    tokio::select! {
        done = follow(context, begun, None) => done,
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("stopped waiting for template {name}; the download continues"))
                .hint(format!("waifuctl template list shows it; waifuctl template delete {name} cancels it")),
        ),
    }
}

/// Downloads a missing template from the catalog and returns its name. `undone` is the hint if the wait is
/// interrupted. The wait ends at the deadline; the download continues.
pub async fn missing(
    context: &Context,
    wanted: &str,
    unknown: ClientError,
    undone: &str,
    deadline: Option<Instant>,
) -> Result<String, Failure> {
    // Names are DNS labels, but users write ubuntu-24.04.
    let name = wanted.replace('.', "-");
    match context.client.template(&name).await {
        Ok(template) => return Ok(template.name.to_string()),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => {}
        Err(error) => return Err(error.into()),
    }
    let running = context.client.download(&name).await?;
    let running = running.filter(|running| running.state == DownloadState::Running);
    let begun = if let Some(running) = running {
        running
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
        "template {name} does not exist yet: downloading it from {}",
        escape(&begun.source_url)
    ));
    tokio::select! {
        done = follow(context, begun, deadline) => match done {
            Err(failure) if failure.exit_code() == DEADLINE_PASSED => Err(failure.hint(undone)),
            done => done.map(|template| template.name.to_string()),
        },
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::interrupted(format!("stopped waiting for template {name}; the download continues"))
                .hint(undone),
        ),
    }
}

/// Whether the catalog has a template of this name.
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
    let mut noted = None;
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
        if bar.is_hidden() && waiting.is_some() && waiting != noted {
            // Without a terminal, there is no progress bar.
            if let Some(why) = &waiting {
                context.printer.note(&format!("{name}: {why}"));
            }
            noted = waiting;
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            bar.finish_and_clear();
            return Err(late(&now));
        }
        let pause = left.map_or(POLL_INTERVAL, |left| left.min(POLL_INTERVAL));
        if events.is_none() {
            let asked = tokio::time::timeout(pause, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        let mut frame = None;
        if let Some(stream) = &mut events {
            match tokio::time::timeout(pause, stream.next()).await {
                Ok(Some(Ok(event))) if event.event == "download" => {
                    frame = serde_json::from_str(&event.data).ok();
                }
                Ok(Some(Ok(_))) | Err(_) => {}
                Ok(Some(Err(_)) | None) => events = None,
            }
        } else {
            tokio::time::sleep(pause).await;
        }
        now = match frame {
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

/// The deadline passed before the end of the download.
fn late(now: &Download) -> Failure {
    let why = match (&now.waiting_for, now.total_bytes) {
        (Some(why), _) => format!(" ({})", escape(why)),
        (None, Some(total)) => format!(" ({} of {total})", now.done_bytes),
        (None, None) => String::new(),
    };
    Failure::deadline(format!(
        "template {} is not downloaded yet{why}; the download continues",
        now.name
    ))
    .hint(format!(
        "waifuctl template list shows it; waifuctl template delete {} cancels it",
        now.name
    ))
}

/// The download has ended: the template exists, or another client canceled it.
async fn ended(context: &Context, name: &str) -> Result<Template, Failure> {
    match context.client.template(name).await {
        Ok(template) => Ok(template),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Err(Failure::input(
            "download-ended",
            format!("the download of template {name} was canceled during the wait"),
        )),
        Err(error) => Err(error.into()),
    }
}

/// A note below a list of templates.
pub fn remark(running: &Download) -> String {
    if let Some(error) = &running.error {
        let hint = hint::line(&error.hints).or_else(|| error.hint.clone());
        return format!(
            "note: the download of {} failed: {} ({})",
            running.name,
            escape(&error.title),
            escape(&hint.unwrap_or_default())
        );
    }
    let done = match running.total_bytes {
        Some(total) if total.bytes() > 0 => {
            format!(
                "{} %",
                running.done_bytes.bytes().saturating_mul(100) / total.bytes()
            )
        }
        _ => running.done_bytes.to_string(),
    };
    let why = running
        .waiting_for
        .as_ref()
        .map_or_else(String::new, |why| format!("; {}", escape(why)));
    format!("note: downloading {}, {done}{why}", running.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(waiting_for: Option<&str>) -> Download {
        serde_json::from_value(serde_json::json!({
            "name": "alpine", "state": "running", "source_url": "https://example.org/a",
            "checksum": null, "done_bytes": 1 << 20, "total_bytes": 4 << 20,
            "waiting_for": waiting_for, "error": null, "created_at": "2026-11-29T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_deadline_reports_the_progress_and_that_the_download_continues() {
        let failure = late(&running(None));
        assert_eq!(failure.exit_code(), DEADLINE_PASSED);
        let text = failure.to_text();
        assert!(text.contains("1M of 4M"), "{text}");
        assert!(text.contains("continues"), "{text}");
        let text = late(&running(Some("no connection\u{1b}[2J"))).to_text();
        assert!(
            text.contains("no connection") && !text.contains('\u{1b}'),
            "{text}"
        );
    }
}
