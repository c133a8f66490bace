//! The person's terminal: raw while a console is open, and as it was afterwards, whatever happens.

use std::io::{IsTerminal, Read, Write};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Undoes what a program in the guest may have left: colours, a hidden cursor, cursor key mode, no wrapping, the
/// alternate screen, a scroll region, bracketed paste, line-drawing characters. Ends on the last row, so that what follows
/// overwrites nothing. The alternate screen is left by 1047: 1049 would also restore a cursor that was never saved.
const AS_IT_WAS: &[u8] =
    b"\x1b[0m\x1b[?25h\x1b[?1l\x1b[?7h\x1b[?1047l\x1b[?2004l\x1b(B\x0f\x1b>\x1b[r\x1b[9999;1H";

/// Bytes read from a person at once.
const CHUNK: usize = 4 << 10;

/// A terminal in raw mode: each key goes out as it is, Ctrl-C too. Dropping it brings the old mode back.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Switches the terminal on stdin; `None` where stdin is no terminal.
    pub fn enter() -> Result<Option<Self>, Failure> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |e: nix::Error| {
            Failure::internal("terminal", "the terminal can't be switched to raw mode").cause(&e)
        };
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // From here on, dropping it restores.
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

/// What is typed, until the end of stdin. A thread of its own reads: a read that waits must not hold up the end.
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

/// Writes to stdout as it is. Says whether somebody still reads.
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
    fn the_end_of_a_console_restores_no_cursor_and_goes_to_the_last_row() {
        let text = std::str::from_utf8(AS_IT_WAS).unwrap();
        let restores_a_cursor = ["\x1b[?1049l", "\x1b[?1048l", "\x1b8", "\x1b[u"];
        assert!(!restores_a_cursor.iter().any(|bad| text.contains(bad)));
        // Nothing moves the cursor after that; setting the scroll region does.
        assert!(text.ends_with("\x1b[r\x1b[9999;1H"));
    }
}
