//! The tickets that waifud has issued for disks of this node.
//!
//! A ticket is valid once, for [`Ticket::VALID`], for one disk, and for one node with one key. It is announced over the watch
//! while the other node already connects, so it may arrive a moment later than the connection.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use waifud_api::agent::{Ticket, TicketOrder};
use waifud_api::node_to_node::DiskRequest;
use waifud_kit::sync::lock;
use waifud_pki::NodePeer;
use waifud_types::Digest;

/// Tickets that are valid at the same time, at most. waifud issues one for each transfer.
const MAX: usize = 256;

/// How long a connection waits for the announcement of its ticket.
const LATE: Duration = Duration::from_secs(3);

/// Why a ticket is refused. The other node is told less.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TicketError {
    /// It does not exist, was used, or has expired.
    #[error("the ticket is unknown, was used before, or has expired")]
    Unknown,
    /// Another node, or another key of the same node, has it.
    #[error("the ticket was issued to another node")]
    OtherNode,
    /// It is for another disk.
    #[error("the ticket is for another disk")]
    OtherDisk,
}

/// Tickets by their digests.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    valid: Mutex<HashMap<Digest, (TicketOrder, Instant)>>,
    arrived: Notify,
}

impl Tickets {
    /// Adds a ticket that waifud has announced.
    pub fn add(&self, order: TicketOrder) {
        let now = Instant::now();
        {
            let mut valid = lock(&self.valid);
            valid.retain(|_, (_, until)| now < *until);
            if valid.len() >= MAX {
                tracing::warn!("too many tickets at once; ignoring this one");
                return;
            }
            let valid_for = Duration::from_secs(order.valid_s).min(Ticket::VALID);
            valid.insert(order.ticket, (order, now + valid_for));
        }
        self.arrived.notify_waiters();
    }

    /// Uses the ticket of a request, which may still be on its way.
    pub async fn redeem(
        &self,
        request: &DiskRequest,
        by: NodePeer,
    ) -> Result<TicketOrder, TicketError> {
        let redeemed = async {
            loop {
                let arrived = self.arrived.notified();
                match self.redeem_now(request, by) {
                    Err(TicketError::Unknown) => arrived.await,
                    decided => return decided,
                }
            }
        };
        timeout(LATE, redeemed)
            .await
            .unwrap_or(Err(TicketError::Unknown))
    }

    /// An attempt of another node does not use the ticket up.
    fn redeem_now(&self, request: &DiskRequest, by: NodePeer) -> Result<TicketOrder, TicketError> {
        let digest = request.ticket.digest();
        let mut valid = lock(&self.valid);
        let (order, until) = *valid.get(&digest).ok_or(TicketError::Unknown)?;
        if Instant::now() >= until {
            return Err(TicketError::Unknown);
        }
        if (order.receiver, order.receiver_key) != (by.node, by.key) {
            return Err(TicketError::OtherNode);
        }
        valid.remove(&digest);
        if (order.instance, order.index) != (request.instance, request.index) {
            return Err(TicketError::OtherDisk);
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use waifud_types::{Epoch, InstanceId, NodeId};

    use super::*;

    fn issued() -> (TicketOrder, DiskRequest, NodePeer) {
        let ticket = Ticket::from_bytes([7; 32]);
        let instance = InstanceId::generate();
        let peer = NodePeer {
            node: NodeId::generate(),
            key: Digest::of(b"key"),
        };
        let order = TicketOrder {
            ticket: ticket.digest(),
            instance,
            epoch: Epoch(1),
            index: 0,
            receiver: peer.node,
            receiver_key: peer.key,
            valid_s: 3600,
        };
        let request = DiskRequest {
            ticket,
            instance,
            index: 0,
            from: 0,
        };
        (order, request, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_valid_once() {
        let (order, request, peer) = issued();
        let tickets = Tickets::default();
        tickets.add(order);
        assert_eq!(tickets.redeem(&request, peer).await, Ok(order));
        let again = tickets.redeem(&request, peer).await;
        assert_eq!(again, Err(TicketError::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_expires() {
        let (order, request, peer) = issued();
        let tickets = Tickets::default();
        tickets.add(order);
        tokio::time::advance(Ticket::VALID).await;
        let late = tickets.redeem(&request, peer).await;
        assert_eq!(late, Err(TicketError::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn other_nodes_and_other_keys_are_refused_and_do_not_use_the_ticket_up() {
        let (order, request, peer) = issued();
        let tickets = Tickets::default();
        tickets.add(order);
        let node = NodeId::generate();
        let key = Digest::of(b"another key");
        for other in [NodePeer { node, ..peer }, NodePeer { key, ..peer }] {
            let refused = tickets.redeem(&request, other).await;
            assert_eq!(refused, Err(TicketError::OtherNode));
        }
        assert_eq!(tickets.redeem(&request, peer).await, Ok(order));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_for_one_disk_is_none_for_another() {
        let (order, request, peer) = issued();
        let instance = InstanceId::generate();
        for other in [
            DiskRequest {
                index: 1,
                ..request
            },
            DiskRequest {
                instance,
                ..request
            },
        ] {
            let tickets = Tickets::default();
            tickets.add(order);
            let refused = tickets.redeem(&other, peer).await;
            assert_eq!(refused, Err(TicketError::OtherDisk));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_may_arrive_after_the_connection() {
        let (order, request, peer) = issued();
        let tickets = Tickets::default();
        let announce = async {
            tokio::time::sleep(LATE / 2).await;
            tickets.add(order);
        };
        let (redeemed, ()) = tokio::join!(tickets.redeem(&request, peer), announce);
        assert_eq!(redeemed, Ok(order));
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_tickets_is_limited_and_expired_ones_do_not_count() {
        let (order, ..) = issued();
        let tickets = Tickets::default();
        let add = |count: usize| {
            for number in 0..count {
                let ticket = Digest::of(&number.to_be_bytes());
                tickets.add(TicketOrder { ticket, ..order });
            }
        };
        add(MAX + 1);
        assert_eq!(lock(&tickets.valid).len(), MAX);
        tokio::time::advance(Ticket::VALID).await;
        add(1);
        assert_eq!(lock(&tickets.valid).len(), 1);
    }
}
