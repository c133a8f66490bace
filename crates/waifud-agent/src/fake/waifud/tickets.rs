//! Tickets, with which nodes copy disks and images from each other.

use waifud_api::agent::{ImageTicketOrder, TicketOrder};
use waifud_kit::sync::lock;
use waifud_types::{Digest, NodeId};

use super::{Change, FakeWaifud, ImageTicketIssuer, TicketIssuer};

impl FakeWaifud {
    /// Sets who issues tickets for disks. Without one, they are refused.
    pub fn set_ticket_issuer(&self, issuer: TicketIssuer) {
        lock(&self.state).tickets = Some(issuer);
    }

    /// Sets who issues tickets for images. Without one, there are none.
    pub fn set_image_ticket_issuer(&self, issuer: ImageTicketIssuer) {
        lock(&self.state).image_tickets = Some(issuer);
    }

    /// The images that the node says it has got from another node, and from which.
    pub fn images_copied(&self) -> Vec<(Digest, NodeId)> {
        lock(&self.state).copied.clone()
    }

    /// Whether the node is connected. A ticket that is announced before reaches no node.
    pub fn is_watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    /// Announces a ticket for an image to the node.
    pub fn announce_image_ticket(&self, order: ImageTicketOrder) {
        self.change(Change::ImageTicket(order), |_| ());
    }

    /// Announces a ticket to the node.
    pub fn announce_ticket(&self, order: TicketOrder) {
        self.change(Change::Ticket(order), |_| ());
    }
}
