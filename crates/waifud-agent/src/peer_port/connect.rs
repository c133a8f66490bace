//! Connects to the peer port of another node, and sends it a request.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use waifud_api::node_to_node::{ANSWER_HEAD, REQUEST_LENGTH, refusal_length};
use waifud_hypervisor::ByteStream;
use waifud_pki::NodePeer;

use crate::interfaces::PeerNetwork;

/// Time for one address, handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// Addresses that are tried.
const ENDPOINTS: usize = 3;
/// Time for an answer: the other node may wait for the announcement of the ticket, and for a slow disk.
const ANSWER: Duration = Duration::from_secs(25);

/// Tries the addresses of the node one after another. A node that answers is not asked again.
pub(super) async fn connect(
    peers: &dyn PeerNetwork,
    node: NodePeer,
    endpoints: &[SocketAddr],
    request: &[u8; REQUEST_LENGTH],
) -> Result<(SocketAddr, Box<dyn ByteStream>), String> {
    let mut why = Vec::new();
    for at in endpoints.iter().take(ENDPOINTS) {
        match timeout(CONNECT, peers.connect(*at, node)).await {
            Ok(Ok(mut wire)) => {
                let asked = timeout(ANSWER, ask(&mut wire, request)).await;
                return match asked {
                    Ok(Ok(None)) => Ok((*at, wire)),
                    Ok(Ok(Some(refusal))) => Err(format!("{at} refused: {refusal}")),
                    Ok(Err(error)) => Err(format!("{at}: {error}")),
                    Err(_) => Err(format!("{at}: no answer")),
                };
            }
            Ok(Err(error)) => why.push(format!("{at}: {error}")),
            Err(_) => why.push(format!("{at}: no answer within {} s", CONNECT.as_secs())),
        }
    }
    Err(why.join("; "))
}

/// Sends the request. Returns the reason of a refusal.
async fn ask(
    wire: &mut Box<dyn ByteStream>,
    request: &[u8; REQUEST_LENGTH],
) -> io::Result<Option<String>> {
    wire.write_all(request).await?;
    wire.flush().await?;
    let mut head = [0; ANSWER_HEAD];
    wire.read_exact(&mut head).await?;
    let Some(length) = refusal_length(head).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let mut reason = vec![0; length];
    wire.read_exact(&mut reason).await?;
    let reason = String::from_utf8_lossy(&reason);
    // It is shown in the log.
    Ok(Some(reason.replace(char::is_control, " ")))
}
