//! An agent's stream as the body of a response, for streams with data in one direction only.

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};

use super::broker::{AgentEnd, StreamPermit};
use super::guard::StreamGuard;
use super::{OpenStream, StreamLimits};

/// Bytes read from an agent at once.
const CHUNK: usize = 32 << 10;

/// An agent's stream as the body of a response. It ends with the stream, or when the guard closes it.
pub fn read_only(
    stream: OpenStream,
    limits: StreamLimits,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    struct Reading {
        reader: ReadHalf<AgentEnd>,
        // Kept open: the agent treats its end as a disconnect.
        _writer: WriteHalf<AgentEnd>,
        guard: StreamGuard,
        _permit: StreamPermit,
    }
    let (reader, writer) = tokio::io::split(stream.agent);
    let reading = Reading {
        reader,
        _writer: writer,
        guard: stream.guard,
        _permit: stream.permit,
    };
    futures::stream::unfold(reading, move |mut reading| async move {
        let mut buffer = vec![0; CHUNK];
        let read = tokio::select! {
            read = reading.reader.read(&mut buffer) => read,
            reason = reading.guard.closed() => {
                tracing::info!(reason = reason.reason(), "a log stream has ended");
                return None;
            }
            () = tokio::time::sleep(limits.idle) => return None,
        };
        match read {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                Some((Ok(Bytes::from(buffer)), reading))
            }
            Err(error) => Some((Err(error), reading)),
        }
    })
}
