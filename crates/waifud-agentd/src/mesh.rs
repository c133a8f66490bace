//! The WireGuard link between nodes, in a process of its own: `waifud-agentd mesh`.
//!
//! The process is started detached and outlives the agent, so restarting or upgrading the agent cuts no connection between
//! guests. The agent finds it by its control socket, which only root can open. A process of another version, or with another
//! interface, port or key, is replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::time::timeout;
use waifud_network::NetworkError;
use waifud_network::fabric::{MeshDevice, MeshPeer};
use waifud_wireguard::mesh::{self, Mesh, MeshClient, MeshConfig, MeshError, MeshStatus};
use waifud_wireguard::{PrivateKey, WireguardError};

use crate::tunnel::read_or_create_key;

/// How long the process may take to create its link.
const START: Duration = Duration::from_secs(20);
/// The MTU of the link before the first peers are known.
const MTU: u16 = 1420;
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

/// [`MeshDevice`] by a process of its own.
pub struct MeshProcess {
    interface: String,
    port: u16,
    key_file: PathBuf,
    key: PrivateKey,
    socket: PathBuf,
    /// The program to start: this one.
    program: PathBuf,
    client: MeshClient,
    /// Held while the process is started or stopped.
    changing: Mutex<()>,
}

impl MeshProcess {
    /// The link with the key in `key_file`, which is created if absent. Starts nothing yet.
    pub fn open(
        interface: String,
        port: u16,
        key_file: &Path,
        socket: &Path,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            interface,
            port,
            key: read_or_create_key(key_file)?,
            key_file: key_file.to_owned(),
            socket: socket.to_owned(),
            program: "/proc/self/exe".into(),
            client: MeshClient::new(socket.to_owned()),
            changing: Mutex::default(),
        })
    }

    /// Whether a running process is the one that this agent would start.
    fn fits(&self, status: &MeshStatus) -> bool {
        status.version == env!("CARGO_PKG_VERSION")
            && status.interface == self.interface
            && status.port == self.port
            && status.public_key == self.key.public_key()
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

#[async_trait::async_trait]
impl MeshDevice for MeshProcess {
    fn interface(&self) -> &str {
        &self.interface
    }

    fn public_key(&self) -> String {
        self.key.public_key().to_string()
    }

    fn port(&self) -> u16 {
        self.port
    }

    async fn ensure(&self, peers: Vec<MeshPeer>, mtu: u16) -> Result<bool, NetworkError> {
        let _one_at_a_time = self.changing.lock().await;
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
        // waifud does not check keys; only the node of an invalid one is left out.
        let peers = peers.into_iter().filter_map(|peer| {
            Some(mesh::MeshPeer {
                public_key: peer.public_key.parse().ok()?,
                endpoints: peer.endpoints,
                allowed: peer.allowed,
            })
        });
        self.client
            .set(peers.collect(), mtu)
            .await
            .map_err(network_error)?;
        Ok(fresh)
    }

    async fn handshakes(&self) -> Result<BTreeMap<String, Option<Duration>>, NetworkError> {
        let status = self.client.status().await.map_err(network_error)?;
        let peers = status.map(|status| status.peers).unwrap_or_default();
        let ages = peers.into_iter().map(|peer| {
            let age = peer.handshake_age_s.map(Duration::from_secs);
            (peer.public_key.to_string(), age)
        });
        Ok(ages.collect())
    }

    async fn remove(&self) -> Result<bool, NetworkError> {
        let _one_at_a_time = self.changing.lock().await;
        let runs = self.client.status().await.map_err(network_error)?.is_some();
        if runs {
            self.client.stop().await.map_err(network_error)?;
        }
        Ok(runs)
    }
}
