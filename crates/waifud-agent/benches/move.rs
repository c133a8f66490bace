//! A disk of a moving instance, from one agent to another over TLS on loopback, beside plain HTTP of the same file.
//!
//! Both agents are complete, on fakes of everything but their link and the files of the disk: the sender reads, hashes and
//! encrypts; the receiver decrypts, hashes, writes and syncs. Plain HTTP is as simple as it can be: one thread copies from the
//! file to the socket, another one from the socket to a file, which it syncs. HTTPS is the same with TLS, without verification of
//! what was copied; once with the cipher of nodes, AES-128-GCM, and once with AES-256-GCM. Rounds alternate.
//!
//! `-- --mib N --rounds N` changes the numbers (1024 and 7). `-- --dir DIR` changes where the files are.
#![expect(clippy::unwrap_used, reason = "a bench stops at the first surprise")]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned,
};
use tokio_util::sync::CancellationToken;
use waifud_agent::fake::{
    FakeDialer, FakeHost, FakeMetadata, FakeTunnel, FakeWaifud, fast_timing, sample_instance,
    sample_settings,
};
use waifud_agent::interfaces::{SystemClock, TlsPeers};
use waifud_agent::{Adapters, Agent};
use waifud_api::agent::{AgentInstance, DiskTicket, Incoming, Release, Ticket, TicketOrder};
use waifud_hypervisor::fake::FakeHypervisor;
use waifud_network::fabric::fake::FakeFabric;
use waifud_network::fake::FakeNetwork;
use waifud_pki::{
    Authority, Identity, NodeKey, NodePeer, NodeRequest, certificates, node_client_config,
    node_server_config, server_name,
};
use waifud_storage::StoragePool as _;
use waifud_storage::fake::{FakePool, image_bytes};
use waifud_types::{ByteSize, NodeId, ReceiveState, VolumeId};

/// The share of the speed of plain HTTP that is the target.
const TARGET: f64 = 0.8;
/// Bytes that plain HTTP copies at once.
const CHUNK: usize = 256 << 10;

fn number(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments
        .nth(1)
        .map_or(default, |value| value.parse().unwrap())
}

/// A node on fakes.
struct Node {
    peer: NodePeer,
    waifud: FakeWaifud,
    pool: FakePool,
}

impl Node {
    fn start(ca: &Authority, dir: &Path) -> Self {
        let path = |name: &str| {
            let path = dir.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (own, peer) = identity(ca);
        let root = certificates(&ca.to_pem()).unwrap().swap_remove(0);
        let listen = Some("127.0.0.1:0".parse().unwrap());
        let peers = TlsPeers::new(root, own, listen, Vec::new()).unwrap();
        let waifud = FakeWaifud::new();
        let pool = FakePool::new("main".parse().unwrap(), path("pool"));
        let (bytes, image) = image_bytes(ByteSize::mib(1), 1);
        waifud.add_image(image, bytes);
        let adapters = Adapters {
            hypervisor: Arc::new(FakeHypervisor::new()),
            pools: vec![Arc::new(pool.clone())],
            network: FakeNetwork::new(),
            fabric: FakeFabric::new(1),
            link: Arc::new(waifud.clone()),
            peers: Arc::new(peers),
            metadata: Arc::new(FakeMetadata::new()),
            tunnel: Arc::new(FakeTunnel::default()),
            dialer: Arc::new(FakeDialer::default()),
            clock: Arc::new(SystemClock),
            host: Arc::new(FakeHost::default()),
        };
        let settings = sample_settings(path("state"), path("run"), fast_timing());
        let agent = Agent::open(settings, adapters).unwrap();
        tokio::spawn(agent.run(CancellationToken::new()));
        Self { peer, waifud, pool }
    }

    async fn endpoint(&self) -> SocketAddr {
        let endpoint = || self.waifud.facts()?.peer_port?.endpoints.first().copied();
        until(|| endpoint().is_some()).await;
        endpoint().unwrap()
    }

    async fn until_receiving(&self, incoming: &Incoming, state: ReceiveState) {
        until(|| {
            let receiving = self.waifud.receiving(incoming.id);
            receiving.is_some_and(|it| it.epoch == incoming.epoch && it.state == state)
        })
        .await;
    }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A disk of this size that has no holes and no zeros, with the header of an image.
fn write_disk(path: &Path, mib: u64) {
    let (header, _) = image_bytes(ByteSize::gib(1 + mib / 1024), 9);
    let mut random = File::open("/dev/urandom").unwrap();
    let mut file = File::create(path).unwrap();
    let mut block = vec![0; 1 << 20];
    for index in 0..mib {
        random.read_exact(&mut block).unwrap();
        if index == 0 {
            block[..header.len()].copy_from_slice(&header);
        }
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
}

/// Both ends of a TLS connection between nodes.
#[derive(Clone)]
struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    fn new() -> Self {
        let ca = Authority::generate().unwrap();
        let root = certificates(&ca.to_pem()).unwrap().swap_remove(0);
        let (own, peer) = identity(&ca);
        Self {
            server: node_server_config(&root, &own).unwrap(),
            client: node_client_config(&root, &own, peer).unwrap(),
        }
    }

    /// With the cipher that clients prefer.
    fn with_aes_256(&self) -> Self {
        let mut server = Arc::unwrap_or_clone(Arc::clone(&self.server));
        server.ignore_client_order = false;
        Self {
            server: Arc::new(server),
            ..self.clone()
        }
    }
}

fn identity(ca: &Authority) -> (Identity, NodePeer) {
    let (key, node) = (NodeKey::generate().unwrap(), NodeId::generate());
    let request = NodeRequest::parse(&key.request().unwrap()).unwrap();
    let certificate = ca.issue_node(&request, node).unwrap();
    let own = Identity::from_pem(&key.to_pem(), &certificate).unwrap();
    let key = key.digest();
    (own, NodePeer { node, key })
}

/// Copies the file over HTTP, or HTTPS. Returns the time until the copy is on the disk.
fn http(from: &Path, to: &Path, tls: Option<&Tls>) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (source, server_tls) = (from.to_owned(), tls.cloned());
    let server = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        match server_tls {
            None => serve(socket, &source),
            Some(tls) => {
                let session = ServerConnection::new(tls.server).unwrap();
                serve(StreamOwned::new(session, socket), &source);
            }
        }
    });
    let begun = Instant::now();
    let socket = TcpStream::connect(at).unwrap();
    match tls {
        None => get(socket, to),
        Some(tls) => {
            let session = ClientConnection::new(Arc::clone(&tls.client), server_name()).unwrap();
            get(StreamOwned::new(session, socket), to);
        }
    }
    let took = begun.elapsed();
    server.join().unwrap();
    fs::remove_file(to).unwrap();
    took
}

fn serve(mut socket: impl Read + Write, source: &Path) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    let mut file = File::open(source).unwrap();
    let length = file.metadata().unwrap().len();
    write!(
        socket,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    copy(&mut file, &mut socket, length).unwrap();
    socket.flush().unwrap();
}

fn get(mut socket: impl Read + Write, to: &Path) {
    write!(socket, "GET /disk HTTP/1.1\r\nHost: disk\r\n\r\n").unwrap();
    socket.flush().unwrap();
    let mut answer = BufReader::with_capacity(CHUNK, socket);
    let (mut line, mut length) = (String::new(), 0);
    while answer.read_line(&mut line).unwrap() > 2 {
        if let Some(number) = line.strip_prefix("Content-Length: ") {
            length = number.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut file = File::create(to).unwrap();
    file.write_all(answer.buffer()).unwrap();
    let rest = length - u64::try_from(answer.buffer().len()).unwrap();
    copy(&mut answer.into_inner(), &mut file, rest).unwrap();
    file.sync_all().unwrap();
}

/// By way of user space, as servers that do more than plain HTTP do it.
fn copy(from: &mut impl Read, to: &mut impl Write, mut length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while length > 0 {
        let count = from.read(&mut buffer)?;
        to.write_all(&buffer[..count])?;
        length -= u64::try_from(count).unwrap();
    }
    Ok(())
}

/// Two agents. The first one has released `web`.
struct Cluster {
    alder: Arc<Node>,
    birch: Node,
    web: AgentInstance,
}

impl Cluster {
    async fn start(dir: &Path, disk: PathBuf) -> Self {
        let ca = Authority::generate().unwrap();
        let alder = Arc::new(Node::start(&ca, &dir.join("alder")));
        let birch = Node::start(&ca, &dir.join("birch"));
        let mut web = sample_instance("web");
        web.spec.image = image_bytes(ByteSize::mib(1), 1).1;
        web.spec.disks[0].size_bytes = ByteSize::gib(64);
        alder.waifud.put(web.clone());
        until(|| {
            alder
                .waifud
                .status(web.id)
                .is_some_and(|it| it.started_at.is_some())
        })
        .await;
        alder.waifud.release(Release {
            instance: web.id,
            epoch: web.epoch,
            stop: true,
        });
        until(|| alder.waifud.released().iter().any(|it| it.off)).await;
        alder.pool.set_contents(disk);
        let at = alder.endpoint().await;
        birch.endpoint().await;
        let next = AtomicU64::new(1);
        let (source, receiver, epoch) = (Arc::clone(&alder), birch.peer, web.epoch);
        birch
            .waifud
            .set_ticket_issuer(Arc::new(move |instance, index| {
                let mut bytes = [0; 32];
                bytes[..8].copy_from_slice(&next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
                let ticket = Ticket::from_bytes(bytes);
                source.waifud.announce_ticket(TicketOrder {
                    ticket: ticket.digest(),
                    instance,
                    epoch,
                    index,
                    receiver: receiver.node,
                    receiver_key: receiver.key,
                    valid_s: 30,
                });
                DiskTicket {
                    ticket,
                    source: source.peer.node,
                    source_key: source.peer.key,
                    endpoints: vec![at],
                }
            }));
        Self { alder, birch, web }
    }

    /// Copies the disk. Returns the time from the order until the receiver has reported that it has everything.
    async fn copy(&mut self) -> Duration {
        let epoch = &mut self.web.epoch;
        epoch.0 += 1;
        let mut incoming = Incoming {
            id: self.web.id,
            name: self.web.name.clone(),
            epoch: *epoch,
            source: "alder".parse().unwrap(),
            image: self.web.spec.image,
            image_size_bytes: self.web.image_size_bytes,
            disks: self.web.spec.disks.clone(),
            copy: false,
            was_on: true,
            stopped_by: None,
        };
        let (birch, waifud) = (&self.birch, &self.birch.waifud);
        waifud.put_incoming(incoming.clone());
        birch
            .until_receiving(&incoming, ReceiveState::Prepared)
            .await;
        incoming.copy = true;
        let begun = Instant::now();
        waifud.put_incoming(incoming.clone());
        birch
            .until_receiving(&incoming, ReceiveState::Received)
            .await;
        let took = begun.elapsed();
        assert!(waifud.transfers().is_empty(), "none through waifud");
        let volume = VolumeId {
            instance: incoming.id,
            disk: incoming.disks[0].name.clone(),
        };
        birch.pool.ensure_volume_absent(&volume).await.unwrap();
        took
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let (mib, rounds) = (number("--mib", 1024), number("--rounds", 7));
    let mut arguments = std::env::args().skip_while(|argument| argument != "--dir");
    let parent = arguments
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let disk = dir.path().join("disk");
    write_disk(&disk, mib);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut cluster = runtime.block_on(Cluster::start(dir.path(), disk.clone()));
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    println!("{mib} MiB without zeros, {rounds} rounds; load average before: {load}");
    let (tls, copy) = (Tls::new(), dir.path().join("copy"));
    let aes_256 = tls.with_aes_256();
    let [mut plain, mut secure, mut larger_key, mut moved] = [const { Vec::new() }; 4];
    for round in 0..=rounds {
        let times = [
            http(&disk, &copy, None),
            http(&disk, &copy, Some(&tls)),
            http(&disk, &copy, Some(&aes_256)),
            runtime.block_on(cluster.copy()),
        ];
        // The first round warms up.
        if round > 0 {
            let all = [&mut plain, &mut secure, &mut larger_key, &mut moved];
            for (all, time) in all.into_iter().zip(times) {
                all.push(time);
            }
        }
    }
    let size = Duration::from_secs(mib).as_secs_f64();
    let speed = |time: Duration| size / time.as_secs_f64();
    let all = [
        ("plain HTTP", &mut plain),
        ("HTTPS", &mut secure),
        ("AES-256", &mut larger_key),
        ("move", &mut moved),
    ];
    for (name, times) in all {
        let middle = median(times);
        println!(
            "  {name:<10} median {:>6.0} MiB/s   slowest {:>6.0}   fastest {:>6.0}",
            speed(middle),
            speed(times[times.len() - 1]),
            speed(times[0]),
        );
    }
    let [plain, secure, moved] =
        [&mut plain, &mut secure, &mut moved].map(|times| speed(median(times)));
    let share = moved / plain;
    let verdict = if share >= TARGET { "met" } else { "missed" };
    println!("  {:.0} % of HTTPS", moved / secure * 100.0);
    println!(
        "  {:.0} % of plain HTTP; target: at least {:.0} %: {verdict}",
        share * 100.0,
        TARGET * 100.0
    );
    drop(cluster.alder);
}
