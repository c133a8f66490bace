//! waifud's share of the time to create a VM, from the request to running, beyond the same libvirt calls.
//!
//! Both variants run inside one node, with one libvirtd, interleaved, so that a busy machine slows both equally:
//!
//! - *waifud*: `POST /v1/instances` until the event `instance.started` arrives;
//! - *bare*: the same overlay, `defineXML` and `create`, with the XML of waifud's domain.
//!
//! The image is in the pool before the first round. `-- --rounds N` changes the number of rounds (30). `-- --trace` also prints
//! what the agent did in these rounds and when, from its log at level `debug`, which costs time itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use nix::unistd::User;
use virt::connect::Connect;
use virt::domain::Domain;
use waifud_api::client::{Client, EventQuery};
use waifud_api::{CreateInstance, Instance};
use waifud_lab::{Lab, LabOptions, wait};
use waifud_storage::FilePoolConfig;
use waifud_storage::StoragePool;
use waifud_storage::qcow2::Qcow2Pool;
use waifud_types::{ByteSize, InstanceId, Timestamp, VolumeId};

const POOL: &str = "/var/lib/waifud-agent/pools/main";
const SOCKET: &str = "/run/waifud/waifud.sock";
const AGENT_LOG: &str = "/var/log/waifud/waifud-agentd.log";
const LIMIT: Duration = Duration::from_mins(1);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let traced = args.iter().any(|a| a == "--trace");
    let rounds = args
        .iter()
        .position(|a| a == "--rounds")
        .and_then(|i| args.get(i + 1))
        .map_or(Ok(30), |n| n.parse())?;
    if args.iter().any(|a| a == "inside") {
        return tokio::runtime::Runtime::new()?.block_on(inside(rounds, traced));
    }
    outside(rounds, traced)
}

/// Starts the lab and runs this program again inside it.
fn outside(rounds: usize, traced: bool) -> Result<()> {
    let me = std::env::current_exe()?;
    // target/release/deps/create-123
    let bin_dir = me
        .ancestors()
        .nth(2)
        .context("this program has no directory")?
        .to_owned();
    let tiny = waifud_images::build(
        waifud_images::Guest::Tiny,
        &waifud_images::default_cache_dir(),
        &|line| {
            eprintln!("{line}");
        },
    )?;
    let level = ("RUST_LOG".to_owned(), "info,waifud_agent=debug".to_owned());
    let lab = Lab::up(&LabOptions {
        env: traced.then_some(level).into_iter().collect(),
        init_exe: Some(bin_dir.join("xtask")),
        bin_dir: Some(bin_dir.clone()),
        ..LabOptions::with_daemons()
    })?;
    let mut add = std::process::Command::new(bin_dir.join("waifuctl"));
    add.env("WAIFUD_SOCKET", lab.path_outside(SOCKET))
        .args(["template", "add", "tiny", "--file"])
        .arg(&tiny.qcow2);
    wait::run(&mut add, LIMIT)?;
    let me = me.display().to_string();
    let rounds = rounds.to_string();
    let mut arguments = vec![me.as_str(), "inside", "--rounds", &rounds];
    arguments.extend(traced.then_some("--trace"));
    let mut command = lab.command("alder", arguments)?;
    let status = command.status()?;
    lab.down()?;
    ensure!(
        status.success(),
        "the bench failed inside the node: {status}"
    );
    Ok(())
}

/// Runs both variants, one after the other, `rounds` times.
async fn inside(rounds: usize, traced: bool) -> Result<()> {
    let client = Client::unix(Path::new(SOCKET))?;
    let libvirt = Connect::open(Some("qemu:///system"))?;
    let qemu = User::from_name("libvirt-qemu")?.context("the node has no user libvirt-qemu")?;
    let owner = (qemu.uid.as_raw(), qemu.gid.as_raw());
    let pool = Qcow2Pool::open(FilePoolConfig {
        volume_owner: Some(owner),
        ..FilePoolConfig::new("main".parse()?, POOL)
    })?;
    // Imports the image into the pool and returns the XML of waifud's domains.
    let (_, sample) = by_waifud(&client, "sample").await?;
    let xml = Domain::lookup_by_uuid_string(&libvirt, &sample.id.to_string())?
        .get_xml_desc(0x2 /* inactive */)?;
    delete(&client, "sample").await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut begun = Vec::new();
    for round in 0..rounds {
        begun.push(Timestamp::now());
        let (time, _) = by_waifud(&client, &format!("bench{round}")).await?;
        ours.push(time);
        delete(&client, &format!("bench{round}")).await?;
        bare.push(by_hand(&libvirt, &pool, owner, &xml, &sample).await?);
    }
    let times = ours.clone();
    let (ours, bare) = (Spread::of(ours), Spread::of(bare));
    println!("create to running, {rounds} rounds each, interleaved, one libvirtd (milliseconds)");
    println!(
        "  {:<8} {:>8} {:>8} {:>8} {:>8}",
        "", "min", "median", "p90", "max"
    );
    for (name, spread) in [("waifud", &ours), ("bare", &bare)] {
        let Spread {
            min,
            median,
            p90,
            max,
        } = spread;
        println!("  {name:<8} {min:>8.1} {median:>8.1} {p90:>8.1} {max:>8.1}");
    }
    for (name, share, target) in [
        ("median", ours.median - bare.median, 10.0),
        ("p90", ours.p90 - bare.p90, 30.0),
    ] {
        let verdict = if share < target { "met" } else { "missed" };
        println!(
            "  waifud's share of the {name}: {share:.1} ms; target: under {target:.0} ms: {verdict}"
        );
    }
    if traced {
        let rounds: Vec<_> = begun.into_iter().zip(times).collect();
        print_trace(&std::fs::read_to_string(AGENT_LOG)?, &rounds);
    }
    Ok(())
}

/// Prints the median of when the agent had done each step, and of how long it took. The times count from the beginning of a
/// round, a few milliseconds before the request.
fn print_trace(log: &str, rounds: &[(Timestamp, Duration)]) {
    let mut steps: BTreeMap<String, (Vec<Duration>, Vec<Duration>)> = BTreeMap::new();
    for (begun, time) in rounds {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (at, label, took) in log.lines().filter_map(step) {
            let Ok(after) = Duration::try_from(at.duration_since(*begun)) else {
                continue;
            };
            // The last report is acknowledged while the event is on its way.
            if after > *time + Duration::from_millis(20) {
                break;
            }
            let count = seen.entry(label.clone()).or_default();
            *count += 1;
            let (ended, durations) = steps.entry(format!("{label} {count}")).or_default();
            ended.push(after);
            durations.push(took);
        }
    }
    let mut rows: Vec<_> = steps
        .into_iter()
        .filter(|(_, (ended, _))| ended.len() * 2 > rounds.len())
        .map(|(label, (ended, took))| (Spread::of(ended).median, Spread::of(took).median, label))
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("  done after, took, of the agent (medians)");
    for (ended, took, label) in rows {
        println!("  {ended:>8.1} {took:>8.1}  {label}");
    }
}

/// The time, the name and the duration of a step in a line of the agent's log.
fn step(line: &str) -> Option<(Timestamp, String, Duration)> {
    let (at, rest) = line.split_once(' ')?;
    let took = rest.split_once("took=")?.1.split(' ').next()?;
    let name = match rest.split_once("step=\"") {
        Some((_, name)) => name.split('"').next()?,
        None => rest.split_once(": ")?.1.split(' ').next()?,
    };
    let units = [("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let (number, unit) = units
        .iter()
        .find_map(|(unit, seconds)| Some((took.strip_suffix(unit)?, seconds)))?;
    let took = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()?;
    Some((at.parse().ok()?, name.to_owned(), took))
}

/// The time from the request until the event `instance.started`.
async fn by_waifud(client: &Client, name: &str) -> Result<(Duration, Instance)> {
    let since = client
        .events(&EventQuery {
            limit: Some(1),
            ..EventQuery::default()
        })
        .await?
        .revision;
    let query = EventQuery {
        since: Some(since),
        ..EventQuery::default()
    };
    let mut events = Box::pin(client.watch_events(&query).await?);
    let request: CreateInstance = serde_json::from_value(serde_json::json!({
        "name": name, "template": "tiny", "memory_bytes": 128 << 20, "disk_bytes": 1 << 30,
    }))?;
    let begun = Instant::now();
    let instance = client.create_instance(&request, name).await?;
    let running = async {
        while let Some(event) = events.next().await {
            let event = event?;
            if event.event == "instance.started" && event.data.contains(&instance.id.to_string()) {
                return Ok(());
            }
        }
        bail!("the event stream ended")
    };
    tokio::time::timeout(LIMIT, running)
        .await
        .context("it did not run in time")??;
    Ok((begun.elapsed(), instance))
}

async fn delete(client: &Client, name: &str) -> Result<()> {
    let progress = client.delete_instance(name, LIMIT).await?;
    ensure!(
        progress == waifud_api::client::Progress::Done,
        "{name} was not deleted in time"
    );
    Ok(())
}

/// The same overlay and the same two libvirt calls.
async fn by_hand(
    libvirt: &Connect,
    pool: &Qcow2Pool,
    owner: (u32, u32),
    xml: &str,
    sample: &Instance,
) -> Result<Duration> {
    let id = InstanceId::generate();
    // Another domain with another id, which is in its UUID and in every path.
    let xml = xml
        .replace(&sample.id.to_string(), &id.to_string())
        .replace("<name>sample<", "<name>bare<");
    for dir in directories(&xml, &id) {
        std::fs::create_dir_all(&dir)?;
        std::os::unix::fs::chown(&dir, Some(owner.0), Some(owner.1))?;
    }
    let volume = VolumeId {
        instance: id,
        disk: "root".parse()?,
    };
    let begun = Instant::now();
    pool.ensure_volume(&volume, sample.spec.image, ByteSize::gib(1))
        .await?;
    let domain = Domain::define_xml(libvirt, &xml)?;
    domain.create()?;
    let time = begun.elapsed();
    domain.destroy()?;
    domain.undefine()?;
    pool.ensure_volume_absent(&volume).await?;
    for dir in directories(&xml, &id) {
        std::fs::remove_dir_all(&dir).ok();
    }
    Ok(time)
}

/// The instance's directories in the XML.
fn directories(xml: &str, id: &InstanceId) -> Vec<PathBuf> {
    let id = id.to_string();
    xml.split(['\'', '"', '<', '>'])
        .filter(|text| text.starts_with('/') && text.contains(&id))
        .filter_map(|text| Path::new(text).parent().map(Path::to_owned))
        .filter(|dir| dir.ends_with(&id))
        .collect()
}

/// Milliseconds.
struct Spread {
    min: f64,
    median: f64,
    p90: f64,
    max: f64,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |part: f64| {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index"
            )]
            let index = ((times.len().saturating_sub(1)) as f64 * part).round() as usize;
            times
                .get(index)
                .map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
        };
        Self {
            min: at(0.0),
            median: at(0.5),
            p90: at(0.9),
            max: at(1.0),
        }
    }
}
