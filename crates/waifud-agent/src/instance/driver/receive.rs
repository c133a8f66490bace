//! A pass of an instance that this node receives from another one. It has no domain yet, and nothing but its images and
//! disks is touched.

use std::sync::Mutex;

use waifud_api::agent::Receiving;
use waifud_kit::sync::lock;
use waifud_types::{ByteSize, ReceiveState};

use super::{Driver, Pass};
use crate::backoff::jittered;
use crate::control_link::record::{IncomingRecord, InstanceRecord};
use crate::control_link::table::View;
use crate::transfer::receive::receive;

impl Driver {
    pub(super) async fn receive(&mut self, view: &View, record: &IncomingRecord) -> Pass {
        let shared = self.shared.clone();
        let incoming = &record.incoming;
        let idle = Pass::Pause(jittered(shared.settings.timing.period));
        let blank = |state| Receiving {
            instance: incoming.id,
            epoch: incoming.epoch,
            state,
            done_bytes: ByteSize(0),
            total_bytes: ByteSize(0),
            reason: None,
            path: None,
        };
        if record.received {
            let received = Some(Receiving {
                path: self.copied,
                ..blank(ReceiveState::Received)
            });
            shared.reports.receiving(self.id, received);
            return idle;
        }
        let last = Mutex::new(blank(ReceiveState::Preparing));
        let work = receive(&shared, incoming, |now| {
            lock(&last).clone_from(&now);
            shared.reports.receiving(incoming.id, Some(now));
        });
        let done = self.unless_desired_state_changes(view.version, work).await;
        // The last report of the copy may be replaced in the outbox before it is sent.
        self.copied = lock(&last).path.or(self.copied);
        let failure = match done {
            None => return Pass::Again,
            Some(Ok(())) if !incoming.copy => {
                self.retry.reset();
                return idle;
            }
            Some(Ok(())) => match shared.table.complete_receive(self.id, view.version) {
                // The next pass reports it.
                Ok(()) => return Pass::Again,
                Err(error) => error.into(),
            },
            Some(Err(failure)) => failure,
        };
        tracing::warn!(instance = %self.id, "receiving the instance: {}", failure.message);
        let mut report = lock(&last).clone();
        report.reason = Some(failure.message);
        shared.reports.receiving(self.id, Some(report));
        Pass::Pause(self.retry.pause())
    }

    /// Deletes a part of a disk that waifud does not let this node receive any more. The disk is on the node that sent it.
    pub(super) async fn delete_partial_copy(&self, record: &InstanceRecord) {
        let held = self.shared.table.node().unconfirmed.is_some();
        if record.incoming.is_none() || held {
            return;
        }
        for pool in self.shared.pools.values() {
            for id in pool.incoming().await.unwrap_or_default() {
                if id.instance == self.id
                    && let Err(error) = pool.ensure_incoming_absent(&id).await
                {
                    tracing::warn!(instance = %self.id, %error, "cannot delete a partial copy");
                }
            }
        }
    }
}
