//! Opening a stream: everything that can go wrong does so here, before the connection becomes something else.

use waifud_api::stream::StreamKind;

use super::broker::{AgentEnd, Place, Target};
use super::guard::StreamGuard;
use crate::auth::holdings::Kind;
use crate::instances::find;
use crate::instances::problems as instance_problems;
use crate::streams::problems as stream_problems;
use crate::{Control, ControlError, Principal};

/// A stream whose agent has come.
#[derive(Debug)]
pub struct OpenStream {
    /// The agent's end.
    pub agent: AgentEnd,
    /// What keeps it open.
    pub gate: StreamGuard,
    pub(super) place: Place,
}

impl Control {
    /// Opens a stream to an instance; ends when the node's agent has come, or with the problem that it did not.
    pub(crate) async fn open_stream(
        &self,
        name_or_id: &str,
        kind: StreamKind,
        asker: Principal,
    ) -> Result<OpenStream, ControlError> {
        let wanted = name_or_id.to_owned();
        let row = self.shared.store.read(move |tx| find(&tx, &wanted)).await?;
        if row.deleting {
            return Err(instance_problems::deleting(&row.name).into());
        }
        let Some(node) = row.node else {
            return Err(stream_problems::not_running(&row.name, row.status.state).into());
        };
        if !row.node_reachable {
            return Err(stream_problems::node_unreachable().into());
        }
        if !kind.is_history() && !row.status.state.may_be_on() {
            return Err(stream_problems::not_running(&row.name, row.status.state).into());
        }
        let target = Target {
            node,
            instance: row.id,
            epoch: row.epoch,
            kind,
        };
        let limits = &self.shared.config.streams;
        let held = self.shared.tokens.holdings.take(&asker, Kind::Stream)?;
        let place = self.shared.streams.place(row.id, limits, held)?;
        let agent = self
            .shared
            .streams
            .call(target, &*self.shared.entropy, limits)
            .await?;
        tracing::info!(instance = %row.name, kind = kind.as_str(), by = asker.name, from = asker.from, "a stream opens");
        Ok(OpenStream {
            agent,
            gate: StreamGuard::new(self, target, asker),
            place,
        })
    }
}
