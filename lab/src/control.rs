//! The protocols of a node's supervisor and of the guard: one line of JSON in each direction over a unix socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A supervisor answers at once. A client that does not send or read its line within this time is disconnected.
const LIMIT: Duration = Duration::from_secs(5);
const LONGEST_LINE: u64 = 64 * 1024;

/// A request to a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// List the services.
    Status,
    /// Send a signal to a service's process. A service that ends is restarted.
    Kill {
        /// Its name in [`ServiceStatus`].
        service: String,
        /// The number of the signal, as in `signal(7)`.
        signal: i32,
    },
    /// Send SIGTERM, then start it again at once.
    Restart {
        /// Its name in [`ServiceStatus`].
        service: String,
    },
    /// Send SIGTERM, and keep it stopped until [`Request::Start`].
    Stop {
        /// Its name in [`ServiceStatus`].
        service: String,
    },
    /// Start a stopped service, or end its back-off.
    Start {
        /// Its name in [`ServiceStatus`].
        service: String,
    },
}

/// The answer.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// All services, in start order.
    Services(Vec<ServiceStatus>),
    /// The request succeeded.
    Done,
    /// The request failed, with the reason.
    Refused(String),
}

/// The state of a service.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Waits for an earlier service to be ready.
    Waiting,
    /// Has a process that is not ready yet.
    Starting,
    /// Has a process that is ready.
    Ready,
    /// Ended, and waits before the next start.
    BackingOff,
    /// Was stopped on request.
    Stopped,
}

/// One service.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ServiceStatus {
    /// `virtlogd`, `libvirtd`, `waifud`, `waifud-metadatad`, `waifud-agentd`.
    pub name: String,
    /// Its state.
    pub state: ServiceState,
    /// The PID of its process inside the node.
    pub pid: Option<i32>,
    /// How often it was restarted.
    pub restarts: u32,
}

/// The socket of the node `name` in the lab's directory `dir`.
pub(crate) fn socket(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.ctl"))
}

/// Listens on `socket`, for root only. A socket that an ended process left is replaced.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener> {
    let bind = || {
        if let Err(error) = std::fs::remove_file(socket)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().with_context(|| format!("cannot listen on {}", socket.display()))
}

/// Sends a request to the node `name` of the lab in `dir`.
///
/// # Errors
/// The node does not answer, or refuses the request.
pub fn ask(dir: &Path, name: &str, request: &Request) -> Result<Reply> {
    match exchange(&socket(dir, name), name, request, LIMIT)? {
        Reply::Refused(reason) => bail!("{name}: {reason}"),
        reply => Ok(reply),
    }
}

/// Sends `question` to `socket`, on which `name` listens, and returns the answer, which takes at most `limit`.
pub(crate) fn exchange<A: DeserializeOwned>(
    socket: &Path,
    name: &str,
    question: &impl Serialize,
    limit: Duration,
) -> Result<A> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("{name} does not answer on {}", socket.display()))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(LIMIT))?;
    send(&stream, question)?;
    receive(&stream)
}

/// The other side of [`exchange`]: one question and one answer per connection.
pub(crate) fn serve<Q: DeserializeOwned, A: Serialize>(
    stream: &UnixStream,
    answer: impl FnOnce(Q) -> A,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let question = receive(stream)?;
    send(stream, &answer(question))
}

fn send(mut stream: &UnixStream, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).context("cannot send the message")
}

fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE))
        .read_line(&mut line)
        .context("the other side did not answer")?;
    serde_json::from_str(&line).with_context(|| format!("cannot parse the message {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_its_reply_cross_the_socket() {
        let (here, there) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            serve(&there, |request: Request| match request {
                Request::Kill { service, signal: 9 } => Reply::Refused(service),
                _ => Reply::Done,
            })
        });
        let kill = Request::Kill {
            service: "waifud".into(),
            signal: 9,
        };
        send(&here, &kill).unwrap();
        assert_eq!(
            receive::<Reply>(&here).unwrap(),
            Reply::Refused("waifud".into())
        );
        server.join().unwrap().unwrap();
    }
}
