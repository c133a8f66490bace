//! The log of a program or of a test's thread, as the test reads it.

use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::Dispatch;
use tracing::dispatcher::{DefaultGuard, set_default, set_global_default};
use tracing::subscriber::NoSubscriber;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::sync::lock;

/// While there is a second dispatcher, tracing asks all of them whether a line is wanted. With a single one, it asks only that
/// of the thread that reaches the line first, which may be the thread of another test, and remembers the answer.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));

/// The written lines. Clones share them.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.0)).into_owned()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes everything, at any level, to the lines.
fn dispatch(lines: Lines) -> Dispatch {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || lines.clone())
        .finish();
    Dispatch::new(subscriber)
}

/// Everything that this thread logs at any level while this exists. What a test starts on a runtime with one thread runs on
/// its thread.
#[derive(Debug)]
pub struct CapturedLog {
    lines: Lines,
    _until_dropped: DefaultGuard,
}

impl CapturedLog {
    /// Captures the log from now on.
    #[must_use]
    pub fn begin() -> Self {
        LazyLock::force(&SECOND);
        let lines = Lines::default();
        Self {
            _until_dropped: set_default(&dispatch(lines.clone())),
            lines,
        }
    }

    /// What has been logged.
    pub fn text(&self) -> String {
        self.lines.text()
    }
}

/// Everything that the process logs at any level, for a test that is alone in its program.
#[derive(Debug)]
pub struct CapturedProcessLog(Lines);

impl CapturedProcessLog {
    /// Captures the log from now on.
    ///
    /// # Panics
    /// The process already has a global subscriber.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "only tests call it, and they stop at the first surprise"
    )]
    pub fn begin() -> Self {
        let lines = Lines::default();
        set_global_default(dispatch(lines.clone())).expect("a process has one global subscriber");
        Self(lines)
    }

    /// What has been logged.
    pub fn text(&self) -> String {
        self.0.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_this_thread_are_captured_until_the_end() {
        let log = CapturedLog::begin();
        tracing::trace!("of this thread");
        let other = std::thread::spawn(|| tracing::error!("of another thread"));
        other.join().unwrap();
        let text = log.text();
        assert!(text.contains("of this thread"), "{text}");
        assert!(!text.contains("another"), "{text}");
        drop(log);
        let next = CapturedLog::begin();
        assert_eq!(next.text(), "");
    }
}
