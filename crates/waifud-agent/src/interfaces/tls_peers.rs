//! Connections between nodes over TCP and TLS, with the nodes' certificates.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use async_trait::async_trait;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use waifud_hypervisor::ByteStream;
use waifud_pki::{
    Identity, NodePeer, PkiError, node_client_config, node_server_config, server_name,
};

use super::peers::{IncomingPeer, PeerListener, PeerNetwork};

/// An address outside, to which nothing is sent (RFC 5737).
const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// Bytes read from a socket at once.
const SOCKET_READ: usize = 256 << 10;
/// Bytes that are encrypted and written to a socket at once.
const SOCKET_WRITE: usize = 256 << 10;

/// [`PeerNetwork`] over TLS.
pub struct TlsPeers {
    ca: CertificateDer<'static>,
    own: Identity,
    server: Arc<ServerConfig>,
    listen: Option<SocketAddr>,
    /// The port that it listens on, which may be another one if the configured one is 0.
    port: AtomicU16,
    advertised: Vec<SocketAddr>,
}

impl std::fmt::Debug for TlsPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsPeers")
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

impl TlsPeers {
    /// The node with this identity, in the cluster of this CA. It listens at `listen` if that is set. Other nodes are told
    /// `advertised`, or if that is empty, the node's address in its connection to waifud. Does no I/O.
    pub fn new(
        ca: CertificateDer<'static>,
        own: Identity,
        listen: Option<SocketAddr>,
        advertised: Vec<SocketAddr>,
    ) -> Result<Self, PkiError> {
        Ok(Self {
            server: node_server_config(&ca, &own)?,
            ca,
            own,
            port: AtomicU16::new(listen.map_or(0, |listen| listen.port())),
            listen,
            advertised,
        })
    }
}

#[async_trait]
impl PeerNetwork for TlsPeers {
    async fn listen(&self) -> io::Result<Option<Box<dyn PeerListener>>> {
        let Some(address) = self.listen else {
            return Ok(None);
        };
        let listener = match TcpListener::bind(address).await {
            // A kernel without IPv6.
            Err(error) if address.ip().is_unspecified() && lacks_ipv6(&error) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
            }
            other => other,
        }?;
        let port = listener.local_addr()?.port();
        self.port.store(port, Ordering::Relaxed);
        Ok(Some(Box::new(Listener {
            listener,
            tls: Arc::clone(&self.server).into(),
        })))
    }

    fn port_name(&self) -> String {
        format!("TCP port {}", self.port.load(Ordering::Relaxed))
    }

    fn endpoints(&self, own: IpAddr) -> Vec<SocketAddr> {
        let Some(listen) = self.listen else {
            return Vec::new();
        };
        if !self.advertised.is_empty() {
            return self.advertised.clone();
        }
        let port = self.port.load(Ordering::Relaxed);
        if !listen.ip().is_unspecified() {
            return vec![SocketAddr::new(listen.ip(), port)];
        }
        // waifud on this machine may be reached at an address that other nodes cannot use.
        let usable = Some(own).filter(|own| !own.is_loopback());
        let own = usable.or_else(source_towards_outside);
        own.into_iter()
            .map(|own| SocketAddr::new(own, port))
            .collect()
    }

    async fn connect(&self, to: SocketAddr, node: NodePeer) -> io::Result<Box<dyn ByteStream>> {
        let config = node_client_config(&self.ca, &self.own, node).map_err(io::Error::other)?;
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let connected = TlsConnector::from(config).connect(server_name(), buffered(stream));
        Ok(Box::new(connected.await?))
    }
}

struct Listener {
    listener: TcpListener,
    tls: TlsAcceptor,
}

#[async_trait]
impl PeerListener for Listener {
    async fn accept(&mut self) -> io::Result<IncomingPeer> {
        let (stream, address) = self.listener.accept().await?;
        let tls = self.tls.clone();
        Ok(IncomingPeer {
            address: address.ip().to_canonical(),
            handshake: Box::pin(async move {
                stream.set_nodelay(true)?;
                let mut stream = tls.accept(buffered(stream)).await?;
                let (_, session) = stream.get_mut();
                session.set_buffer_limit(Some(SOCKET_WRITE));
                let certificate = session.peer_certificates().and_then(<[_]>::first);
                let certificate = certificate.ok_or(io::ErrorKind::PermissionDenied)?;
                let peer = NodePeer::of(certificate).map_err(io::Error::other)?;
                Ok((peer, Box::new(stream) as Box<dyn ByteStream>))
            }),
        })
    }
}

/// rustls reads a few KiB at once.
fn buffered(stream: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(SOCKET_READ, stream)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let codes = [
        nix::errno::Errno::EAFNOSUPPORT,
        nix::errno::Errno::EADDRNOTAVAIL,
    ];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(*code as i32))
}

/// The source address that the kernel chooses for packets to the outside. Nothing is sent.
fn source_towards_outside() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(OUTSIDE).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_unspecified() && !own.is_loopback()).then_some(own)
}

#[cfg(test)]
mod tests {
    use waifud_pki::{Authority, NodeKey, NodeRequest, certificates};
    use waifud_types::NodeId;

    use super::*;

    fn peers(listen: Option<&str>, advertised: &[&str]) -> TlsPeers {
        let ca = Authority::generate().unwrap();
        let key = NodeKey::generate().unwrap();
        let request = NodeRequest::parse(&key.request().unwrap()).unwrap();
        let certificate = ca.issue_node(&request, NodeId::generate()).unwrap();
        TlsPeers::new(
            certificates(&ca.to_pem()).unwrap().swap_remove(0),
            Identity::from_pem(&key.to_pem(), &certificate).unwrap(),
            listen.map(|listen| listen.parse().unwrap()),
            advertised.iter().map(|at| at.parse().unwrap()).collect(),
        )
        .unwrap()
    }

    #[test]
    fn other_nodes_are_told_what_is_configured_or_else_the_address_towards_waifud() {
        let own = IpAddr::from([192, 0, 2, 7]);
        let told = |listen, advertised: &[&str]| {
            let endpoints = peers(listen, advertised).endpoints(own);
            endpoints
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(Some("[::]:7374"), &[]), ["192.0.2.7:7374"]);
        assert_eq!(told(Some("10.0.0.1:9"), &[]), ["10.0.0.1:9"]);
        assert_eq!(told(Some("[::]:7374"), &["10.0.0.1:1"]), ["10.0.0.1:1"]);
        assert!(told(None, &["10.0.0.1:1"]).is_empty(), "it does not listen");
        let local = peers(Some("[::]:7374"), &[]).endpoints([127, 0, 0, 1].into());
        assert!(local.iter().all(|at| !at.ip().is_loopback()), "{local:?}");
    }

    #[tokio::test]
    async fn without_an_address_nothing_listens() {
        assert!(peers(None, &[]).listen().await.unwrap().is_none());
        let some = peers(Some("127.0.0.1:0"), &[]);
        assert!(some.listen().await.unwrap().is_some());
    }
}
