//! The tickets that waifud has issued for disks and images of this node.
//!
//! A ticket is valid once, for [`Ticket::VALID`], for one disk or image, and for one node with one key. It is announced over the watch
//! while the other node already connects, so it may arrive a moment later than the connection.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use waifud_api::agent::{ImageTicketOrder, Ticket, TicketOrder};
use waifud_api::node_to_node::PeerRequest;
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
    /// It is for another disk, or for an image.
    #[error("the ticket is for something else")]
    OtherObject,
}

/// What a ticket was issued for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Disk(TicketOrder),
    Image(ImageTicketOrder),
}

impl From<TicketOrder> for Order {
    fn from(order: TicketOrder) -> Self {
        Self::Disk(order)
    }
}

impl From<ImageTicketOrder> for Order {
    fn from(order: ImageTicketOrder) -> Self {
        Self::Image(order)
    }
}

impl Order {
    /// The digest of the ticket, and for how many seconds it is valid.
    fn ticket(&self) -> (Digest, u64) {
        match self {
            Self::Disk(order) => (order.ticket, order.valid_s),
            Self::Image(order) => (order.ticket, order.valid_s),
        }
    }

    fn receiver(&self) -> NodePeer {
        let (node, key) = match self {
            Self::Disk(order) => (order.receiver, order.receiver_key),
            Self::Image(order) => (order.receiver, order.receiver_key),
        };
        NodePeer { node, key }
    }

    fn is_for(&self, request: &PeerRequest) -> bool {
        match (self, request) {
            (Self::Disk(order), PeerRequest::Disk(request)) => {
                (order.instance, order.index) == (request.instance, request.index)
            }
            // The order says which image.
            (Self::Image(_), PeerRequest::Image(_)) => true,
            (Self::Disk(_), PeerRequest::Image(_)) | (Self::Image(_), PeerRequest::Disk(_)) => {
                false
            }
        }
    }
}

/// Tickets by their digests.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    valid: Mutex<HashMap<Digest, (Order, Instant)>>,
    arrived: Notify,
}

impl Tickets {
    /// Adds a ticket that waifud has announced.
    pub fn add(&self, order: impl Into<Order>) {
        let order = order.into();
        let now = Instant::now();
        {
            let mut valid = lock(&self.valid);
            valid.retain(|_, (_, until)| now < *until);
            if valid.len() >= MAX {
                tracing::warn!("too many tickets at once; ignoring this one");
                return;
            }
            let (ticket, valid_s) = order.ticket();
            let valid_for = Duration::from_secs(valid_s).min(Ticket::VALID);
            valid.insert(ticket, (order, now + valid_for));
        }
        self.arrived.notify_waiters();
    }

    /// Uses the ticket of a request, which may still be on its way.
    pub async fn redeem(&self, request: &PeerRequest, by: NodePeer) -> Result<Order, TicketError> {
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
    fn redeem_now(&self, request: &PeerRequest, by: NodePeer) -> Result<Order, TicketError> {
        let digest = request.ticket().digest();
        let mut valid = lock(&self.valid);
        let (order, until) = *valid.get(&digest).ok_or(TicketError::Unknown)?;
        if Instant::now() >= until {
            return Err(TicketError::Unknown);
        }
        if order.receiver() != by {
            return Err(TicketError::OtherNode);
        }
        valid.remove(&digest);
        if !order.is_for(request) {
            return Err(TicketError::OtherObject);
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use waifud_api::node_to_node::{DiskRequest, ImageRequest};
    use waifud_types::{Epoch, InstanceId, NodeId};

    use super::*;

    fn issued() -> (Order, PeerRequest, NodePeer) {
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
        (order.into(), PeerRequest::Disk(request), peer)
    }

    /// The disk's ticket and request, as they are for an image.
    fn of_image(order: Order, request: PeerRequest) -> (Order, PeerRequest) {
        let (Order::Disk(order), PeerRequest::Disk(request)) = (order, request) else {
            panic!("not of a disk");
        };
        let order = ImageTicketOrder {
            ticket: order.ticket,
            image: Digest::of(b"image"),
            receiver: order.receiver,
            receiver_key: order.receiver_key,
            valid_s: order.valid_s,
        };
        let (ticket, from) = (request.ticket, request.from);
        let request = PeerRequest::Image(ImageRequest { ticket, from });
        (order.into(), request)
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
        let PeerRequest::Disk(disk) = request else {
            panic!("not of a disk");
        };
        let (image, of_image) = of_image(order, request);
        for (order, other) in [
            (order, PeerRequest::Disk(DiskRequest { index: 1, ..disk })),
            (order, PeerRequest::Disk(DiskRequest { instance, ..disk })),
            (order, of_image),
            (image, request),
        ] {
            let tickets = Tickets::default();
            tickets.add(order);
            let refused = tickets.redeem(&other, peer).await;
            assert_eq!(refused, Err(TicketError::OtherObject));
        }
        let tickets = Tickets::default();
        tickets.add(image);
        assert_eq!(tickets.redeem(&of_image, peer).await, Ok(image));
        let again = tickets.redeem(&of_image, peer).await;
        assert_eq!(again, Err(TicketError::Unknown));
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
        let (Order::Disk(order), ..) = issued() else {
            panic!("not of a disk");
        };
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
