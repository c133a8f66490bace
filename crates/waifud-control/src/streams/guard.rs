//! Closes a stream when its instance is deleted, moved or off, or when its token is revoked.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use waifud_api::stream::{RESET_CODE, StreamKind};
use waifud_store::{InstanceRow, Topic};
use waifud_types::{Epoch, InstanceId, NodeId};

use super::broker::StreamTarget;
use crate::{Control, ControlError, Principal};

/// Why waifud closes a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// waifud is stopping.
    Stopping,
    /// The instance was deleted.
    Deleted,
    /// The instance is on another node or has another epoch.
    Moved,
    /// The instance is off.
    Off,
    /// The client's token was revoked or has expired.
    Revoked,
    /// There was no data for too long.
    Idle,
    /// The guest reset the connection.
    Reset,
    /// The client does not answer.
    ClientGone,
    /// A message was too large.
    MessageTooLarge,
}

impl CloseReason {
    /// The text for the client.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Stopping => "waifud is stopping",
            Self::Deleted => "the instance is being deleted",
            Self::Moved => "the instance was moved to another node",
            Self::Off => "the instance stopped",
            Self::Revoked => "the token was revoked or has expired",
            Self::Idle => "idle for too long",
            Self::Reset => "the guest reset the connection",
            Self::ClientGone => "the client does not answer",
            Self::MessageTooLarge => "the client sent a message that exceeds the limit",
        }
    }

    /// The close code of RFC 6455, section 7.4.1.
    pub const fn code(self) -> u16 {
        match self {
            Self::Stopping => 1001,
            Self::Reset => RESET_CODE,
            Self::MessageTooLarge => 1009,
            Self::Deleted
            | Self::Moved
            | Self::Off
            | Self::Revoked
            | Self::Idle
            | Self::ClientGone => 1008,
        }
    }
}

/// Watches the conditions of a stream. All calls of [`StreamGuard::closed`] share one watch, so a copy loop can call it for
/// each chunk and the database is read only after a change.
pub struct StreamGuard {
    target: StreamTarget,
    closing: Pin<Box<dyn Future<Output = CloseReason> + Send>>,
    reason: Option<CloseReason>,
}

impl fmt::Debug for StreamGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamGuard")
            .field("target", &self.target)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

impl StreamGuard {
    pub(super) fn new(control: &Control, target: StreamTarget, caller: Principal) -> Self {
        let watch = Watch {
            control: control.clone(),
            changes: control
                .store()
                .subscribe_topic(Topic::Instance(target.instance)),
            target,
        };
        let control = control.clone();
        Self::with(target, async move {
            tokio::select! {
                () = control.until_revoked(&caller) => CloseReason::Revoked,
                reason = watch.closed() => reason,
            }
        })
    }

    fn with(
        target: StreamTarget,
        closing: impl Future<Output = CloseReason> + Send + 'static,
    ) -> Self {
        Self {
            target,
            closing: Box::pin(closing),
            reason: None,
        }
    }

    /// The instance that the stream leads to.
    pub(crate) fn target(&self) -> StreamTarget {
        self.target
    }

    /// Completes when the stream has to close. Cancel safe.
    pub async fn closed(&mut self) -> CloseReason {
        if let Some(reason) = self.reason {
            return reason;
        }
        let reason = self.closing.as_mut().await;
        self.reason = Some(reason);
        reason
    }
}

/// The pause after a failed read of the database.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Watches the instance of a stream.
struct Watch {
    control: Control,
    target: StreamTarget,
    changes: watch::Receiver<u64>,
}

impl Watch {
    /// Completes when the instance cannot be used by the stream any more, or waifud stops.
    async fn closed(mut self) -> CloseReason {
        loop {
            let again = match self.check().await {
                Ok(None) => None,
                Ok(Some(reason)) => return reason,
                Err(error) => {
                    tracing::warn!(%error, "reading the instance of a stream failed; retrying");
                    Some(RETRY_PAUSE)
                }
            };
            let again = async {
                match again {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.control.stop_token().cancelled() => return CloseReason::Stopping,
                () = again => {}
                changed = self.changes.changed() => if changed.is_err() {
                    return CloseReason::Stopping;
                },
            }
        }
    }

    async fn check(&mut self) -> Result<Option<CloseReason>, ControlError> {
        self.changes.mark_unchanged();
        let id: InstanceId = self.target.instance;
        let row = self
            .control
            .store()
            .read(move |tx| Ok::<_, ControlError>(tx.instance(id)?))
            .await?;
        let StreamTarget {
            node, epoch, kind, ..
        } = self.target;
        Ok(row.map_or(Some(CloseReason::Deleted), |row| {
            close_reason(&row, node, epoch, kind)
        }))
    }
}

/// Why a stream has to close for the current state of its instance; `None` if it can stay open.
fn close_reason(
    row: &InstanceRow,
    node: NodeId,
    epoch: Epoch,
    kind: StreamKind,
) -> Option<CloseReason> {
    if row.deleting {
        Some(CloseReason::Deleted)
    } else if row.node != Some(node) || row.epoch != epoch {
        Some(CloseReason::Moved)
    } else if !kind.is_history() && !row.status.state.may_be_on() {
        Some(CloseReason::Off)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn repeated_calls_share_one_watch_and_keep_the_reason() {
        let target = StreamTarget {
            node: NodeId::generate(),
            instance: InstanceId::generate(),
            epoch: Epoch(1),
            kind: StreamKind::Ssh,
        };
        let (watches, close) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(tokio::sync::Notify::new()),
        );
        let (counted, closes) = (watches.clone(), close.clone());
        let mut guard = StreamGuard::with(target, async move {
            counted.fetch_add(1, Ordering::Relaxed);
            closes.notified().await;
            CloseReason::Off
        });
        for _ in 0..100 {
            tokio::select! {
                biased;
                _ = guard.closed() => panic!("it is not closed"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(watches.load(Ordering::Relaxed), 1);
        close.notify_one();
        assert_eq!(guard.closed().await, CloseReason::Off);
        assert_eq!(guard.closed().await, CloseReason::Off);
    }
}
