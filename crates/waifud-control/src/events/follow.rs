//! Follows the history: stored events in order, and frames of progress that are never stored.
//!
//! It reads the same rows as the list and is woken by commits, so a client that resumes gets what it missed.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{broadcast, watch};
use waifud_api::Download;
use waifud_store::EventFilter;
use waifud_types::event::Event;
use waifud_types::{Digest, Revision};

use super::history::resume;
use crate::{Control, ControlError, ProgressFrame};

/// Events read at once.
const BATCH: u32 = 256;

/// What a follower of events gets.
#[derive(Debug)]
pub(crate) enum EventItem {
    Event(Event),
    Progress(Arc<ProgressFrame>),
    Download(Download),
}

impl Control {
    /// Follows events after a revision; without one, from now on.
    pub(crate) async fn watch_events(
        &self,
        since: Option<Revision>,
        filter: EventFilter,
    ) -> Result<EventWatch, ControlError> {
        let commits = self.store().subscribe();
        let progress = self.instance_progress().subscribe();
        let downloads = self.downloads().subscribe();
        let after = self
            .store()
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
        Ok(watch)
    }
}

/// A follower of events.
pub(crate) struct EventWatch {
    control: Control,
    filter: EventFilter,
    after: u64,
    commits: watch::Receiver<u64>,
    progress: broadcast::Receiver<Arc<ProgressFrame>>,
    downloads: broadcast::Receiver<Digest>,
    steps: VecDeque<EventItem>,
    ready: VecDeque<Event>,
}

impl EventWatch {
    /// The next item; `None` ends the stream because waifud stops or the history was trimmed. The client then resumes.
    pub(crate) async fn next(&mut self) -> Option<EventItem> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(EventItem::Event(event));
            }
            if let Some(frame) = self.steps.pop_front() {
                return Some(frame);
            }
            self.commits.mark_unchanged();
            if !self.read_events().await? {
                tokio::select! {
                    () = self.control.stop_token().cancelled() => return None,
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

    /// Reads the next events; false if there are none, `None` if the history after the last one was trimmed.
    async fn read_events(&mut self) -> Option<bool> {
        let (after, filter) = (self.after, self.filter.clone());
        let read = self
            .control
            .store()
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
                tracing::error!(%error, "reading events failed; an event stream ends");
                return None;
            }
        };
        // After a full batch there may be more events; a smaller one reaches the newest.
        self.after = match events.last() {
            Some(last) if events.len() >= BATCH as usize => last.revision.number,
            _ => newest,
        };
        self.ready = events.into();
        Some(!self.ready.is_empty())
    }

    async fn download_frames(&mut self, source: Result<Digest, broadcast::error::RecvError>) {
        // A missed message is superseded by the next one.
        let Ok(source) = source else { return };
        let Ok(downloads) = self.control.downloads().of_source(source).await else {
            tracing::warn!(
                "reading the progress of a download failed; the next message supersedes it"
            );
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
                self.steps.push_back(EventItem::Download(download));
            }
        }
    }

    fn progress_frame(
        &self,
        frame: Result<Arc<ProgressFrame>, broadcast::error::RecvError>,
    ) -> Option<EventItem> {
        // A missed frame is superseded by the next one.
        let frame = frame.ok()?;
        let wanted = match &self.filter.object {
            None => true,
            Some(object) => *object == frame.instance.to_string() || *object == frame.name.as_str(),
        };
        if !wanted {
            return None;
        }
        Some(EventItem::Progress(frame))
    }
}
