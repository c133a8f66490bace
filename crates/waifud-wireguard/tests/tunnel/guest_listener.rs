//! The requirements for every source of guests' connections, real or fake, on which the services rely.

use std::{future::Future, net::SocketAddrV4, time::Duration};

use crate::kit::{World, guest_address};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};
use waifud_wireguard::{GuestListener, GuestStream, PeerConfig, ServerConfig, TunnelServer, fake};

/// Connects as the guest with this number; returns the stream and, if it is known, the port.
trait Dial {
    type Stream: AsyncRead + AsyncWrite + Unpin;
    fn dial(&self, number: u8) -> (SocketAddrV4, Self::Stream);
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), what)
        .await
        .expect("took too long")
}

/// The requirements. `listener` must end once `dial` is dropped.
async fn conforms(dial: impl Dial, mut listener: impl GuestListener) {
    // Every connection has the address of its guest, regardless of the others.
    let guests: Vec<_> = (0..3).map(|number| dial.dial(number)).collect();
    let mut accepted = Vec::new();
    for _ in &guests {
        accepted.push(soon(listener.accept()).await.unwrap());
    }
    for (source, mut guest) in guests {
        let at = accepted
            .iter()
            .position(|stream| stream.source() == source)
            .unwrap();
        let mut service = accepted.remove(at);
        // Bytes arrive in both directions.
        soon(guest.write_all(b"question")).await.unwrap();
        let mut asked = [0; 8];
        soon(service.read_exact(&mut asked)).await.unwrap();
        assert_eq!(&asked, b"question");
        // A guest that has closed its sending side can still be answered, with more data than any buffer holds.
        soon(guest.shutdown()).await.unwrap();
        assert_eq!(soon(service.read(&mut asked)).await.unwrap(), 0);
        let answer: Vec<u8> = (0..300_000_u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let mut got = Vec::new();
        let writes = async {
            service.write_all(&answer).await.unwrap();
            // Data that was written before a drop is still delivered, followed by the end of the stream.
            drop(service);
        };
        let (read, ()) = soon(async { tokio::join!(guest.read_to_end(&mut got), writes) }).await;
        read.unwrap();
        assert!(got == answer, "{} bytes", got.len());
    }
    // Cancelling a wait loses no connection.
    assert!(
        timeout(Duration::from_millis(1), listener.accept())
            .await
            .is_err()
    );
    let (source, _guest) = dial.dial(0);
    assert_eq!(soon(listener.accept()).await.unwrap().source(), source);
    drop(dial);
    assert!(soon(listener.accept()).await.is_none());
}

struct Fake(fake::FakeDialer);

impl Dial for Fake {
    type Stream = tokio::io::DuplexStream;

    fn dial(&self, number: u8) -> (SocketAddrV4, Self::Stream) {
        let source = SocketAddrV4::new(guest_address(number), 40_000);
        (source, self.0.connect(source).unwrap())
    }
}

#[tokio::test]
async fn the_fake_meets_the_requirements() {
    let (dialer, listener) = fake::listener();
    conforms(Fake(dialer), listener).await;
}

struct Real<'a> {
    world: &'a World,
    _server: TunnelServer,
}

impl Dial for Real<'_> {
    type Stream = tokio::net::TcpStream;

    fn dial(&self, number: u8) -> (SocketAddrV4, Self::Stream) {
        self.world.guests.run(move || async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((guest_address(number), 0).into()).unwrap();
            let stream = socket
                .connect("169.254.169.254:80".parse().unwrap())
                .await
                .unwrap();
            match stream.local_addr().unwrap() {
                std::net::SocketAddr::V4(source) => (source, stream),
                std::net::SocketAddr::V6(_) => unreachable!("the target is IPv4"),
            }
        })
    }
}

#[test]
fn the_tunnel_meets_the_requirements() {
    let Some(world) = World::new(3) else { return };
    let (key, peer): (_, PeerConfig) = (world.server_key.clone(), world.peer());
    let (server, listener) = world.node.run(move || async move {
        let (server, listener) = TunnelServer::start(ServerConfig::new(key)).unwrap();
        server.set_peer(peer).unwrap();
        (server, listener)
    });
    let _node = world.start_node();
    // The streams work in any runtime; this one is in no namespace and opens no sockets.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(conforms(
        Real {
            world: &world,
            _server: server,
        },
        listener,
    ));
}
