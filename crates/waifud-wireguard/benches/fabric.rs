//! How fast the mesh carries TCP between two nodes, beside wireguard-go and beside the wire itself.
//!
//! ```text
//!  iperf3 ─ wfmesh0 ─ this program again: mesh ═ veth ═ mesh: this program again ─ wfmesh0 ─ iperf3
//!  iperf3 ─ wgo0 ──── wireguard-go ════════════ veth ════════════ wireguard-go ──── wgo1 ─── iperf3
//!  iperf3 ───────────────────────────────────── veth ──────────────────────────────────────── iperf3
//! ```
//!
//! The two nodes are network namespaces, where iperf3 is the guest. All three ways exist at the same time and take turns, so that
//! other work on the machine affects them alike. The mesh is what `waifud-agentd mesh` runs, with the same MTU and peers as a node
//! has. `cargo xtask bench fabric` runs it in release mode. A missed target is printed.
//!
//! Everything is in a mount namespace with a `/run` of its own, so that wireguard-go's sockets and the names of the network
//! namespaces end with this program. `-- --rounds N` changes how often each way is measured.
#![expect(
    clippy::indexing_slicing,
    reason = "arrays of two nodes and three ways"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use waifud_wireguard::mesh::{self, Mesh, MeshClient, MeshConfig, MeshPeer};
use waifud_wireguard::{PrivateKey, PublicKey};

/// How many times each way is measured in each direction of each load, unless `--rounds` says otherwise.
const ROUNDS: usize = 5;
/// How often a measurement is tried.
const ATTEMPTS: usize = 3;
/// Seconds of a measurement.
const SECONDS: &str = "3";
/// The MTU of both tunnels, that of a node with Ethernet.
const MTU: u16 = 1420;
const MESH_PORT: u16 = 51820;
const GO_PORT: u16 = 51821;
/// How long a daemon may take to start or to shake hands.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way between the nodes: its name, and the address of the second node there.
const WAYS: [(&str, &str); 3] = [
    ("mesh", "10.144.2.1"),
    ("wireguard-go", "10.145.2.1"),
    ("veth", "192.0.2.2"),
];

/// The number of parallel connections of each load.
const LOADS: [&str; 2] = ["1", "8"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, key, socket] = &arguments[..]
        && role == "mesh"
    {
        return run_mesh(key, Path::new(socket));
    }
    for tool in ["ip", "iperf3", "wireguard-go", "wg"] {
        let found = Command::new(tool).arg("--version").output();
        found.with_context(|| {
            format!(
                "{tool} is missing: apt-get install iproute2 iperf3 wireguard-go wireguard-tools"
            )
        })?;
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("only `cargo xtask bench fabric` measures");
        return Ok(());
    }
    let mut rounds = arguments.iter().skip_while(|it| *it != "--rounds").skip(1);
    let rounds = rounds.next().map_or(Ok(ROUNDS), |number| number.parse())?;
    let none = None::<&str>;
    // This program has no other threads yet.
    unshare(CloneFlags::CLONE_NEWNS).context("needs root")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    fs::create_dir("/run/wireguard")?;

    let nodes = Nodes::new()?;
    let meshes = [nodes.mesh(0)?, nodes.mesh(1)?];
    connect(&meshes)?;
    let go = [nodes.wireguard_go(0)?, nodes.wireguard_go(1)?];
    nodes.connect_wireguard_go()?;
    let _server = nodes.server()?;
    for (way, address) in WAYS {
        nodes
            .until_pinged(address)
            .with_context(|| format!("{way} does not connect the nodes"))?;
    }
    let [a, b] = &meshes;
    let programs = [vec![&a.child, &b.child], go.iter().collect(), Vec::new()];
    measure(&nodes, &programs, rounds)
}

/// Runs a mesh, as `waifud-agentd mesh` does.
fn run_mesh(key: &str, socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mesh = Mesh::start(MeshConfig {
            interface: "wfmesh0".to_owned(),
            private_key: key.parse()?,
            port: MESH_PORT,
            mtu: MTU,
        })
        .await?;
        mesh::serve(mesh, socket, "bench", || println!("ready")).await?;
        Ok(())
    })
}

/// Two network namespaces with a veth between them. They end with this value.
struct Nodes {
    names: [String; 2],
    dir: tempfile::TempDir,
    keys: [PrivateKey; 2],
}

struct MeshProcess {
    child: Running,
    client: MeshClient,
    key: PublicKey,
}

/// A program that is ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _best_effort = self.0.kill();
        let _best_effort = self.0.wait();
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not start"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split(' ')))
}

impl Nodes {
    fn new() -> Result<Self> {
        let names = ["a", "b"].map(|side| format!("wfbench-{side}-{}", std::process::id()));
        let nodes = Self {
            names,
            dir: tempfile::tempdir()?,
            keys: [PrivateKey::generate(), PrivateKey::generate()],
        };
        let [a, b] = &nodes.names;
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!(
            "link add up0 netns {a} type veth peer name up0 netns {b}"
        ))?;
        for (number, node) in (1..).zip(&nodes.names) {
            ip(&format!("-n {node} link set lo up"))?;
            ip(&format!(
                "-n {node} address add 192.0.2.{number}/24 dev up0"
            ))?;
            ip(&format!("-n {node} link set up0 up"))?;
        }
        Ok(nodes)
    }

    /// A command in the namespace of a node.
    fn command(&self, node: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[node]]);
        // The program ends with this one, also if this one is killed.
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        command.arg(program);
        command
    }

    /// Gives the tunnel of a node its addresses: 10.NET.NODE.1, and the way to the other node.
    fn address(&self, node: usize, link: &str, net: u8) -> Result<()> {
        let name = &self.names[node];
        let (own, other) = (node + 1, 2 - node);
        ip(&format!(
            "-n {name} address add 10.{net}.{own}.1/32 dev {link}"
        ))?;
        ip(&format!(
            "-n {name} route add 10.{net}.{other}.0/24 dev {link} src 10.{net}.{own}.1"
        ))
        .map(drop)
    }

    fn mesh(&self, node: usize) -> Result<MeshProcess> {
        let key = &self.keys[node];
        let socket = self.dir.path().join(format!("mesh{node}.sock"));
        let program = std::env::current_exe()?;
        let mut child = self
            .command(node, program)
            .args(["mesh", key.to_base64().as_str()])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let child = Running(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the mesh did not start");
        self.address(node, "wfmesh0", 144)?;
        Ok(MeshProcess {
            child,
            client: MeshClient::new(socket),
            key: key.public_key(),
        })
    }

    /// Its control socket is named after the link, so each node has another name.
    fn wireguard_go(&self, node: usize) -> Result<Running> {
        let link = format!("wgo{node}");
        let child = self
            .command(node, "wireguard-go")
            .args(["--foreground", &link])
            .env("WG_PROCESS_FOREGROUND", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let child = Running(child);
        let begun = std::time::Instant::now();
        let is_running = || -> Result<bool> {
            let shown = self.command(node, "wg").args(["show", &link]).output()?;
            Ok(shown.status.success())
        };
        while !is_running()? {
            ensure!(begun.elapsed() < PATIENCE, "wireguard-go did not start");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(child)
    }

    fn connect_wireguard_go(&self) -> Result<()> {
        for node in [0, 1] {
            let other = 1 - node;
            let (key, peer) = (&self.keys[node], &self.keys[other]);
            let link = format!("wgo{node}");
            let mut config = String::new();
            writeln!(
                config,
                "[Interface]\nPrivateKey = {}",
                key.to_base64().as_str()
            )?;
            writeln!(config, "ListenPort = {GO_PORT}\n[Peer]")?;
            writeln!(config, "PublicKey = {}", peer.public_key())?;
            writeln!(config, "AllowedIPs = 10.145.{}.0/24", other + 1)?;
            writeln!(config, "Endpoint = 192.0.2.{}:{GO_PORT}", other + 1)?;
            let file = self.dir.path().join(format!("wgo{node}.conf"));
            fs::write(&file, config)?;
            run(self.command(node, "wg").args(["setconf", &link]).arg(&file))?;
            let name = &self.names[node];
            ip(&format!("-n {name} link set {link} mtu {MTU} up"))?;
            self.address(node, &link, 145)?;
        }
        Ok(())
    }

    /// The iperf3 of the second node.
    fn server(&self) -> Result<Running> {
        let mut command = self.command(1, "iperf3");
        command.arg("--server").stdout(Stdio::null());
        Ok(Running(command.spawn()?))
    }

    fn until_pinged(&self, address: &str) -> Result<()> {
        let begun = std::time::Instant::now();
        loop {
            let ping = ["-c", "1", "-W", "1", address];
            let pinged = self.command(0, "ping").args(ping).output()?;
            if pinged.status.success() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("{address} does not answer");
            }
        }
    }

    /// Sends as fast as possible over this many connections. Returns the bytes that have arrived, and in how many seconds.
    fn iperf(&self, address: &str, connections: &str, reverse: bool) -> Result<(f64, f64)> {
        let mut command = self.command(0, "iperf3");
        command.args(["--client", address, "--parallel", connections]);
        command.args(["--time", SECONDS, "--json"]);
        if reverse {
            command.arg("--reverse");
        }
        // On a busy machine, iperf3 may miss one of its own deadlines.
        for _ in 0..ATTEMPTS {
            let report: serde_json::Value = serde_json::from_str(&run(&mut command)?)?;
            let received = &report["end"]["sum_received"];
            if let Some(measured) = received["bytes"].as_f64().zip(received["seconds"].as_f64()) {
                return Ok(measured);
            }
            eprintln!("iperf3 to {address} failed: {}", report["error"]);
        }
        bail!("iperf3 to {address} failed {ATTEMPTS} times");
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for name in &self.names {
            // It may not exist yet.
            let _best_effort = ip(&format!("netns delete {name}"));
        }
    }
}

/// Makes the two meshes peers.
fn connect(meshes: &[MeshProcess; 2]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let [a, b] = meshes;
    for (number, this, other) in [(2, a, b), (1, b, a)] {
        let allowed: Ipv4Net = format!("10.144.{number}.0/24").parse()?;
        let peer = MeshPeer {
            public_key: other.key,
            endpoints: vec![format!("192.0.2.{number}:{MESH_PORT}").parse()?],
            allowed: vec![allowed],
        };
        runtime.block_on(this.client.set(vec![peer], MTU))?;
    }
    Ok(())
}

/// The processor time that programs have used so far, in seconds.
fn cpu_time(programs: &[&Running]) -> Result<f64> {
    let mut ticks = 0.0;
    for Running(program) in programs {
        let stat = fs::read_to_string(format!("/proc/{}/stat", program.id()))?;
        let after = stat.rsplit_once(')').context("no name in stat")?.1;
        for field in after.split_ascii_whitespace().skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / 100.0)
}

/// What one way has achieved.
#[derive(Default)]
struct Measured {
    /// Gigabits per second of each measurement.
    rates: Vec<f64>,
    bytes: f64,
    cpu: f64,
}

impl Measured {
    /// The slowest, the median and the fastest.
    fn rates(&mut self) -> [f64; 3] {
        self.rates.sort_by(f64::total_cmp);
        [0, self.rates.len() / 2, self.rates.len() - 1].map(|at| self.rates[at])
    }

    /// Seconds of processor time of both nodes' programs for each GiB.
    fn cpu_per_gib(&self) -> f64 {
        self.cpu / (self.bytes / f64::from(1 << 30))
    }
}

fn measure(nodes: &Nodes, programs: &[Vec<&Running>; 3], rounds: usize) -> Result<()> {
    let mut out = std::io::stdout();
    let load = fs::read_to_string("/proc/loadavg")?;
    writeln!(
        out,
        "{rounds} rounds of {SECONDS} s; load average before: {load}"
    )?;
    for connections in LOADS {
        let mut all = WAYS.map(|_| [Measured::default(), Measured::default()]);
        for round in 0..rounds {
            for (index, (_, address)) in WAYS.iter().enumerate() {
                for reverse in [false, true] {
                    let before = cpu_time(&programs[index])?;
                    let (bytes, seconds) = nodes.iperf(address, connections, reverse)?;
                    let measured = &mut all[index][usize::from(reverse)];
                    measured.rates.push(bytes * 8.0 / seconds / 1e9);
                    measured.bytes += bytes;
                    measured.cpu += cpu_time(&programs[index])? - before;
                }
            }
            eprintln!("{connections} connections: round {} of {rounds}", round + 1);
        }
        for reverse in [false, true] {
            let direction = if reverse { "b to a" } else { "a to b" };
            let mut medians = Vec::new();
            for ((way, _), measured) in WAYS.iter().zip(&mut all) {
                let measured = &mut measured[usize::from(reverse)];
                let [least, middle, most] = measured.rates();
                writeln!(
                    out,
                    "{connections} connections {direction}   {way:<12} median {middle:>6.2} Gbit/s   slowest {least:>6.2}   \
                     fastest {most:>6.2}   processor time {:.2} s/GiB",
                    measured.cpu_per_gib(),
                )?;
                medians.push(middle);
            }
            let share = medians[0] / medians[1] * 100.0;
            let result = if share > 100.0 { "met" } else { "MISSED" };
            writeln!(
                out,
                "  {share:.0} % of wireguard-go; target: more than 100 %: {result}"
            )?;
        }
    }
    Ok(())
}
