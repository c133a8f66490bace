//! The control socket of a link in a process of its own: one JSON object per line, and one as the answer.

use std::{fs, io, os::unix::fs::FileTypeExt, path::Path};

use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{Mesh, MeshPeer, MeshPeerStatus};
use crate::PublicKey;

/// The maximum length of a request: some thousand peers.
pub(super) const LINE_MAX: u64 = 4 << 20;

/// A request of the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Asks for the state.
    Status,
    /// Sets the peers and the MTU.
    Set { peers: Vec<MeshPeer>, mtu: u16 },
    /// Ends the process, and the link with it.
    Stop,
}

/// The answer: the state, or why the request failed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Status(MeshStatus),
    Failed(String),
}

/// The state of the process and its link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshStatus {
    /// Version of the program.
    pub version: String,
    /// Name of the link.
    pub interface: String,
    /// The UDP port.
    pub port: u16,
    /// The node's public key.
    pub public_key: PublicKey,
    /// The peers, sorted by key.
    pub peers: Vec<MeshPeerStatus>,
}

/// Why the link's process could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The socket does not work.
    #[error("the control socket {path} failed")]
    Socket {
        /// The socket.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The process refused the request.
    #[error("{0}")]
    Refused(String),
}

impl MeshError {
    /// Whether the process did not answer in time.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Socket { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }
}

pub(super) fn socket_error(path: &Path) -> impl Fn(io::Error) -> MeshError {
    let path = path.display().to_string();
    move |source| MeshError::Socket {
        path: path.clone(),
        source,
    }
}

/// Serves the control socket until a request ends it or another program removes the link. `ready` is called once the socket
/// accepts connections. Only the user of this process can open the socket. A socket that a former process has left is replaced.
pub async fn serve(
    mut mesh: Mesh,
    path: &Path,
    version: &str,
    ready: impl FnOnce(),
) -> Result<(), MeshError> {
    let listener = bind(path).map_err(socket_error(path))?;
    ready();
    loop {
        tokio::select! {
            () = mesh.ended() => return Ok(()),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // One request at a time: the only client is the agent, and it waits.
                match answer(stream, &mut mesh, version).await {
                    Ok(true) => {
                        mesh.stop().await;
                        return Ok(());
                    }
                    Ok(false) => {}
                    Err(error) => tracing::debug!(%error, "a request was not answered"),
                }
            }
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    bound
}

/// Answers one connection. Returns whether to stop.
async fn answer(stream: UnixStream, mesh: &mut Mesh, version: &str) -> io::Result<bool> {
    /// How long a client may take; a client that hangs must not block the next one.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LINE_MAX));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let mut stop = false;
    let answer = match serde_json::from_str(&line) {
        Ok(Request::Status) => Ok(()),
        Ok(Request::Set { peers, mtu }) => mesh.set(&peers, mtu).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|c| format!(": {c}"));
            format!("{error}{}", cause.unwrap_or_default())
        }),
        Ok(Request::Stop) => {
            stop = true;
            Ok(())
        }
        Err(error) => Err(format!("invalid request: {error}")),
    };
    let answer = match answer {
        Ok(()) => Answer::Status(status(mesh, version)),
        Err(why) => Answer::Failed(why),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    tokio::time::timeout(PATIENCE, writer.write_all(&text)).await??;
    Ok(stop)
}

fn status(mesh: &Mesh, version: &str) -> MeshStatus {
    let config = mesh.config();
    MeshStatus {
        version: version.to_owned(),
        interface: config.interface.clone(),
        port: config.port,
        public_key: config.private_key.public_key(),
        peers: mesh.peers(),
    }
}
