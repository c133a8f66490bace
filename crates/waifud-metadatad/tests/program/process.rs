//! A running program in its own directory, killed when the test ends.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::timeout,
};
use waifud_api::{
    MetadatadClient,
    agent::BundleRef,
    metadatad::{Assignment, Status, Tunnel},
};
use waifud_cloudinit::{SEAL_ENTROPY, Source, render, seal};
use waifud_types::{InstanceId, Secret};
use waifud_wireguard::PublicKey;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_waifud-metadatad");
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program's directory.
pub struct Home(tempfile::TempDir);

impl Home {
    /// With a configuration that listens on `listen`.
    pub fn new(listen: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "socket = \"{}\"\nstate_dir = \"{}\"\nwireguard_listen = \"{listen}\"\nlog = \"debug\"\n",
            home.socket().display(),
            home.state_dir().display(),
        );
        fs::write(home.config(), text).unwrap();
        home
    }

    pub fn config(&self) -> PathBuf {
        self.0.path().join("metadatad.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.0.path().join("run/control.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.0.path().join("state")
    }

    pub fn client(&self) -> MetadatadClient {
        MetadatadClient::new(self.socket())
    }

    /// Starts the program and waits until it answers.
    pub async fn start(&self) -> (Child, Status) {
        let child = command(&self.config()).spawn().unwrap();
        let ready = async {
            loop {
                if let Ok(status) = self.client().status().await {
                    break status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let status = timeout(PATIENCE, ready).await.expect("it starts");
        (child, status)
    }
}

pub fn command(config: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(config).kill_on_drop(true);
    command
}

/// Kills it and waits until it has exited.
pub async fn crash(mut child: Child) {
    child.kill().await.unwrap();
}

pub fn tunnel(node: PublicKey) -> Tunnel {
    Tunnel {
        node_public_key: node.to_string(),
        node_endpoint: ([127, 0, 0, 1], 51822).into(),
        subnet: "10.77.1.0/24".parse().unwrap(),
        identities: None,
        moved: Vec::new(),
    }
}

/// Configures the program to serve an instance whose user-data contains this text.
pub async fn serve(client: &MetadatadClient, id: InstanceId, address: Ipv4Addr, words: &str) {
    let documents = render(&Source {
        availability_zone: "alder".to_owned(),
        user_data: Some(Secret::new(format!("#cloud-config\n# {words}\n"))),
        ..Source::new(id, "web".parse().unwrap())
    });
    let mut entropy = [0; SEAL_ENTROPY];
    entropy[..16].copy_from_slice(InstanceId::generate().as_uuid().as_bytes());
    let sealed = seal(&documents, &entropy).unwrap();
    let assignment = Assignment {
        name: "web".parse().unwrap(),
        address,
        bundle: BundleRef {
            digest: sealed.digest,
            key: sealed.key,
            size_bytes: sealed.ciphertext.len() as u64,
        },
    };
    client
        .put_bundle(sealed.digest, sealed.ciphertext)
        .await
        .unwrap();
    client.put_instance(id, &assignment).await.unwrap();
}
