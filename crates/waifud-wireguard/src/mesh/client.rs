//! The agent's end of the control socket.

use std::{io, path::PathBuf, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{
    MeshError, MeshPeer, MeshStatus,
    control::{Answer, LINE_MAX, Request, socket_error},
};

/// How long to wait for an answer, which usually takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two checks whether a process has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Configures a link that another process runs.
#[derive(Debug, Clone)]
pub struct MeshClient {
    socket: PathBuf,
    patience: Duration,
}

impl MeshClient {
    /// A client of the process that serves this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            patience: PATIENCE,
        }
    }

    /// Sets how long to wait for an answer (10 s by default).
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The state; `None` if no process serves the socket.
    pub async fn status(&self) -> Result<Option<MeshStatus>, MeshError> {
        match self.request(&Request::Status).await {
            Ok(status) => Ok(Some(status)),
            Err(MeshError::Socket { source, .. }) if is_absent(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the peers and the MTU of the link.
    pub async fn set(&self, peers: Vec<MeshPeer>, mtu: u16) -> Result<MeshStatus, MeshError> {
        self.request(&Request::Set { peers, mtu }).await
    }

    /// Ends the process and its link; a process that does not answer is killed. Nothing happens if there is none.
    pub async fn stop(&self) -> Result<(), MeshError> {
        match self.request(&Request::Stop).await {
            Ok(_) => self.wait_until_ended().await?,
            Err(MeshError::Socket { source, .. }) if is_absent(&source) => return Ok(()),
            Err(error) if error.is_silence() => {
                let killed = timeout(PATIENCE, self.kill()).await;
                killed
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(socket_error(&self.socket))?;
            }
            Err(error) => return Err(error),
        }
        match std::fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(socket_error(&self.socket)(error))
            }
            _ => Ok(()),
        }
    }

    /// Waits until nothing listens. The process closes its socket after its link and its UDP port.
    async fn wait_until_ended(&self) -> Result<(), MeshError> {
        let ended = async {
            while UnixStream::connect(&self.socket).await.is_ok() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(PATIENCE, ended)
            .await
            .map_err(|_| socket_error(&self.socket)(io::ErrorKind::TimedOut.into()))
    }

    /// Kills the process that serves the socket, and waits until it has ended.
    async fn kill(&self) -> io::Result<()> {
        loop {
            // The kernel tells which process listens. It accepts the connection even if that process is stopped.
            let pid = match UnixStream::connect(&self.socket).await {
                Ok(stream) => stream.peer_cred()?.pid(),
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let pid = pid.ok_or(io::ErrorKind::NotFound)?;
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn request(&self, request: &Request) -> Result<MeshStatus, MeshError> {
        let failed = socket_error(&self.socket);
        let answer = timeout(self.patience, self.exchange(request))
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(&failed)?;
        match answer {
            Answer::Status(status) => Ok(status),
            Answer::Failed(why) => Err(MeshError::Refused(why)),
        }
    }

    async fn exchange(&self, request: &Request) -> io::Result<Answer> {
        let (reader, mut writer) = UnixStream::connect(&self.socket).await?.into_split();
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
        let mut line = String::new();
        let mut reader = BufReader::new(reader.take(LINE_MAX));
        reader.read_line(&mut line).await?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}
