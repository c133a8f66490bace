//! `/v1/events`: the history as pages, or as it happens.
//!
//! The stream reads the same rows as the list, woken by commits: what a client missed between two connections it gets
//! from `Last-Event-ID`, and what it can't get any more is answered with 410, never left out silently.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use tokio::sync::{broadcast, watch};
use waifud_api::{Page, Problem};
use waifud_store::{EventFilter, ReadTx};
use waifud_types::event::Event;
use waifud_types::{Digest, Revision};

use super::peer::AuthenticatedUser;
use super::query::Params;
use super::refusal::Refusal;
use crate::events::event_builder;
use crate::events::problems as event_problems;
use crate::pagination::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::{Control, ControlError, ProgressFrame, problems};

/// Events read at once for a stream.
const BATCH: u32 = 256;
/// A comment at least so often, so that a dead connection is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Lists events, oldest first, or streams them.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", operation_id = "events",
    params(
        ("since" = Option<String>, Query, description = "Only after this revision. Without it, the newest ones; a stream begins now."),
        ("cursor" = Option<String>, Query, description = "`next` of the page before: the same as `since`."),
        ("limit" = Option<u32>, Query, description = "Events a page, 1 to 1000; 100 by default."),
        ("object" = Option<String>, Query, description = "Only about the object with this id or name; `instance/web` also names its type: instance, template, image, node, network, token, join-token or waifud."),
        ("watch" = Option<bool>, Query, description = "Stream them as server-sent events, as `Accept: text/event-stream` does."),
        ("Last-Event-ID" = Option<String>, Header, description = "Where a broken stream goes on; outranks `since`."),
    ),
    responses(
        (status = 200, description = "A page; as text/event-stream, events whose id is their revision and whose type is their kind, and without an id `progress` frames (ProgressFrame) and `download` frames (Download).", body = Page<Event>),
        (status = 400, description = "A parameter can't be understood.", body = Problem),
        (status = 410, description = "The history after `since` is gone.", body = Problem),
    )
)]
pub async fn events(
    State(control): State<Control>,
    _: AuthenticatedUser,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let mut since = params.revision("since")?;
    if let Some(cursor) = params.revision("cursor")? {
        since = Some(cursor);
    }
    let limit = params.number("limit")?;
    let filter = filter(params.one("object")?)?;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let watch = params.flag("watch")? || accept.contains("text/event-stream");
    params.finish()?;
    let last = last_event_id(&headers)?;
    if !watch {
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(problems::bad_query(
                "limit",
                "limit is out of range",
                format!("from 1 to {LIMIT_MAX}"),
            )
            .into());
        }
        return Ok(Json(control.events(since, filter, limit).await?).into_response());
    }
    let stream = control.watch_events(last.or(since), filter).await?;
    Ok(Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// Where a broken stream goes on.
fn last_event_id(headers: &HeaderMap) -> Result<Option<Revision>, Problem> {
    let Some(id) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let id = id.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| {
        problems::bad_header(
            "Last-Event-ID",
            "Last-Event-ID is not an id of this stream",
            "send it as it came",
        )
    })
}

fn filter(object: Option<String>) -> Result<EventFilter, Problem> {
    let Some((kind, name)) = object.as_deref().and_then(|text| text.split_once('/')) else {
        return Ok(EventFilter {
            object,
            object_type: None,
        });
    };
    if !event_builder::OBJECT_TYPES.contains(&kind) {
        return Err(problems::bad_query(
            "object",
            format!("there are no events about objects of type {kind:?}"),
            format!(
                "TYPE/NAME, where TYPE is {}",
                event_builder::OBJECT_TYPES.join(", ")
            ),
        ));
    }
    Ok(EventFilter {
        object: Some(name.to_owned()),
        object_type: Some(kind.to_owned()),
    })
}

/// The number to go on after, if the history still has everything since.
fn resume(tx: &ReadTx<'_>, since: Revision) -> Result<u64, ControlError> {
    let newest = tx.at(tx.newest_event()?);
    let oldest = tx.oldest_resumable()?;
    if since.incarnation != newest.incarnation
        || since.number > newest.number
        || since.number < oldest
    {
        return Err(event_problems::revision_gone(tx.at(oldest)).into());
    }
    Ok(since.number)
}

impl Control {
    async fn events(
        &self,
        since: Option<Revision>,
        filter: EventFilter,
        limit: u32,
    ) -> Result<Page<Event>, ControlError> {
        self.shared
            .store
            .read(move |tx| {
                let revision = tx.at(tx.newest_event()?);
                let Some(since) = since else {
                    return Ok(Page {
                        items: tx.newest_events(&filter, limit)?,
                        next: None,
                        revision,
                    });
                };
                let mut items = tx.events(resume(&tx, since)?, &filter, limit + 1)?;
                let more = items.len() > limit as usize;
                items.truncate(limit as usize);
                let next = items
                    .last()
                    .filter(|_| more)
                    .map(|event| event.revision.to_string());
                Ok(Page {
                    items,
                    next,
                    revision,
                })
            })
            .await
    }

    async fn watch_events(
        &self,
        since: Option<Revision>,
        filter: EventFilter,
    ) -> Result<impl Stream<Item = Result<Frame, Infallible>> + use<>, ControlError> {
        let commits = self.shared.store.subscribe();
        let progress = self.shared.progress.subscribe();
        let downloads = self.shared.download_steps.subscribe();
        let after = self
            .shared
            .store
            .read(move |tx| match since {
                Some(since) => resume(&tx, since),
                None => Ok(tx.newest_event()?),
            })
            .await?;
        let watch = EventWatch {
            control: self.clone(),
            filter,
            after,
            commits,
            progress,
            downloads,
            steps: VecDeque::new(),
            ready: VecDeque::new(),
        };
        Ok(futures::stream::unfold(watch, |mut watch| async move {
            let frame = watch.next().await?;
            Some((Ok(frame), watch))
        }))
    }
}

struct EventWatch {
    control: Control,
    filter: EventFilter,
    after: u64,
    commits: watch::Receiver<u64>,
    progress: broadcast::Receiver<Arc<ProgressFrame>>,
    downloads: broadcast::Receiver<Digest>,
    steps: VecDeque<Frame>,
    ready: VecDeque<Event>,
}

impl EventWatch {
    /// The next frame; `None` ends the stream, and the client resumes: waifud stops, or history was trimmed under it.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event_frame(&event);
            }
            if let Some(frame) = self.steps.pop_front() {
                return Some(frame);
            }
            self.commits.mark_unchanged();
            if !self.read_on().await? {
                tokio::select! {
                    () = self.control.shared.stop.cancelled() => return None,
                    changed = self.commits.changed() => changed.ok()?,
                    frame = self.progress.recv() => {
                        if let Some(frame) = self.progress_frame(frame) {
                            return Some(frame);
                        }
                    }
                    source = self.downloads.recv() => self.download_frames(source).await,
                }
            }
        }
    }

    /// Reads what came after; false when there was nothing. `None` when something in between is gone.
    async fn read_on(&mut self) -> Option<bool> {
        let (after, filter) = (self.after, self.filter.clone());
        let read = self
            .control
            .shared
            .store
            .read(move |tx| {
                let newest = tx.newest_event()?;
                if after < tx.oldest_resumable()? {
                    return Ok::<_, ControlError>(None);
                }
                Ok(Some((tx.events(after, &filter, BATCH)?, newest)))
            })
            .await;
        let (events, newest) = match read {
            Ok(read) => read?,
            Err(error) => {
                tracing::error!(%error, "a watch of events ends");
                return None;
            }
        };
        // A full batch may have more behind it; a smaller one has seen everything up to the newest.
        self.after = match events.last() {
            Some(last) if events.len() >= BATCH as usize => last.revision.number,
            _ => newest,
        };
        self.ready = events.into();
        Some(!self.ready.is_empty())
    }

    async fn download_frames(&mut self, source: Result<Digest, broadcast::error::RecvError>) {
        // As with other progress: what was missed is made up for by the next.
        let Ok(source) = source else { return };
        let Ok(downloads) = self.control.downloads_from(source).await else {
            tracing::warn!("how far a download is can't be read; the next step tells");
            return;
        };
        for download in downloads {
            let name = download.name.as_str();
            if self
                .filter
                .object
                .as_deref()
                .is_none_or(|object| object == name)
            {
                let frame = Frame::default().event("download").json_data(&download);
                self.steps.extend(frame.ok());
            }
        }
    }

    fn progress_frame(
        &self,
        frame: Result<Arc<ProgressFrame>, broadcast::error::RecvError>,
    ) -> Option<Frame> {
        // Frames that were missed are only progress: the next one says more.
        let frame = frame.ok()?;
        let wanted = match &self.filter.object {
            None => true,
            Some(object) => *object == frame.instance.to_string() || *object == frame.name.as_str(),
        };
        if !wanted {
            return None;
        }
        Frame::default().event("progress").json_data(&*frame).ok()
    }
}

fn event_frame(event: &Event) -> Option<Frame> {
    Frame::default()
        .id(event.revision.to_string())
        .event(&event.kind)
        .json_data(event)
        .ok()
}
