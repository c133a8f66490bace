//! `waifuctl login` in a terminal: it asks whether the CA is the right one, and for the token.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::*;

/// Longer than any step of these tests takes. A test that reaches it has failed.
const DEADLINE: Duration = Duration::from_mins(1);

/// A waifuctl in a terminal of its own.
struct Terminal {
    child: Child,
    user: File,
    slave: OwnedFd,
    output: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        // Children of other tests must not inherit it.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = world.command(arguments);
        command.stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().unwrap();
        let user = File::from(pty.master);
        let mut reader = user.try_clone().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut part) {
                if sender.send(part[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            user,
            slave: pty.slave,
            output,
            shown: String::new(),
        }
    }

    /// Reads what it shows for a moment; returns whether there may be more.
    fn read(&mut self) -> bool {
        match self.output.recv_timeout(Duration::from_millis(10)) {
            Ok(bytes) => self.shown.push_str(&text(&bytes)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    /// Waits until it has shown this text.
    fn until(&mut self, part: &str) {
        let begun = Instant::now();
        while !self.shown.contains(part) {
            assert!(begun.elapsed() < DEADLINE, "no {part:?}: {}", self.shown);
            self.read();
        }
    }

    /// Waits until the terminal does not show what the user types.
    fn until_silent(&mut self) {
        let begun = Instant::now();
        let echo = |terminal: &OwnedFd| {
            let flags = tcgetattr(terminal).unwrap().local_flags;
            flags.contains(LocalFlags::ECHO)
        };
        while echo(&self.slave) {
            assert!(begun.elapsed() < DEADLINE, "it echoes: {}", self.shown);
            self.read();
        }
    }

    fn types(&mut self, line: &str) {
        self.user.write_all(line.as_bytes()).unwrap();
        self.user.write_all(b"\n").unwrap();
    }

    /// Waits for its end; returns its exit code and all that it showed.
    fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < DEADLINE, "no end: {}", self.shown);
            self.read();
        };
        // Without anyone at its other side, the terminal ends after what was written to it.
        drop(self.slave);
        loop {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&text(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the terminal does not end: {}", self.shown)
                }
            }
        }
        (status.code(), self.shown)
    }
}

/// The fingerprint as openssl prints it.
fn fingerprint(world: &World) -> String {
    let hex = world.ca.fingerprint().hex().to_uppercase();
    let pairs = hex.as_bytes().chunks(2).map(text);
    pairs.collect::<Vec<_>>().join(":")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_a_terminal_shows_the_fingerprint_and_stores_nothing_unless_it_is_confirmed() {
    let world = World::start().await;
    let token = world.token("laptop", "viewer").await;
    let file = world.path(".config/waifud/contexts.toml");
    let url = world.url();
    let login = ["login", &url, "--name", "home"];
    let question = "Is it the same [y/N]?";
    tokio::task::block_in_place(|| {
        for answer in ["n", ""] {
            let mut refused = Terminal::start(&world, &login);
            refused.until(question);
            assert!(
                refused.shown.contains(&fingerprint(&world)),
                "{}",
                refused.shown
            );
            refused.types(answer);
            let (code, shown) = refused.end();
            assert_eq!(code, Some(1), "{shown}");
            assert!(shown.contains("was not confirmed"), "{shown}");
            assert!(!file.exists());
        }
        let mut confirmed = Terminal::start(&world, &login);
        confirmed.until(question);
        confirmed.types("y");
        confirmed.until("Token (");
        confirmed.until_silent();
        confirmed.types(&token);
        let (code, shown) = confirmed.end();
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("home: logged in to"), "{shown}");
        assert!(!shown.contains(&token), "the token was echoed");
    });
    assert!(ok(&world.run(&[], &["list"], "").await).starts_with("NAME"));
}
