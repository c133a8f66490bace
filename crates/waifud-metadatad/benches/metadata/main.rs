//! How fast guests get their documents. Everything is real except the guests: requests with cloud-init's mix leave a
//! guests' namespace through a veth, an `ip rule` routes them to the node's TUN device, and encrypted datagrams carry
//! them over loopback to the program `waifud-metadatad`, which serves sixteen guests.
//!
//! ```text
//!  this process: load        this program again: "node"          waifud-metadatad
//!  guests' namespace ═ veth ═ node's namespace ─ wfmeta0 ═ UDP ═ its own process, all defaults
//! ```
//!
//! `cargo xtask bench metadata` runs it in release mode; without `--bench`, it is a short smoke test. It fails if a
//! request fails. A missed target is printed.

#[path = "../../../waifud-wireguard/tests/kit/mod.rs"]
mod kit;
#[path = "../../../waifud-wireguard/benches/load/mod.rs"]
mod load;
mod node;
mod parts;

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use kit::{World, guest_address};
use load::{Load, Outcome, client::Client};
use parts::{Home, Part};
use tokio::time::timeout;

/// Guests, each with its own address and bundle.
const GUESTS: u8 = 16;

/// The requests of a boot, in order, as the tests of `waifud-metadata` observe them from cloud-init of both Debian
/// releases. The last three are those of its EC2 datasource.
const REQUESTS: [&str; 22] = [
    "/openstack",
    "/openstack",
    "/openstack/2018-08-27/meta_data.json",
    "/openstack/2018-08-27/user_data",
    "/openstack/2018-08-27/vendor_data.json",
    "/openstack/2018-08-27/vendor_data2.json",
    "/openstack/2018-08-27/network_data.json",
    "/latest/meta-data/",
    "/latest/meta-data/placement/",
    "/latest/meta-data/placement/availability-zone",
    "/latest/meta-data/public-keys/",
    "/latest/meta-data/public-keys/0/openssh-key",
    "/latest/meta-data/ami-id",
    "/latest/meta-data/hostname",
    "/latest/meta-data/instance-id",
    "/latest/meta-data/instance-type",
    "/latest/meta-data/local-hostname",
    "/latest/meta-data/local-ipv4",
    "/latest/meta-data/mac",
    "/latest/dynamic/instance-identity",
    "/latest/dynamic/instance-identity/document",
    "/latest/user-data",
];

/// The headers that cloud-init's library sends.
const HEADERS: [&str; 3] = [
    "user-agent: Cloud-Init/22.4.2",
    "accept-encoding: gzip, deflate",
    "accept: */*",
];

/// The time limit of a request, after which it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time limit of a load.
const LIMIT: Duration = Duration::from_mins(2);

/// One load.
struct Round {
    name: &'static str,
    clients: usize,
    keep: bool,
    /// Requests in a real run.
    requests: usize,
    target: Option<Target>,
}

/// The target in SPECIFICATION.md.
enum Target {
    /// The minimum number of requests per second.
    PerSecond(u32),
    /// The maximum time of 99 of 100 requests.
    P99(Duration),
}

const ROUNDS: [Round; 4] = [
    Round {
        name: "1 kept connection",
        clients: 1,
        keep: true,
        // No more than the burst that the service allows for one guest: this load exceeds 4,000/s, which is the limit
        // in the long run.
        requests: 7_500,
        target: None,
    },
    Round {
        name: "16 kept connections",
        clients: 16,
        keep: true,
        requests: 150_000,
        target: Some(Target::PerSecond(30_000)),
    },
    Round {
        name: "64 kept connections",
        clients: 64,
        keep: true,
        requests: 150_000,
        target: Some(Target::P99(Duration::from_millis(5))),
    },
    Round {
        name: "100 clients, a new connection each time",
        clients: 100,
        keep: false,
        requests: 60_000,
        target: Some(Target::PerSecond(10_000)),
    },
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1..).unwrap_or_default() {
        [role, socket] if role == "node" => node::run(socket),
        rest => bench(rest.iter().any(|argument| argument == "--bench")),
    }
}

fn bench(real: bool) -> Result<()> {
    let world = World::new(GUESTS).context("nothing was measured")?;
    let home = Home::new()?;
    let metadatad = Part::metadatad(&world, &home)?;
    let node = Part::node(&world, &home)?;
    world
        .node
        .ip("route add 169.254.169.254/32 dev wfmeta0 table 1690");
    everybody_gets_its_own(&world)?;

    let start = metadatad.memory("VmRSS")?;
    println!(
        "{GUESTS} guests, {} requests of cloud-init's in turn; load average before: {}",
        REQUESTS.len(),
        parts::load_average()?
    );
    println!("waifud-metadatad's memory before: {start} KiB\n");
    let mut failed = 0;
    for round in ROUNDS {
        let requests = if real {
            round.requests
        } else {
            round.requests / 50
        };
        let cpu = (metadatad.cpu()?, node.cpu()?);
        let outcome = run(&world, round.clients, round.keep, requests)?;
        println!("{}: {requests} requests", round.name);
        println!("  {outcome}");
        println!(
            "  processor time: metadatad {:.2} s, node's end {:.2} s, of {:.2} s; metadatad's memory {} KiB",
            metadatad.cpu()? - cpu.0,
            node.cpu()? - cpu.1,
            outcome.elapsed.as_secs_f64(),
            metadatad.memory("VmRSS")?
        );
        if let Some(target) = round.target.filter(|_| real) {
            println!("  {}", target.verdict(&outcome));
        }
        failed += outcome.failed;
    }
    println!(
        "\nwaifud-metadatad's memory after: {} KiB, {} KiB at most",
        metadatad.memory("VmRSS")?,
        metadatad.memory("VmHWM")?
    );
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

fn run(world: &World, clients: usize, keep: bool, requests: usize) -> Result<Outcome> {
    let load = Load {
        target: ([169, 254, 169, 254], 80).into(),
        sources: (0..GUESTS).map(guest_address).collect(),
        clients,
        requests,
        paths: REQUESTS.map(Into::into).to_vec(),
        headers: HEADERS.map(Into::into).to_vec(),
        keep,
        timeout: PATIENCE,
    };
    world
        .guests
        .run(move || timeout(LIMIT, load.run()))
        .context("the load did not end in time")
}

/// Also checks that each guest gets its own documents.
fn everybody_gets_its_own(world: &World) -> Result<()> {
    let mut seen = HashSet::new();
    for number in 0..GUESTS {
        let answers: Vec<String> = world.guests.run(move || async move {
            let asked = async {
                let target = ([169, 254, 169, 254], 80).into();
                let mut client = Client::connect(guest_address(number), target).await?;
                let mut answers = Vec::new();
                for path in REQUESTS {
                    let answer = client.get(path, &HEADERS.map(Into::into), true).await?;
                    ensure!(answer.status == 200, "{path}: status {}", answer.status);
                    answers.push(String::from_utf8(answer.body)?);
                }
                Ok(answers)
            };
            timeout(PATIENCE, asked).await?
        })?;
        let name = node::name(number);
        for part in ["meta_data.json", "/hostname", "user_data"] {
            let answer = REQUESTS.iter().zip(&answers);
            let mut answer = answer.filter(|(path, _)| path.ends_with(part));
            let (path, answer) = answer.next().context("unknown path")?;
            ensure!(
                answer.contains(&name),
                "{path} is not the document of {name}"
            );
        }
        seen.insert(answers);
    }
    ensure!(
        seen.len() == usize::from(GUESTS),
        "two guests got the same documents"
    );
    Ok(())
}

impl Target {
    fn verdict(&self, outcome: &Outcome) -> String {
        let (words, met) = match self {
            Self::PerSecond(least) => (
                format!("at least {least} requests/s"),
                outcome.per_second() >= f64::from(*least),
            ),
            Self::P99(less) => (
                format!("p99 under {} ms", less.as_millis()),
                outcome.percentile(99) < *less,
            ),
        };
        let verdict = if met && outcome.failed == 0 {
            "met"
        } else {
            "MISSED"
        };
        format!("target: {words}, no failures: {verdict}")
    }
}
