//! Gets images from other nodes that have them.
//!
//! waifud names the nodes and issues a ticket for each. What they send is worth nothing before the import has verified its
//! digest: if it is something else, the image is fetched from waifud from its beginning.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::time::timeout;
use waifud_api::agent::{ImageCopied, ImageTicket};
use waifud_api::node_to_node::ImageRequest;
use waifud_hypervisor::ByteStream;
use waifud_pki::NodePeer;
use waifud_types::{ByteSize, Digest, NodeId};

use super::avoided::Avoided;
use super::connect::connect;
use crate::interfaces::{ControlLink, Destination, LinkError, PeerNetwork, file_error};

/// Bytes that must arrive within [`SILENCE`]. A node that is slower does not delay the image: waifud may be faster.
const CHUNK: usize = 256 << 10;
/// Time for a [`CHUNK`].
const SILENCE: Duration = Duration::from_secs(35);

/// Images from other nodes.
pub(crate) struct PeerImages {
    link: Arc<dyn ControlLink>,
    peers: Arc<dyn PeerNetwork>,
    /// Nodes that have just failed to send an image.
    avoided: Avoided<NodeId>,
}

/// What other nodes have sent.
#[derive(Default, Debug)]
pub(crate) struct Fetched {
    /// Nodes that have sent a part of the file.
    pub sources: Vec<NodeId>,
    /// Whether the file is complete. It is not verified.
    pub is_complete: bool,
}

/// Why a node has not sent everything.
enum FetchError {
    /// The node's part.
    Source(String),
    /// This node's part.
    File(LinkError),
}

impl PeerImages {
    pub fn new(link: Arc<dyn ControlLink>, peers: Arc<dyn PeerNetwork>) -> Self {
        Self {
            link,
            peers,
            avoided: Avoided::default(),
        }
    }

    /// Appends what is missing of the image to the file, from one node after the other, as far as that is possible. Fails if the
    /// file cannot be written.
    pub async fn fetch(
        &self,
        image: Digest,
        size: ByteSize,
        to: Destination<'_>,
    ) -> Result<Fetched, LinkError> {
        let mut fetched = Fetched::default();
        let tickets = match self.link.image_tickets(image).await {
            Ok(tickets) => tickets,
            Err(error) => {
                tracing::debug!(%image, "no other node is asked for the image: {error}");
                return Ok(fetched);
            }
        };
        for source in tickets.sources {
            if self.avoided.is_avoided(&source.source) {
                continue;
            }
            let name = &source.source_name;
            let mut has_sent = false;
            let outcome = self.fetch_from(&source, size, to, &mut has_sent).await;
            if has_sent {
                fetched.sources.push(source.source);
            }
            match outcome {
                Ok(()) => {
                    tracing::info!(%image, "copied the image from node {name}");
                    fetched.is_complete = true;
                    return Ok(fetched);
                }
                Err(FetchError::File(error)) => return Err(error),
                Err(FetchError::Source(why)) => {
                    tracing::warn!(%image, "node {name} did not send the image: {why}");
                    self.avoided.avoid(source.source);
                }
            }
        }
        Ok(fetched)
    }

    /// What these nodes have sent was not the image.
    pub fn avoid(&self, sources: &[NodeId]) {
        for source in sources {
            self.avoided.avoid(*source);
        }
    }

    /// Tells waifud which node has sent the image. Only for the history: an error is logged.
    pub async fn tell(&self, image: Digest, source: NodeId) {
        let told = self.link.image_copied(image, ImageCopied { source }).await;
        if let Err(error) = told {
            tracing::debug!(%image, "waifud was not told where the image is from: {error}");
        }
    }

    async fn fetch_from(
        &self,
        source: &ImageTicket,
        size: ByteSize,
        to: Destination<'_>,
        has_sent: &mut bool,
    ) -> Result<(), FetchError> {
        let failed = |error: io::Error| FetchError::File(file_error(to.file, error));
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(false).write(true);
        let mut file = options.open(to.file).await.map_err(failed)?;
        let mut from = file.metadata().await.map_err(failed)?.len();
        if from >= size.bytes() {
            from = 0;
        }
        let node = NodePeer {
            node: source.source,
            key: source.source_key,
        };
        let ticket = source.ticket;
        let request = ImageRequest { ticket, from }.encode();
        let connected = connect(self.peers.as_ref(), node, &source.endpoints, &request);
        let (_, wire) = connected.await.map_err(FetchError::Source)?;
        file.set_len(from).await.map_err(failed)?;
        file.seek(io::SeekFrom::Start(from)).await.map_err(failed)?;
        let received = receive(wire, &mut file, from, size, to, has_sent).await;
        // What has arrived is kept for resuming.
        file.sync_all().await.map_err(failed)?;
        received
    }
}

/// Writes what arrives to the file until it has this size.
async fn receive(
    mut wire: Box<dyn ByteStream>,
    file: &mut File,
    from: u64,
    size: ByteSize,
    to: Destination<'_>,
    has_sent: &mut bool,
) -> Result<(), FetchError> {
    let mut buffer = vec![0; CHUNK];
    let mut at = from;
    (to.progress)(at);
    while at < size.bytes() {
        let missing = usize::try_from(size.bytes() - at).unwrap_or(CHUNK);
        let space = buffer.get_mut(..missing.min(CHUNK)).unwrap_or_default();
        let mut filled = 0;
        let filling = async {
            while let Some(rest) = space.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match wire.read(rest).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => filled += count,
                }
            }
            Ok::<_, io::Error>(())
        };
        let arrived = timeout(SILENCE, filling).await;
        let now = space.get(..filled).unwrap_or_default();
        *has_sent |= !now.is_empty();
        let written = file.write_all(now).await;
        written.map_err(|error| FetchError::File(file_error(to.file, error)))?;
        at += u64::try_from(filled).unwrap_or(0);
        (to.progress)(at);
        match arrived {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(FetchError::Source(error.to_string())),
            Err(_) => {
                let why = format!(
                    "it sends too slowly, or nothing for {} s",
                    SILENCE.as_secs()
                );
                return Err(FetchError::Source(why));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::sync::Mutex;

    use async_trait::async_trait;
    use waifud_api::agent::{ImageTickets, Ticket};
    use waifud_api::node_to_node::{REQUEST_LENGTH, encode_answer};
    use waifud_kit::sync::lock;

    use super::*;
    use crate::fake::FakeWaifud;
    use crate::interfaces::PeerListener;

    const SIZE: usize = 3000;

    /// A node that accepts requests, sends a part, and then neither sends nor ends anything.
    #[derive(Default)]
    struct Hanging(Mutex<usize>);

    #[async_trait]
    impl PeerNetwork for Hanging {
        async fn listen(&self) -> io::Result<Option<Box<dyn PeerListener>>> {
            Ok(None)
        }

        fn port_name(&self) -> String {
            String::new()
        }

        fn endpoints(&self, _own: IpAddr) -> Vec<SocketAddr> {
            Vec::new()
        }

        async fn connect(&self, _: SocketAddr, _: NodePeer) -> io::Result<Box<dyn ByteStream>> {
            *lock(&self.0) += 1;
            let (own, mut other) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let mut request = [0; REQUEST_LENGTH];
                other.read_exact(&mut request).await?;
                other.write_all(&encode_answer(None)).await?;
                other.write_all(&[1; SIZE / 3]).await?;
                std::future::pending::<()>().await;
                Ok::<_, io::Error>(())
            });
            Ok(Box::new(own))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_hangs_is_left_and_what_it_has_sent_is_kept() {
        let waifud = FakeWaifud::new();
        let node = NodeId::generate();
        waifud.set_image_ticket_issuer(Arc::new(move |_| ImageTickets {
            sources: vec![ImageTicket {
                ticket: Ticket::from_bytes([1; 32]),
                source: node,
                source_name: "alder".parse().unwrap(),
                source_key: Digest::of(b"key"),
                endpoints: vec![SocketAddr::from(([192, 0, 2, 1], 7374))],
            }],
        }));
        let peers = Arc::new(Hanging::default());
        let images = PeerImages::new(Arc::new(waifud), peers.clone());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("staged");
        let fetch = async || {
            let to = Destination {
                file: &file,
                progress: &|_| {},
            };
            let size = ByteSize(SIZE as u64);
            images.fetch(Digest::of(b"image"), size, to).await.unwrap()
        };
        let fetched = fetch().await;
        assert!(!fetched.is_complete);
        assert_eq!(fetched.sources, [node]);
        assert_eq!(std::fs::read(&file).unwrap(), [1; SIZE / 3]);
        // It is not asked again at once.
        assert_eq!(fetch().await.sources, []);
        assert_eq!(*lock(&peers.0), 1);
    }
}
