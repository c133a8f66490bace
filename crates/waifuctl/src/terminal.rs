//! The user's terminal: in raw mode while a console is open, always restored afterwards.

use std::io::{IsTerminal, Read, Write};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Resets modes that a program in the guest may have set: colors, a hidden cursor, cursor key mode, no wrapping, the
/// alternate screen, a scroll region, bracketed paste, line-drawing characters. Ends on the last row, so that nothing
/// is overwritten. The alternate screen is left with 1047, since 1049 would also restore a cursor that was never
/// saved.
const AS_IT_WAS: &[u8] =
    b"\x1b[0m\x1b[?25h\x1b[?1l\x1b[?7h\x1b[?1047l\x1b[?2004l\x1b(B\x0f\x1b>\x1b[r\x1b[9999;1H";

/// Maximum number of bytes per read.
const CHUNK: usize = 4 << 10;

/// A terminal in raw mode, which passes all keys including Ctrl-C. Dropping it restores the previous mode.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Switches the terminal on stdin; `None` if stdin is not a terminal.
    pub fn enter() -> Result<Option<Self>, Failure> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |e: nix::Error| {
            Failure::internal("terminal", "cannot switch the terminal to raw mode").cause(&e)
        };
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // From here on, dropping the value restores the mode.
        let guard = Self { before };
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Some(guard))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let mut stdout = std::io::stdout();
        if stdout.is_terminal() {
            let _gone = stdout.write_all(AS_IT_WAS).and_then(|()| stdout.flush());
        }
        let _gone = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &self.before);
    }
}

/// Input until the end of stdin, read in a separate thread so that a blocked read does not delay the exit.
pub fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        while let Ok(count) = stdin.read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default().to_vec();
            if count == 0 || sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Writes raw bytes to stdout. Returns false if the reader has closed it.
pub fn write(bytes: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_a_console_moves_to_the_last_row_without_restoring_a_cursor() {
        let text = std::str::from_utf8(AS_IT_WAS).unwrap();
        let restores_a_cursor = ["\x1b[?1049l", "\x1b[?1048l", "\x1b8", "\x1b[u"];
        assert!(!restores_a_cursor.iter().any(|bad| text.contains(bad)));
        // Setting the scroll region moves the cursor, so it must come before.
        assert!(text.ends_with("\x1b[r\x1b[9999;1H"));
    }
}
