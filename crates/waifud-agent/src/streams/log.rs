//! Sends the console log: its last lines, and new output.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use waifud_api::stream::{RefusalReason, StreamRefusal};
use waifud_hypervisor::ByteStream;

use super::refusal::refusal;
use crate::{blocking, plain_file};

/// Bytes at the end of a log that are searched for its last lines. virtlogd starts a new file at 2 MiB.
const LOOK_BACK: u64 = 4 << 20;
/// Bytes read at once.
const CHUNK: usize = 32 << 10;
/// Between two checks of a followed log.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

/// An open log, positioned where reading starts.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    file: File,
    follow: bool,
}

/// Opens the log at its last `lines` lines.
pub(super) async fn open(path: PathBuf, lines: u32, follow: bool) -> Result<Tail, StreamRefusal> {
    let attempt = async {
        let mut file = open_plain(&path).await?;
        seek_to_last(&mut file, lines).await?;
        Ok(file)
    };
    match attempt.await {
        Ok(file) => Ok(Tail { path, file, follow }),
        Err(error) => {
            let error: io::Error = error;
            let reason = match error.kind() {
                io::ErrorKind::NotFound => RefusalReason::NoLog,
                _ => RefusalReason::Other,
            };
            Err(refusal(
                reason,
                format!("cannot read the console log: {error}"),
            ))
        }
    }
}

async fn open_plain(path: &Path) -> io::Result<File> {
    let path = path.to_owned();
    let file = blocking::on_a_thread(move || plain_file::open(&path)).await?;
    Ok(File::from_std(file))
}

async fn seek_to_last(file: &mut File, lines: u32) -> io::Result<()> {
    let length = file.metadata().await?.len();
    let from = length.saturating_sub(LOOK_BACK);
    file.seek(SeekFrom::Start(from)).await?;
    let mut bytes = Vec::new();
    (&mut *file)
        .take(length - from)
        .read_to_end(&mut bytes)
        .await?;
    let skip = u64::try_from(last_lines(&bytes, lines)).unwrap_or(0);
    file.seek(SeekFrom::Start(from + skip)).await?;
    Ok(())
}

/// The offset of the last `lines` lines. An unterminated last line counts as a line.
pub(super) fn last_lines(bytes: &[u8], lines: u32) -> usize {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if lines == 0 {
        return bytes.len();
    }
    let nth = usize::try_from(lines).unwrap_or(usize::MAX) - 1;
    let ends = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(nth).unwrap_or(0)
}

/// Sends the log. A followed log ends when the client disconnects.
pub(super) async fn send(mut tail: Tail, wire: Box<dyn ByteStream>) {
    let (mut gone, mut wire) = tokio::io::split(wire);
    let mut ignored = [0; 64];
    let disconnected =
        async { while gone.read(&mut ignored).await.is_ok_and(|count| count > 0) {} };
    let write = async {
        let mut checks = tokio::time::interval(FOLLOW_PERIOD);
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = tail.file.read(&mut buffer).await?;
            if count > 0 {
                wire.write_all(buffer.get(..count).unwrap_or_default())
                    .await?;
            } else if tail.follow {
                wire.flush().await?;
                checks.tick().await;
                tail.reopen_if_replaced().await?;
            } else {
                return io::Result::Ok(());
            }
        }
    };
    tokio::select! {
        ended = write => if let Err(error) = ended {
            tracing::debug!(%error, "a log stream failed");
        },
        () = disconnected => {}
    }
    let _gone_already = wire.shutdown().await;
}

pub(super) async fn send_bytes(bytes: &[u8], mut wire: Box<dyn ByteStream>) {
    if wire.write_all(bytes).await.is_ok() {
        let _gone_already = wire.shutdown().await;
    }
}

impl Tail {
    /// virtlogd renames a full log and starts a new one. Once the old one is read to its end, reading continues there.
    async fn reopen_if_replaced(&mut self) -> io::Result<()> {
        let now = match tokio::fs::symlink_metadata(&self.path).await {
            Ok(now) => now,
            // Between the two files, or the instance was deleted, which ends the stream elsewhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let open = self.file.metadata().await?;
        let at = self.file.stream_position().await?;
        if now.ino() != open.ino() {
            self.file = open_plain(&self.path).await?;
        } else if now.len() < at {
            self.file.seek(SeekFrom::Start(0)).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_kit::testing::temp_path;

    #[test]
    fn the_last_lines_are_found() {
        let text = b"a\nb\nc\n";
        assert_eq!(last_lines(text, 0), 6);
        assert_eq!(last_lines(text, 1), 4);
        assert_eq!(last_lines(text, 2), 2);
        assert_eq!(last_lines(text, 3), 0);
        assert_eq!(last_lines(text, 100), 0);
        assert_eq!(last_lines(b"a\nunended", 1), 2);
        assert_eq!(last_lines(b"", 5), 0);
    }

    #[tokio::test]
    async fn a_rotated_log_is_followed_into_the_new_file() {
        let (dir, path) = temp_path("console.log");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let tail = open(path.clone(), 1, true).await.unwrap();
        let (mut client, wire) = tokio::io::duplex(1024);
        let task = tokio::spawn(send(tail, Box::new(wire)));
        let mut buffer = [0; 4];
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"two\n");
        std::fs::rename(&path, dir.path().join("console.log.0")).unwrap();
        std::fs::write(&path, "new\n").unwrap();
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"new\n");
        drop(client);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_log_is_refused() {
        let refused = open("/nonexistent/console.log".into(), 1, false).await;
        assert_eq!(refused.unwrap_err().reason, RefusalReason::NoLog);
    }
}
