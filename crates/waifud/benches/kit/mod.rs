//! A real waifud with its state on the disk, and simulated nodes: joined over TLS, each with a key, a watch and heartbeats.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use waifud_agent::Membership;
use waifud_agent::interfaces::{ControlLink, HttpLink};
use waifud_api::agent::{AgentReport, Hello, WatchFrame, WatchStart};
use waifud_api::client::{Client, ListQuery};
use waifud_api::join::{CreateJoinToken, JoinToken};
use waifud_api::{CreateInstance, CreateTemplate};
use waifud_types::{Digest, Timestamp};

/// The file with its output.
const LOG: &str = "log";

/// A report at least every 10 seconds is the heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A running waifud; killed, and its state removed, when dropped.
pub struct Waifud {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Waifud {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _may_have_ended = self.child.wait();
    }
}

impl Waifud {
    /// Starts the built program. Its state is in the target directory, since a temporary directory may be in memory.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// Starts it with further lines in its configuration file.
    pub fn start_with(settings: &str) -> Result<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_waifud"));
        let parent = program.parent().context("the program has no directory")?;
        let dir = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(parent)?;
        let home = dir.path().display();
        let config = dir.path().join("waifud.toml");
        let text = format!(
            "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\nlisten = ['127.0.0.1:0']\n{settings}"
        );
        std::fs::write(&config, text)?;
        let child = launch(dir.path())?;
        Ok(Self { child, dir })
    }

    /// Stops it as systemd does, and starts it again with the same state. Returns the time from the new process to its first
    /// answer.
    pub async fn restart(&mut self) -> Result<Duration> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.child.wait()?;
        let begun = Instant::now();
        self.child = launch(self.dir.path())?;
        let list = ListQuery {
            limit: Some(1),
            ..ListQuery::default()
        };
        self.client()?.instances(&list).await?;
        Ok(begun.elapsed())
    }

    /// Its processor time so far.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name may contain spaces. User and system time are fields 14 and 15 (proc(5)).
        let fields = stat.rsplit(')').next().context("an invalid stat file")?;
        let ticks: Vec<u64> = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        // The unit is a hundredth of a second, whatever the kernel's own ticks are.
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }

    /// Its resident memory in MiB: at present, and at its peak.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            anyhow::Ok(number.context("no such line")?.parse::<u64>()? / 1024)
        };
        Ok((mib("VmRSS:")?, mib("VmHWM:")?))
    }

    /// What it has logged since it listens.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join(LOG))?)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("u.sock")
    }

    pub fn client(&self) -> Result<Client> {
        Ok(Client::unix(&self.socket())?)
    }

    /// Adds the template `small`.
    pub async fn template(&self) -> Result<()> {
        // The header of an empty qcow2 of one GiB.
        let mut bytes = vec![0; 4096];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 3;
        bytes[23] = 16;
        bytes[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let image = Digest::from_bytes(hash.as_ref().try_into()?);
        let file = self.dir.path().join("small.qcow2");
        std::fs::write(&file, bytes)?;
        let client = self.client()?;
        client.upload_image(image, &file, |_| {}).await?;
        let template: CreateTemplate =
            serde_json::from_value(json!({"name": "small", "image": image}))?;
        client.create_template(&template).await?;
        Ok(())
    }

    /// Joins `count` nodes, each with capacity for all instances. Returns the number of instances that they have received.
    pub async fn nodes(&self, count: usize) -> Result<Arc<AtomicUsize>> {
        let received = Arc::new(AtomicUsize::new(0));
        let client = self.client()?;
        for number in 0..count {
            let name = format!("node{number}");
            let made = client
                .create_join_token(&CreateJoinToken::default())
                .await?;
            let token = JoinToken::parse(made.token.expose()).context("no join token")?;
            let home = self.dir.path().join(&name);
            std::fs::create_dir(&home)?;
            let member = Membership::join(&home, &token, &[], name.parse()?).await?;
            let link = HttpLink::of(member)?;
            link.hello(&hello(&name)?).await?;
            tokio::spawn(live(link, Arc::clone(&received)));
        }
        Ok(received)
    }
}

/// Starts the program with the configuration file in this directory, and returns once it listens. Later output goes to a file,
/// as to the journal under systemd.
fn launch(dir: &Path) -> Result<Child> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_waifud"))
        .arg("--config")
        .arg(dir.join("waifud.toml"))
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
    loop {
        let line = lines.next().context("waifud ended")??;
        if line.contains("listen=[") {
            break;
        }
    }
    let mut log = std::fs::File::create(dir.join(LOG))?;
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _disk_may_be_full = writeln!(log, "{line}");
        }
    });
    Ok(child)
}

fn hello(name: &str) -> Result<Hello> {
    let tib = 1u64 << 40;
    let facts = json!({
        "arch": "x86_64", "cpu_model": "a CPU", "agent_version": "0.1.0",
        "hypervisor": {"kind": "kvm", "reason": "simulated"},
        "capacity": {"cpus": 64, "memory_bytes": tib}, "used": {"cpus": 0, "memory_bytes": 0},
        "pools": [{"name": "main", "kind": "qcow2", "size_bytes": 100 * tib, "used_bytes": 0,
            "promised_bytes": 0, "health": "ok"}],
        "bridges": [], "routes": ["192.168.1.0/24"], "conditions": [], "labels": {"rack": "a"},
    });
    Ok(Hello {
        name: name.parse()?,
        facts: serde_json::from_value(facts)?,
        now: Timestamp::now(),
        boot_id: None,
        incarnation: None,
        order: None,
        hardware: None,
    })
}

/// Reads a node's watch and sends heartbeats, until the process or waifud exits.
async fn live(link: HttpLink, received: Arc<AtomicUsize>) {
    let Ok(mut watch) = link.watch(WatchStart::default()).await else {
        return;
    };
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            frame = watch.next() => match frame {
                Ok(Some(WatchFrame::Put { .. })) => { received.fetch_add(1, Ordering::Relaxed); }
                Ok(Some(_)) => {}
                _ => return,
            },
            _ = heartbeat.tick() => {
                if let Err(error) = link.report(&AgentReport::default()).await {
                    eprintln!("a heartbeat failed: {error}");
                }
            }
        }
    }
}

/// A typical request: a key and a little user-data.
pub fn request(name: &str) -> Result<CreateInstance> {
    let user_data = format!("#cloud-config\n# {}\n", "x".repeat(1000));
    Ok(serde_json::from_value(json!({
        "name": name, "template": "small", "memory_bytes": 128 << 20, "disk_bytes": 1u64 << 30,
        "user_data": user_data,
        "ssh_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB bench"],
    }))?)
}

/// A percentile of a sorted list, in milliseconds.
pub fn at(sorted: &[Duration], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list"
    )]
    let place = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted
        .get(place)
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// The value of `flag`, for example of `--nodes 256`.
pub fn number(flag: &str, default: usize) -> Result<usize> {
    let args: Vec<String> = std::env::args().collect();
    let given = args.iter().position(|arg| arg == flag);
    let given = given.and_then(|place| args.get(place + 1));
    Ok(given.map_or(Ok(default), |text| text.parse())?)
}
