//! Copies a console in both directions without slowing the guest down.
//!
//! QEMU blocks a guest's serial port if its output is not read, and a kernel that prints waits for its console. Therefore
//! the guest's output is always read. Output that the client does not read in time is skipped, and the gap is marked. The
//! console log contains all of it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use waifud_hypervisor::ByteStream;

/// Bytes read from a guest at once.
const CHUNK: usize = 4 << 10;
/// Chunks that may wait for the client: 1 MiB.
const QUEUE: usize = 256;

const TAKEN: &str = "\r\n[waifud: another client opened this console]\r\n";

/// Copies until either side ends, or another client takes the console over.
pub(super) async fn copy(
    guest: Box<dyn ByteStream>,
    wire: Box<dyn ByteStream>,
    taken: &CancellationToken,
) {
    let (mut guest_out, mut guest_in) = tokio::io::split(guest);
    let (mut wire_in, mut wire_out) = tokio::io::split(wire);
    let (queue, mut queued) = mpsc::channel::<Vec<u8>>(QUEUE);
    let read = async move {
        let mut skipped = 0_u64;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match guest_out.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            let mut chunk = Vec::with_capacity(count);
            if skipped > 0 {
                chunk.extend_from_slice(gap(skipped).as_bytes());
            }
            chunk.extend_from_slice(buffer.get(..count).unwrap_or_default());
            skipped = match queue.try_send(chunk) {
                Ok(()) => 0,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    skipped + u64::try_from(count).unwrap_or(0)
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            };
        }
    };
    let write = async {
        // Ends when the reader has gone and everything is written.
        while let Some(chunk) = queued.recv().await {
            if wire_out.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    let flow = async { tokio::join!(read, write) };
    let type_in = async {
        let _ended = tokio::io::copy(&mut wire_in, &mut guest_in).await;
    };
    let was_taken = tokio::select! {
        _ = flow => false,
        () = type_in => false,
        () = taken.cancelled() => true,
    };
    if was_taken {
        let _gone_already = wire_out.write_all(TAKEN.as_bytes()).await;
    }
    let _gone_already = wire_out.shutdown().await;
}

fn gap(bytes: u64) -> String {
    format!("\r\n[waifud: {bytes} bytes were skipped; waifuctl logs shows them]\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_client_that_does_not_read_never_blocks_the_guest() {
        let (mut guest, device) = tokio::io::duplex(CHUNK);
        let (mut client, wire) = tokio::io::duplex(CHUNK);
        let token = CancellationToken::new();
        let task = tokio::spawn(async move {
            copy(Box::new(device), Box::new(wire), &token).await;
        });
        // Far more than all buffers hold, while the other end does not read.
        let all = (QUEUE + 64) * CHUNK;
        let line = vec![b'x'; CHUNK];
        let print = async {
            for _ in 0..all / CHUNK {
                guest.write_all(&line).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_mins(1), print)
            .await
            .expect("the guest was blocked");
        // Reading now returns what was kept, and a mark for the gap.
        let mut got = Vec::new();
        let mut buffer = vec![0; CHUNK];
        let mut marked = false;
        while !marked {
            let count = client.read(&mut buffer).await.unwrap();
            got.extend_from_slice(&buffer[..count]);
            // There is space again: the next output carries the mark.
            let _may_be_full =
                tokio::time::timeout(Duration::from_millis(1), guest.write_all(b"y")).await;
            marked = String::from_utf8_lossy(&got).contains("bytes were skipped");
            assert!(got.len() <= all, "nothing was marked");
        }
        drop(client);
        drop(guest);
        task.await.unwrap();
    }
}
