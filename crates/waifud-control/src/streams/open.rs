//! Opens a stream. All errors occur here, before the connection is upgraded.

use waifud_api::hint::HintKind;
use waifud_api::stream::StreamKind;

use super::broker::{AgentEnd, StreamPermit, StreamTarget};
use super::guard::StreamGuard;
use crate::auth::holdings::Kind;
use crate::instances::find;
use crate::instances::problems as instance_problems;
use crate::streams::problems as stream_problems;
use crate::{Control, ControlError, Principal};

/// A stream with a connected agent.
#[derive(Debug)]
pub struct OpenStream {
    /// The agent's connection.
    pub agent: AgentEnd,
    /// Decides when the stream has to close.
    pub guard: StreamGuard,
    /// The place in the count of open streams.
    pub permit: StreamPermit,
}

impl Control {
    /// Opens a stream to an instance, and waits until the node's agent has connected.
    pub(crate) async fn open_stream(
        &self,
        name_or_id: &str,
        kind: StreamKind,
        caller: Principal,
    ) -> Result<OpenStream, ControlError> {
        let wanted = name_or_id.to_owned();
        let row = self.store().read(move |tx| find(&tx, &wanted)).await?;
        if row.deleting {
            return Err(instance_problems::deleting(&row.name).into());
        }
        let Some(node) = row.node else {
            return Err(stream_problems::not_running(&row.name, row.status.state).into());
        };
        if !row.owner.reachable {
            return Err(stream_problems::node_unreachable().into());
        }
        if !kind.is_history() && !row.status.state.may_be_on() {
            return Err(stream_problems::not_running(&row.name, row.status.state).into());
        }
        let target = StreamTarget {
            node,
            instance: row.id,
            epoch: row.epoch,
            kind,
        };
        let limits = &self.config().streams;
        let held = self.token_state().hold(&caller, Kind::Stream)?;
        let permit = self.stream_broker().acquire(row.id, limits, held)?;
        let agent = self
            .stream_broker()
            .request(target, self.entropy(), limits)
            .await
            .map_err(|problem| problem.about(HintKind::Instance, row.name.as_str()))?;
        tracing::info!(instance = %row.name, kind = kind.as_str(), by = caller.name, from = caller.from, "a stream was opened");
        Ok(OpenStream {
            agent,
            guard: StreamGuard::new(self, target, caller),
            permit,
        })
    }
}
