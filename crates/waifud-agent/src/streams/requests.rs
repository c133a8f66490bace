//! The queue of stream requests between the watch, which receives them, and the task that serves them.

use tokio::sync::mpsc;
use waifud_api::stream::StreamOrder;

/// Open streams, and requests that wait, at most. waifud has its own limits.
pub(super) const MAX: usize = 256;

/// The sending end.
#[derive(Clone, Debug)]
pub(crate) struct StreamRequests(mpsc::Sender<StreamOrder>);

/// The receiving end. Locked by the task that serves streams, which may be restarted.
#[derive(Debug)]
pub(crate) struct StreamInbox(pub(super) tokio::sync::Mutex<mpsc::Receiver<StreamOrder>>);

impl StreamRequests {
    pub fn new() -> (Self, StreamInbox) {
        let (sender, receiver) = mpsc::channel(MAX);
        (Self(sender), StreamInbox(tokio::sync::Mutex::new(receiver)))
    }

    /// Queues a request. If the queue is full the request is dropped, and waifud reports that the node did not answer.
    pub fn add(&self, request: StreamOrder) {
        let kind = request.kind.as_str();
        if self.0.try_send(request).is_err() {
            tracing::warn!(kind, "too many stream requests; dropping this one");
        }
    }
}
