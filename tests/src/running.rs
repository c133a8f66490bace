//! A running waifuctl, with pipes or a terminal: its output so far, its input, and its exit code.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use anyhow::{Context, Result, ensure};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use waifud_lab::wait;

use crate::Waifuctl;
use crate::world::SOON;

/// A running waifuctl, which is killed when dropped.
pub struct Running {
    child: Child,
    input: Box<dyn Write>,
    output: Receiver<Vec<u8>>,
    printed: String,
    terminal: Option<OwnedFd>,
}

impl Running {
    /// Starts it with pipes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(waifuctl: &Waifuctl, args: &[&str]) -> Result<Self> {
        let mut child = waifuctl
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self {
            child,
            input: Box::new(stdin),
            output: reading(stdout),
            printed: String::new(),
            terminal: None,
        })
    }

    /// Starts it in a new terminal.
    ///
    /// # Errors
    /// The terminal cannot be opened, or waifuctl cannot be started.
    pub fn at_a_terminal(waifuctl: &Waifuctl, args: &[&str]) -> Result<Self> {
        let pty = openpty(None, None)?;
        let child = waifuctl
            .command(args)
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .spawn()?;
        let user = File::from(pty.master);
        Ok(Self {
            child,
            input: Box::new(user.try_clone()?),
            output: reading(user),
            printed: String::new(),
            terminal: Some(pty.slave),
        })
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether its terminal is in raw mode.
    ///
    /// # Errors
    /// It has no terminal.
    pub fn is_raw(&self) -> Result<bool> {
        let terminal = self.terminal.as_ref().context("no terminal")?;
        let flags = tcgetattr(terminal)?.local_flags;
        Ok(!flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
    }

    /// Sends input.
    ///
    /// # Errors
    /// Its input is closed.
    pub fn types(&mut self, keys: &[u8]) -> Result<()> {
        self.input.write_all(keys)?;
        Ok(self.input.flush()?)
    }

    /// Waits until its output contains `text`, and returns the whole output so far.
    ///
    /// # Errors
    /// It ended before that, or `text` does not appear in time.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let found = wait::until(&format!("{text:?}"), SOON, || {
            match self.output.try_recv() {
                Ok(bytes) => self.printed.push_str(&String::from_utf8_lossy(&bytes)),
                Err(TryRecvError::Disconnected) => anyhow::bail!("it ended"),
                Err(TryRecvError::Empty) => {}
            }
            Ok(self.printed.contains(text).then(|| self.printed.clone()))
        });
        found.with_context(|| format!("its output was {:?}", self.printed))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It exits with another code, or does not end.
    pub fn ends_with(&mut self, code: i32) -> Result<()> {
        let status = wait::until("waifuctl to end", SOON, || Ok(self.child.try_wait()?))?;
        ensure!(status.code() == Some(code), "it ended with {status}");
        Ok(())
    }
}

/// Its output, which a thread reads until its end.
fn reading(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, output) = channel();
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut part) {
            let bytes = part.iter().take(count).copied().collect();
            if sender.send(bytes).is_err() {
                return;
            }
        }
    });
    output
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}
