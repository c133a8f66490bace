//! The speed of the complete path as a guest sees it: veth, routing, TUN, encrypted datagrams on loopback, the stack,
//! and a small HTTP service. Server, node and guests are separate processes in separate namespaces, and the memory of
//! the server is measured from outside.
//!
//! `cargo bench -p waifud-wireguard` runs it; without `--bench` it is a short smoke test.

#[path = "../tests/kit/mod.rs"]
mod kit;
mod load;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kit::{World, guest_address, service};
use load::Load;
use tokio::{runtime::Builder, task::spawn_blocking};
use waifud_wireguard::{
    NodeTunnel, NodeTunnelConfig, PeerConfig, PrivateKey, ServerConfig, TunnelServer,
};

/// Guest addresses that the clients are spread over.
const GUESTS: u8 = 16;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1..).unwrap_or_default() {
        [role, own, other] if role == "server" => server(own.parse()?, other),
        [role, own, other] if role == "node" => node(own.parse()?, other),
        rest => bench(rest.iter().any(|argument| argument == "--bench")),
    }
}

/// One way to load the tunnel.
struct Round {
    name: &'static str,
    clients: usize,
    keep: bool,
    path: &'static str,
    /// Requests in a real run.
    requests: usize,
}

const ROUNDS: [Round; 7] = [
    Round {
        name: "1 kept",
        clients: 1,
        keep: true,
        path: "/",
        requests: 20_000,
    },
    Round {
        name: "16 kept",
        clients: 16,
        keep: true,
        path: "/",
        requests: 100_000,
    },
    Round {
        name: "64 kept",
        clients: 64,
        keep: true,
        path: "/",
        requests: 100_000,
    },
    Round {
        name: "512 kept",
        clients: 512,
        keep: true,
        path: "/",
        requests: 100_000,
    },
    Round {
        name: "100 new connections",
        clients: 100,
        keep: false,
        path: "/",
        requests: 40_000,
    },
    Round {
        name: "16 kept, 16 KiB",
        clients: 16,
        keep: true,
        path: "/body/16384",
        requests: 20_000,
    },
    Round {
        name: "4 kept, 2 MiB",
        clients: 4,
        keep: true,
        path: "/body/2097152",
        requests: 100,
    },
];

fn bench(real: bool) -> Result<()> {
    let Some(world) = World::new(GUESTS) else {
        return Ok(());
    };
    let target: SocketAddr = "169.254.169.254:80".parse()?;
    let server = Part::start(&world, "server", &world.server_key, &world.node_key)?;
    let node = Part::start(&world, "node", &world.node_key, &world.server_key)?;
    world
        .node
        .ip("route add 169.254.169.254/32 dev wfmeta0 table 1690");
    println!(
        "server's memory: {} KiB, node's: {} KiB",
        server.memory("VmRSS")?,
        node.memory("VmRSS")?
    );
    for round in ROUNDS {
        let load = Load {
            target,
            sources: (0..GUESTS).map(guest_address).collect(),
            clients: round.clients,
            requests: if real {
                round.requests
            } else {
                round.requests / 50
            },
            paths: vec![round.path.into()],
            headers: vec![],
            keep: round.keep,
            timeout: Duration::from_secs(30),
        };
        let (cpu_server, cpu_node) = (server.cpu()?, node.cpu()?);
        let outcome = world.guests.run(move || load.run());
        println!(
            "{:<20} {outcome}  cpu server {:.2} s node {:.2} s  server {} KiB",
            round.name,
            server.cpu()? - cpu_server,
            node.cpu()? - cpu_node,
            server.memory("VmRSS")?
        );
        ensure!(
            outcome.failed == 0,
            "{} requests failed: {:?}",
            outcome.failed,
            outcome.first_error
        );
    }
    let idle = Duration::from_secs(if real { 20 } else { 1 });
    let before = (server.cpu()?, node.cpu()?);
    world.guests.run(move || tokio::time::sleep(idle));
    let percent = |seconds: f64| 100.0 * seconds / idle.as_secs_f64();
    println!(
        "idle: server {:.2} % of a core, node {:.2} %",
        percent(server.cpu()? - before.0),
        percent(node.cpu()? - before.1)
    );
    println!(
        "memory now and at most: server {} and {} KiB, node {} and {} KiB",
        server.memory("VmRSS")?,
        server.memory("VmHWM")?,
        node.memory("VmRSS")?,
        node.memory("VmHWM")?
    );
    Ok(())
}

/// A part of the tunnel in a separate process. It exits when its input is closed, which also happens if the bench is
/// killed.
struct Part(Child);

impl Part {
    fn start(
        world: &World,
        role: &'static str,
        own: &PrivateKey,
        other: &PrivateKey,
    ) -> Result<Self> {
        let (own, other) = (own.to_base64(), other.public_key().to_string());
        let mut child = world.node.run(move || async move {
            Command::new(std::env::current_exe()?)
                .args([role, &own, &other])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        })?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
        ensure!(ready.trim() == "ready", "the {role} does not start");
        Ok(Self(child))
    }

    /// Resident memory in KiB, now (`VmRSS`) or at most so far (`VmHWM`).
    fn memory(&self, which: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(which)?.strip_prefix(':'))
            .with_context(|| format!("no {which}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Seconds of processor time so far; the kernel counts in hundredths (proc(5), fields 14 and 15).
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields = stat
            .rsplit(") ")
            .next()
            .context("no fields")?
            .split(' ')
            .skip(11)
            .take(2);
        let ticks = fields.map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        Ok(f64::from(ticks) / 100.0)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.stdin.take();
        let _ = self.0.wait();
    }
}

/// Reports that it is ready and waits for the end of its input.
fn serve_until_stdin_closes() {
    println!("ready");
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// One thread, like `waifud-metadatad`.
fn server(own: PrivateKey, node: &str) -> Result<()> {
    let peer = PeerConfig {
        public_key: node.parse()?,
        endpoint: Some("127.0.0.1:51822".parse()?),
        allowed: vec!["10.77.1.0/24".parse()?],
    };
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let (server, listener) = TunnelServer::start(ServerConfig::new(own))?;
            server.set_peer(peer)?;
            tokio::spawn(service::serve(listener));
            Ok(spawn_blocking(serve_until_stdin_closes).await?)
        })
}

/// A task among others in a process that has more threads, like `waifud-agentd`.
fn node(own: PrivateKey, server: &str) -> Result<()> {
    let config = NodeTunnelConfig::new(own, server.parse()?);
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(async {
            let _tunnel = NodeTunnel::start_in_userspace(config).await?;
            Ok(spawn_blocking(serve_until_stdin_closes).await?)
        })
}
