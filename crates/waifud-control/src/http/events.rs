//! `/v1/events`: the history as pages or as a stream of server-sent events.
//!
//! A client resumes the stream with `Last-Event-ID`. If the history since then is not complete, the answer is 410.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use utoipa::IntoParams;
use waifud_api::{Page, Problem};
use waifud_store::EventFilter;
use waifud_types::Revision;
use waifud_types::event::Event;

use super::body::Json;
use super::peer::AuthenticatedUser;
use super::query::{FromParams, Params, Query};
use super::refusal::Refusal;
use crate::events::event_builder;
use crate::events::{EventItem, EventWatch};
use crate::pagination::checked_limit;
use crate::problems;

/// The interval of comments that detect dead connections.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Which events are returned.
#[derive(IntoParams, Debug)]
#[into_params(parameter_in = Query)]
pub struct EventParams {
    /// Only events after this revision. By default the newest events, or for a stream, events from now on.
    #[param(value_type = Option<String>)]
    since: Option<Revision>,
    /// `next` of the previous page; the same as `since`.
    #[param(value_type = Option<String>)]
    cursor: Option<Revision>,
    /// Events per page, 1 to 1000; 100 by default.
    limit: Option<u32>,
    /// Only events about the object with this id or name. `TYPE/NAME`, for example `instance/web`, also filters by
    /// type: instance, template, image, node, network, token, join-token or waifud.
    object: Option<String>,
    /// If true, answer with a stream of server-sent events, as with `Accept: text/event-stream`.
    #[param(value_type = Option<bool>)]
    watch: bool,
}

impl FromParams for EventParams {
    fn take(params: &mut Params) -> Result<Self, Problem> {
        Ok(Self {
            since: params.revision("since")?,
            cursor: params.revision("cursor")?,
            limit: params.number("limit")?,
            object: params.one("object")?,
            watch: params.flag("watch")?,
        })
    }
}

/// Lists events, oldest first, or follows them.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", operation_id = "events",
    params(EventParams, ("Last-Event-ID" = Option<String>, Header, description = "The id after which an interrupted stream resumes; takes precedence over `since`.")),
    responses(
        (status = 200, description = "A page of events. As text/event-stream: events with their revision as id and their kind as type, and without an id, `progress` (ProgressFrame) and `download` (Download) messages.", body = Page<Event>),
        (status = 410, description = "The history after `since` is not complete.", body = Problem),
    )
)]
pub async fn events(
    user: AuthenticatedUser,
    Query(params): Query<EventParams>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let since = params.cursor.or(params.since);
    let filter = filter(params.object)?;
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let watch = params.watch || accept.contains("text/event-stream");
    let last = last_event_id(&headers)?;
    if !watch {
        let limit = checked_limit(params.limit)?;
        let page = user.control.events(since, filter, limit).await?;
        return Ok(Json(page).into_response());
    }
    let watch = user.control.watch_events(last.or(since), filter).await?;
    Ok(Sse::new(frames(watch))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

/// The id after which an interrupted stream resumes.
fn last_event_id(headers: &HeaderMap) -> Result<Option<Revision>, Problem> {
    let Some(id) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let id = id.to_str().ok().and_then(|text| text.parse().ok());
    id.map(Some).ok_or_else(|| {
        problems::bad_header(
            "Last-Event-ID",
            "Last-Event-ID is not an id of this stream",
            "use the id of a received event",
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
            format!("{kind:?} is not a type of object"),
            format!(
                "use TYPE/NAME, where TYPE is one of {}",
                event_builder::OBJECT_TYPES.join(", ")
            ),
        ));
    }
    Ok(EventFilter {
        object: Some(name.to_owned()),
        object_type: Some(kind.to_owned()),
    })
}

/// An item as a server-sent event. Stored events carry their revision as id, so that a client can resume.
fn frame(item: &EventItem) -> Option<Frame> {
    let frame = match item {
        EventItem::Event(event) => Frame::default()
            .id(event.revision.to_string())
            .event(&event.kind)
            .json_data(event),
        EventItem::Progress(progress) => Frame::default().event("progress").json_data(&**progress),
        EventItem::Download(download) => Frame::default().event("download").json_data(download),
    };
    frame.ok()
}

fn frames(watch: EventWatch) -> impl Stream<Item = Result<Frame, Infallible>> {
    futures::stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        Some((Ok(frame(&item)?), watch))
    })
}
