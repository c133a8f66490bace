//! Connects to waifud: over TLS, at one of its known addresses.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Timeout for one address, after which the next one is tried.
const PER_ADDRESS: Duration = Duration::from_secs(5);
/// Default port of HTTPS.
const PORT: u16 = 443;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The endpoint of waifud.
#[derive(Clone)]
pub(super) enum Endpoint {
    /// TLS. All clones share the addresses, which begin with the one that answered last.
    Tls {
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        addresses: Arc<RwLock<Vec<String>>>,
        /// This host's address in the last connection.
        local: Arc<RwLock<Option<IpAddr>>>,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Endpoint {
    /// The endpoint in errors.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Tls { .. } => {
                let all = self.addresses();
                if all.is_empty() {
                    "an unknown address".to_owned()
                } else {
                    all.join(", ")
                }
            }
            Self::Unix(path) => path.display().to_string(),
        }
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        match self {
            Self::Tls { addresses, .. } => addresses
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            Self::Unix(_) => Vec::new(),
        }
    }

    /// This host's address in the last connection; `None` before the first one, and for a unix socket.
    pub(super) fn local_address(&self) -> Option<IpAddr> {
        match self {
            Self::Tls { local, .. } => *local.read().unwrap_or_else(PoisonError::into_inner),
            Self::Unix(_) => None,
        }
    }

    pub(super) fn set_addresses(&self, new: &[String]) {
        if let Self::Tls { addresses, .. } = self {
            let mut all = addresses.write().unwrap_or_else(PoisonError::into_inner);
            // The previous addresses stay after the new ones until this process ends, in case none of the new ones is
            // reachable.
            let old = std::mem::take(&mut *all);
            all.extend_from_slice(new);
            all.extend(old.into_iter().filter(|old| !new.contains(old)));
        }
    }

    /// Opens a connection and completes the handshake.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (config, name, addresses, local) = match self {
            Self::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tls {
                config,
                name,
                addresses,
                local,
            } => (config, name, addresses, local),
        };
        let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address is known");
        for url in self.addresses() {
            let dialed = async {
                let stream = TcpStream::connect(host_and_port(&url)?).await?;
                stream.set_nodelay(true)?;
                let own = stream.local_addr()?.ip().to_canonical();
                let stream = TlsConnector::from(Arc::clone(config))
                    .connect(name.clone(), stream)
                    .await?;
                Ok::<_, io::Error>((stream, own))
            };
            match timeout(PER_ADDRESS, dialed).await {
                Ok(Ok((stream, own))) => {
                    *local.write().unwrap_or_else(PoisonError::into_inner) = Some(own);
                    let mut all = addresses.write().unwrap_or_else(PoisonError::into_inner);
                    if let Some(at) = all.iter().position(|known| *known == url) {
                        all[..=at].rotate_right(1);
                    }
                    return Ok(Box::new(stream));
                }
                Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{url}: {error}")),
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{url}: silent")),
            }
        }
        Err(last)
    }
}

/// `HOST:PORT` of `https://HOST[:PORT]`.
fn host_and_port(url: &str) -> io::Result<String> {
    let rest = url
        .strip_prefix("https://")
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|rest| !rest.is_empty() && !rest.contains(['/', '@', ' ']))
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "invalid address: expected for example https://waifud.lan:7373",
            )
        })?;
    // The port follows the last colon, unless that is inside the brackets of an IPv6 address.
    let has_port = rest
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.contains(']'));
    Ok(if has_port {
        rest.to_owned()
    } else {
        format!("{rest}:{PORT}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_ports_of_their_own_or_that_of_https() {
        let at = |url: &str| host_and_port(url).unwrap();
        assert_eq!(at("https://a:1/"), "a:1");
        assert_eq!(at("https://a"), "a:443");
        assert_eq!(at("https://[::1]"), "[::1]:443");
        assert_eq!(at("https://[::1]:2"), "[::1]:2");
        for bad in ["http://a", "https://", "a:1", "https://u@a", "https://a/b"] {
            host_and_port(bad).unwrap_err();
        }
    }
}
