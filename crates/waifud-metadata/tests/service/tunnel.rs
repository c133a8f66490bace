//! The complete path: a guest's kernel, routing, the TUN device, encrypted datagrams, the TCP stack, the service.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use waifud_api::metadatad::Tunnel;
use waifud_metadata::{DiskStore, MetadataService, Parts, WireguardEnd, serve_guests};
use waifud_wireguard::{ServerConfig, StackLimits, TunnelServer};

use crate::{
    fixture::{Guest, parts, status},
    kit::{World, guest_address},
};

const SERVICE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
const USER_DATA: &str = "/openstack/latest/user_data";
/// Far below the 19.5 s for which a plain WireGuard does not answer after its other end was restarted.
const PROMPT: Duration = Duration::from_secs(10);

/// A service with a store on disk, on the node, assembled like the program does.
pub fn start(world: &World, root: &Path) -> (Arc<MetadataService>, CancellationToken) {
    let (root, key) = (root.to_owned(), world.server_key.clone());
    world.node.run(move || async move {
        let store = DiskStore::open(&root).unwrap();
        let public_key = key.public_key();
        let (server, listener) = TunnelServer::start(ServerConfig::new(key)).unwrap();
        let stop = CancellationToken::new();
        let service = MetadataService::start(Parts {
            tunnel: Arc::new(WireguardEnd::new(server, public_key)),
            stop: stop.clone(),
            ..parts(store.clone(), store)
        })
        .await
        .unwrap();
        tokio::spawn(serve_guests(listener, Arc::clone(&service), stop.clone()));
        (service, stop)
    })
}

/// Sends the agent's requests.
pub fn furnish(world: &World, service: &Arc<MetadataService>, guests: &[Guest]) {
    let tunnel = Tunnel {
        node_public_key: world.node_key.public_key().to_string(),
        node_endpoint: ([127, 0, 0, 1], 51822).into(),
        subnet: "10.77.1.0/24".parse().unwrap(),
        identities: None,
    };
    let reported: Vec<_> = guests
        .iter()
        .map(|guest| (guest.id, guest.sealed.clone(), guest.assignment.clone()))
        .collect();
    let service = Arc::clone(service);
    world.node.run(move || async move {
        service.put_tunnel(tunnel).await.unwrap();
        for (id, sealed, assignment) in reported {
            service
                .put_bundle(sealed.digest, sealed.ciphertext.into())
                .await
                .unwrap();
            service.put_instance(id, assignment).await.unwrap();
        }
    });
}

async fn connect(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    socket.connect(SERVICE).await
}

async fn get(from: Ipv4Addr, path: &str) -> std::io::Result<String> {
    let mut stream = connect(from).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What a guest reads within a deadline, on a new connection.
fn read(world: &World, number: u8) -> String {
    let from = guest_address(number);
    world.guests.run(move || async move {
        timeout(PROMPT, get(from, USER_DATA))
            .await
            .expect("in time")
            .expect("an answer")
    })
}

fn guests(count: u8) -> Vec<Guest> {
    (0..count)
        .map(|number| Guest::new(&format!("guest{number}"), guest_address(number)))
        .collect()
}

#[test]
fn each_guest_reads_its_own_user_data_through_the_tunnel_also_after_a_restart() {
    let Some(world) = World::new(3) else { return };
    let root = tempfile::tempdir().unwrap();
    let guests = guests(2);
    let (service, stop) = start(&world, root.path());
    let _node = world.start_node();
    furnish(&world, &service, &guests);
    let check = || {
        for (number, guest) in (0..).zip(&guests) {
            let answer = read(&world, number);
            assert!(answer.contains(&guest.secret()), "{answer}");
        }
        // An address in the subnet that no guest has.
        assert_eq!(status(&read(&world, 2)), 404);
    };
    check();
    // The service ends without notifying the node. Another one starts on the same disk, before an agent has connected.
    stop.cancel();
    drop(service);
    world.node.run(|| async {
        let free = async {
            while std::net::UdpSocket::bind("127.0.0.1:51821").is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PROMPT, free).await.expect("the port is free again");
    });
    let _again = start(&world, root.path());
    check();
}

/// A request of guest 0 that never ends, as far as connections are admitted.
async fn drip(open: Arc<AtomicUsize>) {
    let Ok(mut stream) = connect(guest_address(0)).await else {
        return;
    };
    open.fetch_add(1, Ordering::Relaxed);
    let head = b"GET /openstack HTTP/1.1\r\nX-Slow: ".as_slice();
    let mut next = head;
    while stream.write_all(next).await.is_ok() {
        next = b"x";
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn others_are_served_during_a_thousand_slow_connections_of_one_guest() {
    let Some(world) = World::new(4) else { return };
    let root = tempfile::tempdir().unwrap();
    let guests = guests(4);
    let (service, _stop) = start(&world, root.path());
    let _node = world.start_node();
    furnish(&world, &service, &guests);
    let secrets: Vec<String> = guests.iter().map(Guest::secret).collect();
    world.guests.run(move || async move {
        let open = Arc::new(AtomicUsize::new(0));
        let slow: Vec<_> = (0..1000)
            .map(|_| tokio::spawn(drip(Arc::clone(&open))))
            .collect();
        let full = async {
            while open.load(Ordering::Relaxed) < StackLimits::default().max_per_source {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PROMPT, full)
            .await
            .expect("as many as one guest may have");
        for round in 0..30 {
            for number in 1..4u8 {
                let answer = timeout(PROMPT, get(guest_address(number), USER_DATA)).await;
                let answer = answer.expect("in time").expect("an answer");
                assert!(
                    answer.contains(&secrets[usize::from(number)]),
                    "{round}: {answer}"
                );
            }
        }
        for task in slow {
            task.abort();
        }
    });
}
