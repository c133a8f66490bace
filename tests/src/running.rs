//! waifuctl at work: what it has said by now, what is typed to it, how it ends; with pipes or at a terminal.

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

/// waifuctl at work; ended when dropped.
pub struct Running {
    child: Child,
    input: Box<dyn Write>,
    output: Receiver<Vec<u8>>,
    said: String,
    terminal: Option<OwnedFd>,
}

impl Running {
    /// Starts it with pipes.
    ///
    /// # Errors
    /// It can't be started.
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
            said: String::new(),
            terminal: None,
        })
    }

    /// Starts it at a terminal of its own.
    ///
    /// # Errors
    /// There is no terminal, or it can't be started.
    pub fn at_a_terminal(waifuctl: &Waifuctl, args: &[&str]) -> Result<Self> {
        let pty = openpty(None, None)?;
        let child = waifuctl
            .command(args)
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .spawn()?;
        let person = File::from(pty.master);
        Ok(Self {
            child,
            input: Box::new(person.try_clone()?),
            output: reading(person),
            said: String::new(),
            terminal: Some(pty.slave),
        })
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether its terminal passes every key on, instead of gathering lines.
    ///
    /// # Errors
    /// It has none.
    pub fn is_raw(&self) -> Result<bool> {
        let terminal = self.terminal.as_ref().context("no terminal")?;
        let flags = tcgetattr(terminal)?.local_flags;
        Ok(!flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
    }

    /// Types.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn types(&mut self, keys: &[u8]) -> Result<()> {
        self.input.write_all(keys)?;
        Ok(self.input.flush()?)
    }

    /// Everything it has said by the time that `text` is in it.
    ///
    /// # Errors
    /// It ended before, or says something else for too long.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let found = wait::until(&format!("{text:?}"), SOON, || {
            match self.output.try_recv() {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(TryRecvError::Disconnected) => anyhow::bail!("it ended"),
                Err(TryRecvError::Empty) => {}
            }
            Ok(self.said.contains(text).then(|| self.said.clone()))
        });
        found.with_context(|| format!("it said {:?}", self.said))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Its exit code is another, or it does not end.
    pub fn ends_with(&mut self, code: i32) -> Result<()> {
        let status = wait::until("waifuctl to end", SOON, || Ok(self.child.try_wait()?))?;
        ensure!(status.code() == Some(code), "it ended with {status}");
        Ok(())
    }
}

/// What comes out of it, from a thread that ends with it.
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
