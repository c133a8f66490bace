//! The WireGuard link between nodes, in a process of its own: `waifud-agentd mesh`. It is used where the kernel has no WireGuard.
//!
//! The process is started detached and outlives the agent, so restarting or upgrading the agent cuts no connection between
//! guests. The agent finds it by its control socket, which only root can open. A process of another version, or with another
//! interface, port or key, is replaced.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use waifud_network::NetworkError;
use waifud_wireguard::mesh::{
    self, Mesh, MeshClient, MeshConfig, MeshError, MeshPeerStatus, MeshStatus,
};
use waifud_wireguard::{PrivateKey, WireguardError};

use crate::tunnel::read_or_create_key;

/// How long the process may take to create its link.
const START: Duration = Duration::from_secs(20);
/// The MTU of the link before the first peers are known.
pub const MTU: u16 = 1420;
/// What the process prints once its socket accepts connections.
const READY: &str = "ready";
/// What it prints if its port is taken.
const TAKEN: &str = "port taken";

/// Arguments of the process. All of it is set by the agent.
#[derive(Debug, Args)]
pub struct MeshArguments {
    /// Name of the link.
    #[arg(long)]
    interface: String,
    /// The UDP port.
    #[arg(long)]
    port: u16,
    /// The file with the node's private key.
    #[arg(long)]
    key: PathBuf,
    /// The control socket.
    #[arg(long)]
    socket: PathBuf,
}

/// Runs the link until it is stopped over its socket, or by SIGTERM.
pub async fn run(arguments: MeshArguments) -> anyhow::Result<()> {
    let mut terminate =
        signal(SignalKind::terminate()).context("cannot install signal handlers")?;
    let config = MeshConfig {
        interface: arguments.interface,
        private_key: read_or_create_key(&arguments.key)?,
        port: arguments.port,
        mtu: MTU,
    };
    let mesh = match Mesh::start(config).await {
        Ok(mesh) => mesh,
        Err(WireguardError::Bind { source, .. })
            if source.kind() == std::io::ErrorKind::AddrInUse =>
        {
            println!("{TAKEN}");
            anyhow::bail!("UDP port {} is taken", arguments.port);
        }
        Err(error) => {
            println!("{}", waifud_kit::error::with_causes(&error));
            return Err(error.into());
        }
    };
    tracing::info!(port = arguments.port, "the mesh is up");
    let version = env!("CARGO_PKG_VERSION");
    tokio::select! {
        served = mesh::serve(mesh, &arguments.socket, version, || println!("{READY}")) => {
            served?;
        }
        _ = terminate.recv() => {}
    }
    tracing::info!("the mesh has ended");
    Ok(())
}

/// The link of a process, which is started, found, configured and stopped.
pub struct MeshProcess {
    interface: String,
    port: u16,
    key_file: PathBuf,
    key: PrivateKey,
    socket: PathBuf,
    /// The program to start: this one.
    program: PathBuf,
    client: MeshClient,
}

impl MeshProcess {
    /// The link with this key, which is in `key_file`. Starts nothing yet.
    pub fn new(
        interface: String,
        port: u16,
        key: PrivateKey,
        key_file: &Path,
        socket: &Path,
    ) -> Self {
        Self {
            interface,
            port,
            key,
            key_file: key_file.to_owned(),
            socket: socket.to_owned(),
            program: "/proc/self/exe".into(),
            client: MeshClient::new(socket.to_owned()),
        }
    }

    /// Whether a running process is the one that this agent would start.
    fn fits(&self, status: &MeshStatus) -> bool {
        status.version == env!("CARGO_PKG_VERSION")
            && status.interface == self.interface
            && status.port == self.port
            && status.public_key == self.key.public_key()
    }

    /// Makes the process run with these peers and this MTU. Returns whether it was started. Calls must not overlap.
    pub async fn ensure(&self, peers: Vec<mesh::MeshPeer>, mtu: u16) -> Result<bool, NetworkError> {
        let fresh = match self.client.status().await {
            Ok(Some(status)) if self.fits(&status) => false,
            Ok(None) => true,
            Err(error) if !error.is_silence() => return Err(network_error(error)),
            Ok(Some(_)) | Err(_) => {
                self.client.stop().await.map_err(network_error)?;
                true
            }
        };
        if fresh {
            self.start().await?;
        }
        let set = self.client.set(peers, mtu).await;
        set.map_err(network_error)?;
        Ok(fresh)
    }

    /// The peers; none if no process runs.
    pub async fn peers(&self) -> Result<Vec<MeshPeerStatus>, NetworkError> {
        let status = self.client.status().await.map_err(network_error)?;
        Ok(status.map(|status| status.peers).unwrap_or_default())
    }

    /// Ends the process and its link. Returns whether there was one, of any version.
    pub async fn remove(&self) -> Result<bool, NetworkError> {
        match self.client.status().await {
            Ok(None) => return Ok(false),
            Err(error) if !error.is_silence() => return Err(network_error(error)),
            Ok(Some(_)) | Err(_) => {}
        }
        self.client.stop().await.map_err(network_error)?;
        Ok(true)
    }

    async fn start(&self) -> Result<(), NetworkError> {
        let failed = |message: String| NetworkError::Tool {
            tool: "waifud-agentd mesh",
            message,
        };
        let mut command = Command::new(&self.program);
        command
            .arg0("waifud-agentd")
            .arg("mesh")
            .args(["--interface", &self.interface])
            .args(["--port", &self.port.to_string()])
            .arg("--key")
            .arg(&self.key_file)
            .arg("--socket")
            .arg(&self.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A signal to the agent's group, for example from a terminal, must not end it.
            .process_group(0)
            .kill_on_drop(false);
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            let read = timeout(START, stdout.read_line(&mut line)).await;
            read.map_err(|_| failed(format!("it did not start within {} s", START.as_secs())))?
                .map_err(|error| failed(error.to_string()))?;
        }
        match line.trim() {
            READY => {
                // Waits for its end, so that it does not stay as a zombie while this process lives.
                tokio::spawn(async move { child.wait().await });
                Ok(())
            }
            TAKEN => Err(NetworkError::PortTaken { port: self.port }),
            "" => Err(failed("it ended at once; see its log".to_owned())),
            other => Err(failed(other.to_owned())),
        }
    }
}

fn network_error(error: MeshError) -> NetworkError {
    match error {
        MeshError::Socket { path, source } => NetworkError::Io {
            what: format!("using the mesh's control socket {path}"),
            source,
        },
        refused @ MeshError::Refused(_) => NetworkError::Tool {
            tool: "waifud-agentd mesh",
            message: refused.to_string(),
        },
    }
}
