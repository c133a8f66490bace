//! What keeps a stream open: the instance is still there, still the same copy on the same node, and still on.

use tokio::sync::watch;
use waifud_api::stream::StreamKind;
use waifud_store::{InstanceRow, Topic};
use waifud_types::{Epoch, InstanceId, InstanceState, NodeId};

use super::broker::Target;
use crate::{Control, ControlError, Principal};

/// Why waifud ends a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
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
    /// The person's end is silent.
    Dead,
    /// A message was too large, or none at all that belongs here.
    Misused,
}

impl Cut {
    /// For whoever is at the other end.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Stopping => "waifud stops",
            Self::Deleted => "the instance is being deleted",
            Self::Moved => "the instance moved",
            Self::Off => "the instance stopped",
            Self::Revoked => "the token was revoked or has expired",
            Self::Idle => "nothing was said for too long",
            Self::Dead => "nobody answers",
            Self::Misused => "a message was too large",
        }
    }

    /// The close code of RFC 6455, section 7.4.1.
    pub const fn code(self) -> u16 {
        match self {
            Self::Stopping => 1001,
            Self::Misused => 1009,
            Self::Deleted | Self::Moved | Self::Off | Self::Revoked | Self::Idle | Self::Dead => {
                1008
            }
        }
    }
}

/// Watches what a stream depends on.
#[derive(Debug)]
pub struct Gate {
    control: Control,
    target: Target,
    asker: Principal,
    changes: watch::Receiver<u64>,
}

impl Gate {
    pub(super) fn new(control: &Control, target: Target, asker: Principal) -> Self {
        Self {
            asker,
            control: control.clone(),
            changes: control
                .store()
                .subscribe_topic(Topic::Instance(target.instance)),
            target,
        }
    }

    /// Whom the stream leads to.
    pub(crate) fn target(&self) -> Target {
        self.target
    }

    /// Ends when the stream has to. May be dropped and called again.
    pub async fn closed(&mut self) -> Cut {
        loop {
            match self.look().await {
                Ok(None) => {}
                Ok(Some(cut)) => return cut,
                Err(error) => tracing::warn!(%error, "a stream's instance can't be looked at"),
            }
            tokio::select! {
                () = self.control.stop_token().cancelled() => return Cut::Stopping,
                () = self.control.until_revoked(&self.asker) => return Cut::Revoked,
                changed = self.changes.changed() => if changed.is_err() {
                    return Cut::Stopping;
                },
            }
        }
    }

    async fn look(&mut self) -> Result<Option<Cut>, ControlError> {
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
        Ok(row.map_or(Some(Cut::Deleted), |row| why_cut(&row, node, epoch, kind)))
    }
}

/// Whether the stream may go on with the instance as it is.
fn why_cut(row: &InstanceRow, node: NodeId, epoch: Epoch, kind: StreamKind) -> Option<Cut> {
    if row.deleting {
        Some(Cut::Deleted)
    } else if row.node != Some(node) || row.epoch != epoch {
        Some(Cut::Moved)
    } else if !kind.is_history() && !is_on(row.status.state) {
        Some(Cut::Off)
    } else {
        None
    }
}

/// Whether there may be somebody to talk to. While it goes down there still is: its last words are on the console.
pub(super) const fn is_on(state: InstanceState) -> bool {
    match state {
        InstanceState::Starting
        | InstanceState::Running
        | InstanceState::Paused
        | InstanceState::Stopping
        | InstanceState::Moving
        | InstanceState::Unknown => true,
        InstanceState::Pending
        | InstanceState::Preparing
        | InstanceState::Stopped
        | InstanceState::Deleting
        | InstanceState::Failed => false,
    }
}
