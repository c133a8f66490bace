//! The complete path: a guest's kernel, routing, the TUN device, encrypted datagrams, the TCP stack, the service.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::sync::CancellationToken;
use waifud_api::metadatad::Tunnel;
use waifud_metadata::{DiskStore, MetadataService, Parts, WireguardEnd, serve_guests};
use waifud_wireguard::{NodeTunnel, ServerConfig, StackLimits, TunnelServer};

use crate::{
    fixture::{Guest, parts, status},
    kit::{World, client, guest_address},
};

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
        moved: Vec::new(),
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

/// What a guest reads within a deadline, on a new connection.
fn read(world: &World, number: u8) -> String {
    client::read(world, number, USER_DATA, PROMPT)
}

/// A started service that serves its own documents to each of some guests.
struct Served {
    guests: Vec<Guest>,
    service: Arc<MetadataService>,
    stop: CancellationToken,
    root: TempDir,
    _node: NodeTunnel,
}

impl Served {
    fn start(world: &World, count: u8) -> Self {
        let root = tempfile::tempdir().unwrap();
        let guests: Vec<_> = (0..count)
            .map(|number| Guest::new(&format!("guest{number}"), guest_address(number)))
            .collect();
        let (service, stop) = start(world, root.path());
        let node = world.start_node();
        furnish(world, &service, &guests);
        Self {
            guests,
            service,
            stop,
            root,
            _node: node,
        }
    }
}

#[test]
fn each_guest_reads_its_own_user_data_through_the_tunnel_also_after_a_restart() {
    let Some(world) = World::new(3) else { return };
    let served = Served::start(&world, 2);
    let check = || {
        for (number, guest) in (0..).zip(&served.guests) {
            let answer = read(&world, number);
            assert!(answer.contains(&guest.secret()), "{answer}");
        }
        // An address in the subnet that no guest has.
        assert_eq!(status(&read(&world, 2)), 404);
    };
    check();
    // The service ends without notifying the node. Another one starts on the same disk, before an agent has connected.
    served.stop.cancel();
    drop(served.service);
    world.node.run(|| async {
        let free = async {
            while std::net::UdpSocket::bind("127.0.0.1:51821").is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PROMPT, free).await.expect("the port is free again");
    });
    let _again = start(&world, served.root.path());
    check();
}

/// A request of guest 0 that never ends, as far as connections are admitted.
async fn drip(open: Arc<AtomicUsize>) {
    let Ok(mut stream) = client::connect(guest_address(0)).await else {
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
    let served = Served::start(&world, 4);
    let secrets: Vec<String> = served.guests.iter().map(Guest::secret).collect();
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
                let answer = timeout(PROMPT, client::get(guest_address(number), USER_DATA)).await;
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
