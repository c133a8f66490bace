//! Reads one instance again whenever an event suggests that it has changed.
//!
//! Events are hints: one can be lost with a connection, so the instance is also read again after the caller's pause. A lost
//! connection is opened again.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::time::{sleep, timeout};
use waifud_api::Instance;
use waifud_api::client::{ClientError, EventQuery, SseEvent};

use crate::context::Context;
use crate::failure::Failure;

type Events = Pin<Box<dyn Stream<Item = Result<SseEvent, ClientError>> + Send>>;

/// Pause after a failed request.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Follows one instance by its id: its name may belong to another instance later.
pub struct InstanceWatch<'a> {
    context: &'a Context,
    id: String,
    query: EventQuery,
    events: Option<Events>,
}

impl<'a> InstanceWatch<'a> {
    pub fn new(context: &'a Context, instance: &Instance) -> Self {
        let id = instance.id.to_string();
        let query = EventQuery {
            object: Some(id.clone()),
            ..EventQuery::default()
        };
        Self {
            context,
            id,
            query,
            events: None,
        }
    }

    /// Waits for an event, or for `pause` at most, and reads the instance. Returns `previous` while waifud is unreachable,
    /// and `None` if the instance does not exist any more.
    pub async fn next(
        &mut self,
        previous: Instance,
        pause: Duration,
    ) -> Result<Option<Instance>, Failure> {
        let retry = pause.min(RETRY_PAUSE);
        match &mut self.events {
            Some(events) => {
                if let Ok(Some(Err(_)) | None) = timeout(pause, events.next()).await {
                    self.events = None;
                    sleep(retry).await;
                }
            }
            // The instance is read right after the stream is open, so no change is missed in between.
            None => match timeout(pause, self.context.client.watch_events(&self.query)).await {
                Ok(Ok(events)) => self.events = Some(Box::pin(events)),
                Ok(Err(_)) => sleep(retry).await,
                Err(_) => {}
            },
        }
        match self.context.client.instance(&self.id).await {
            Ok(instance) => Ok(Some(instance)),
            Err(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => {
                sleep(retry).await;
                Ok(Some(previous))
            }
            Err(ClientError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Self::next`]; an instance that does not exist any more is an error.
    pub async fn next_existing(
        &mut self,
        previous: Instance,
        pause: Duration,
    ) -> Result<Instance, Failure> {
        let name = previous.name.clone();
        let next = self.next(previous, pause).await?;
        next.ok_or_else(|| deleted(name.as_str()))
    }
}

/// Another client deleted the instance during a wait.
pub fn deleted(name: &str) -> Failure {
    Failure::input("deleted", format!("{name} was deleted during the wait"))
}
