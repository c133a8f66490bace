//! Reads a secret from the terminal without echo.

use std::io::IsTerminal;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use waifud_types::Secret;

use crate::failure::Failure;
use crate::terminal::typed;

/// A terminal without echo. Dropping it restores the previous mode.
struct Silent {
    before: Termios,
}

impl Silent {
    fn enter() -> nix::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        let guard = Self { before };
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &silent)?;
        Ok(guard)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _gone = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &self.before);
        eprintln!();
    }
}

/// Reads a line after `prompt`; `None` without a terminal.
pub async fn ask(prompt: &str) -> Result<Option<Secret<String>>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let silent = Silent::enter().map_err(|e| {
        Failure::internal("terminal", "cannot disable the terminal's echo").cause(&e)
    })?;
    eprint!("{prompt}");
    let mut keys = typed();
    let mut bytes = Vec::new();
    while !bytes.contains(&b'\n') {
        // Ctrl-C must not leave the terminal without echo.
        tokio::select! {
            more = keys.recv() => match more {
                Some(more) => bytes.extend(more),
                None => break,
            },
            _ = tokio::signal::ctrl_c() => {
                drop(silent);
                return Err(Failure::interrupted("nothing was changed"));
            }
        }
    }
    drop(silent);
    let line = bytes.split(|byte| *byte == b'\n').next();
    let text = String::from_utf8(line.unwrap_or_default().to_vec());
    Ok(text.ok().map(Secret::new))
}
