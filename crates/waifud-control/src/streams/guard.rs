//! What keeps a stream open: the instance is still there, still the same copy on the same node, and still on.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::watch;
use waifud_api::stream::{RESET_CODE, StreamKind};
use waifud_store::{InstanceRow, Topic};
use waifud_types::{Epoch, InstanceId, NodeId};

use super::broker::Target;
use crate::{Control, ControlError, Principal};

/// Why waifud ends a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// waifud stops.
    Stopping,
    /// The instance was deleted.
    Deleted,
    /// It is no longer that copy on that node.
    Moved,
    /// It is off.
    Off,
    /// Whoever asked may no longer.
    Revoked,
    /// Nothing was said for too long.
    Idle,
    /// The guest reset the connection.
    Reset,
    /// The person's end is silent.
    Dead,
    /// A message was too large, or none at all that belongs here.
    Misused,
}

impl CloseReason {
    /// For whoever is at the other end.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Stopping => "waifud stops",
            Self::Deleted => "the instance is being deleted",
            Self::Moved => "the instance moved",
            Self::Off => "the instance stopped",
            Self::Revoked => "the token was revoked or has expired",
            Self::Idle => "nothing was said for too long",
            Self::Reset => "the guest reset the connection",
            Self::Dead => "nobody answers",
            Self::Misused => "a message was too large",
        }
    }

    /// The close code of RFC 6455, section 7.4.1.
    pub const fn code(self) -> u16 {
        match self {
            Self::Stopping => 1001,
            Self::Reset => RESET_CODE,
            Self::Misused => 1009,
            Self::Deleted | Self::Moved | Self::Off | Self::Revoked | Self::Idle | Self::Dead => {
                1008
            }
        }
    }
}

/// Watches what a stream depends on, from its beginning on: one watch for all calls of [`StreamGuard::closed`], so that a copy
/// loop may ask at each chunk and the database is read only when something has changed.
pub struct StreamGuard {
    target: Target,
    closing: Pin<Box<dyn Future<Output = CloseReason> + Send>>,
    cut: Option<CloseReason>,
}

impl fmt::Debug for StreamGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamGuard")
            .field("target", &self.target)
            .field("cut", &self.cut)
            .finish_non_exhaustive()
    }
}

impl StreamGuard {
    pub(super) fn new(control: &Control, target: Target, asker: Principal) -> Self {
        let watch = Watch {
            control: control.clone(),
            changes: control
                .store()
                .subscribe_topic(Topic::Instance(target.instance)),
            target,
        };
        let control = control.clone();
        Self::over(target, async move {
            tokio::select! {
                () = control.until_revoked(&asker) => CloseReason::Revoked,
                cut = watch.closed() => cut,
            }
        })
    }

    fn over(target: Target, closing: impl Future<Output = CloseReason> + Send + 'static) -> Self {
        Self {
            target,
            closing: Box::pin(closing),
            cut: None,
        }
    }

    /// Whom the stream leads to.
    pub(crate) fn target(&self) -> Target {
        self.target
    }

    /// Ends when the stream has to. May be dropped and called again; that goes on where it was.
    pub async fn closed(&mut self) -> CloseReason {
        if let Some(cut) = self.cut {
            return cut;
        }
        let cut = self.closing.as_mut().await;
        self.cut = Some(cut);
        cut
    }
}

/// How long to wait after the database could not be read.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The instance that a stream leads to.
struct Watch {
    control: Control,
    target: Target,
    changes: watch::Receiver<u64>,
}

impl Watch {
    /// Ends when the instance is no longer there for the stream, or waifud stops.
    async fn closed(mut self) -> CloseReason {
        loop {
            let again = match self.look().await {
                Ok(None) => None,
                Ok(Some(cut)) => return cut,
                Err(error) => {
                    tracing::warn!(%error, "a stream's instance can't be looked at");
                    Some(LOOK_AGAIN)
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

    async fn look(&mut self) -> Result<Option<CloseReason>, ControlError> {
        self.changes.mark_unchanged();
        let id: InstanceId = self.target.instance;
        let row = self
            .control
            .store()
            .read(move |tx| Ok::<_, ControlError>(tx.instance(id)?))
            .await?;
        let Target {
            node, epoch, kind, ..
        } = self.target;
        Ok(row.map_or(Some(CloseReason::Deleted), |row| {
            why_cut(&row, node, epoch, kind)
        }))
    }
}

/// Whether the stream may go on with the instance as it is.
fn why_cut(row: &InstanceRow, node: NodeId, epoch: Epoch, kind: StreamKind) -> Option<CloseReason> {
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
    async fn a_gate_that_is_asked_at_each_chunk_looks_once_and_remembers_why_it_closed() {
        let target = Target {
            node: NodeId::generate(),
            instance: InstanceId::generate(),
            epoch: Epoch(1),
            kind: StreamKind::Ssh,
        };
        let (looks, close) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(tokio::sync::Notify::new()),
        );
        let (counted, closes) = (looks.clone(), close.clone());
        let mut gate = StreamGuard::over(target, async move {
            counted.fetch_add(1, Ordering::Relaxed);
            closes.notified().await;
            CloseReason::Off
        });
        for _ in 0..100 {
            tokio::select! {
                biased;
                _ = gate.closed() => panic!("it is not closed"),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        close.notify_one();
        assert_eq!(gate.closed().await, CloseReason::Off);
        assert_eq!(gate.closed().await, CloseReason::Off);
    }
}
