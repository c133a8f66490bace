//! Tickets for images: from which other nodes a node may get an image.

use waifud_api::agent::{ImageTicket, ImageTicketOrder, ImageTickets, Ticket, WatchFrame};
use waifud_pki::NodePeer;
use waifud_types::Digest;
use waifud_types::node::{NodeFacts, feature};

use crate::{Control, ControlError, problems};

/// Nodes that a node is told of, at most. Each of them gets an order.
const SOURCES: usize = 3;

impl Control {
    /// Issues tickets for an image to a node that needs it, and announces them to the nodes that have it. Refused as the image
    /// itself is. Without such a node, there are no tickets.
    pub(crate) async fn issue_image_tickets(
        &self,
        receiver: NodePeer,
        image: Digest,
    ) -> Result<ImageTickets, ControlError> {
        let mut start = [0; 8];
        self.entropy().fill(&mut start);
        let start = u64::from_be_bytes(start);
        let contacts = self.contacts();
        let candidates = self.store().read(move |tx| {
            if !tx.image_is_on(image, receiver.node)? {
                return Err(problems::not_found("image", &image.to_string()).into());
            }
            let mut sources = Vec::new();
            for capacity in tx.node_capacities()? {
                let node = capacity.node;
                if node.id != receiver.node && sends(&node.facts, image) {
                    sources.extend(tx.node_key(node.id)?.map(|key| (node, key.key)));
                }
            }
            Ok::<_, ControlError>(sources)
        });
        let mut candidates = candidates.await?;
        candidates.retain(|(node, _)| contacts.is_reachable(node.id));
        if !candidates.is_empty() {
            // Nodes that need an image at the same time do not all ask the same one.
            let at = start % u64::try_from(candidates.len()).unwrap_or(1);
            candidates.rotate_left(usize::try_from(at).unwrap_or(0));
        }
        let mut tickets = ImageTickets::default();
        for (node, key) in candidates.into_iter().take(SOURCES) {
            let mut bytes = [0; 32];
            self.entropy().fill(&mut bytes);
            let ticket = Ticket::from_bytes(bytes);
            let order = ImageTicketOrder {
                ticket: ticket.digest(),
                image,
                receiver: receiver.node,
                receiver_key: receiver.key,
                valid_s: Ticket::VALID.as_secs(),
            };
            let announced = self
                .stream_broker()
                .announce(node.id, WatchFrame::ImageTicket(order));
            if announced.is_err() {
                continue;
            }
            tickets.sources.push(ImageTicket {
                ticket,
                source: node.id,
                source_name: node.name,
                source_key: key,
                endpoints: node.facts.peer_port.unwrap_or_default().endpoints,
            });
        }
        Ok(tickets)
    }
}

/// Whether a node can send the image: it has it, and listens. A node whose pool does not have the published bytes, because an earlier
/// version converted them, refuses.
fn sends(facts: &NodeFacts, image: Digest) -> bool {
    let listens = facts
        .peer_port
        .as_ref()
        .is_some_and(|port| !port.endpoints.is_empty());
    let has = facts.pools.iter().any(|pool| {
        let images = pool.images.as_deref().unwrap_or_default();
        images.contains(&image)
    });
    listens && has && facts.has(feature::PEER_IMAGES)
}
