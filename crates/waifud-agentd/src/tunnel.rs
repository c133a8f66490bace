//! The node's end of the tunnel to metadatad, which exists as long as this process.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Mutex;
use tokio::time::timeout;
use waifud_agent::interfaces::{MetadataError, MetadataTunnel, TunnelUp};
use waifud_wireguard::{NodeTunnel, NodeTunnelConfig, PrivateKey, PublicKey};

/// The time limit for creating a link.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The tunnel. Its link exists as long as this value.
pub struct Tunnel {
    interface: String,
    listen: SocketAddr,
    key: PrivateKey,
    up: Mutex<Option<Up>>,
}

struct Up {
    tunnel: NodeTunnel,
    server_public_key: String,
    server_endpoint: SocketAddr,
}

impl Tunnel {
    /// A tunnel with the key in `key_file`, which is created if absent. The link is created later.
    pub fn open(interface: String, listen: SocketAddr, key_file: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            interface,
            listen,
            key: read_or_create_key(key_file)?,
            up: Mutex::new(None),
        })
    }

    /// Removes the link.
    pub async fn stop(&self) {
        if let Some(up) = self.up.lock().await.take()
            && let Err(error) = up.tunnel.stop().await
        {
            tracing::warn!(%error, "cannot remove the tunnel's link");
        }
    }

    fn tunnel_up(&self, fresh: bool) -> TunnelUp {
        TunnelUp {
            public_key: self.key.public_key().to_string(),
            endpoint: self.listen,
            fresh,
        }
    }
}

#[async_trait::async_trait]
impl MetadataTunnel for Tunnel {
    async fn ensure(
        &self,
        server_public_key: &str,
        server_endpoint: SocketAddr,
    ) -> Result<TunnelUp, MetadataError> {
        let failed = |message: String| MetadataError::Tunnel { message };
        let mut up = self.up.lock().await;
        let holds = up.as_ref().is_some_and(|up| {
            up.server_public_key == server_public_key
                && up.server_endpoint == server_endpoint
                && up.tunnel.is_running()
        });
        if holds {
            return Ok(self.tunnel_up(false));
        }
        let public_key: PublicKey = server_public_key
            .parse()
            .map_err(|_| failed("the metadata service's public key is invalid".to_owned()))?;
        if let Some(old) = up.take() {
            // The new tunnel replaces the link anyway.
            let _replaced = timeout(TIMEOUT, old.tunnel.stop()).await;
        }
        let mut config = NodeTunnelConfig::new(self.key.clone(), public_key);
        config.interface.clone_from(&self.interface);
        config.listen = self.listen;
        config.server_endpoint = server_endpoint;
        let tunnel = timeout(TIMEOUT, NodeTunnel::start(config))
            .await
            .map_err(|_| failed("the kernel did not create the link in time".to_owned()))?
            .map_err(|error| {
                let cause = std::error::Error::source(&error).map(|c| format!(": {c}"));
                failed(format!("{error}{}", cause.unwrap_or_default()))
            })?;
        tracing::info!(interface = tunnel.interface(), backend = ?tunnel.backend(), "the tunnel to the metadata service is up");
        *up = Some(Up {
            tunnel,
            server_public_key: server_public_key.to_owned(),
            server_endpoint,
        });
        Ok(self.tunnel_up(true))
    }
}

/// The private key in a file, which is created if absent.
pub fn read_or_create_key(path: &Path) -> anyhow::Result<PrivateKey> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().with_context(|| {
            format!(
                "{} does not contain a valid key; remove the file",
                path.display()
            )
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = PrivateKey::generate();
            waifud_kit::durable::replace(path, key.to_base64().as_bytes(), 0o600)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use waifud_kit::testing::temp_path;

    #[test]
    fn the_key_is_created_once_with_mode_0600() {
        let (_dir, path) = temp_path("wireguard.key");
        let key = read_or_create_key(&path).unwrap();
        let again = read_or_create_key(&path).unwrap();
        assert_eq!(key.to_base64(), again.to_base64());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "nonsense").unwrap();
        assert!(read_or_create_key(&path).is_err());
    }

    #[test]
    fn the_key_is_neither_logged_nor_in_an_error() {
        let (_dir, path) = temp_path("wireguard.key");
        let log = waifud_kit::testing::captured_log::CapturedLog::begin();
        let listen = SocketAddr::from(([127, 0, 0, 1], 51822));
        let tunnel = Tunnel::open("wfmeta0".to_owned(), listen, &path).unwrap();
        let shown = format!("{:?}", tunnel.tunnel_up(true).public_key);
        let key = tunnel.key.to_base64();
        let damaged = format!("{}!", key.as_str());
        fs::write(&path, &damaged).unwrap();
        let error = read_or_create_key(&path).unwrap_err();
        let shown = format!("{shown}\n{error:#}\n{error:?}\n{}", log.text());
        assert!(!shown.contains(key.as_str()), "{shown}");
    }
}
