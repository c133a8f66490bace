//! A real waifud with its state on the disk, and simulated nodes: joined over TLS, each with a key, a watch and heartbeats.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use waifud_agent::Membership;
use waifud_agent::interfaces::{ControlLink, HttpLink};
use waifud_api::agent::{AgentReport, Hello, WatchFrame, WatchStart};
use waifud_api::client::Client;
use waifud_api::join::{CreateJoinToken, JoinToken};
use waifud_api::{CreateInstance, CreateTemplate};
use waifud_types::{Digest, Timestamp};

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
        let program = Path::new(env!("CARGO_BIN_EXE_waifud"));
        let parent = program.parent().context("the program has no directory")?;
        let dir = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(parent)?;
        let home = dir.path().display();
        let config = dir.path().join("waifud.toml");
        let text = format!(
            "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\nlisten = ['127.0.0.1:0']\n"
        );
        std::fs::write(&config, text)?;
        let mut child = Command::new(program)
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let waifud = Self { child, dir };
        // It prints its address once it listens. Later output goes to a file, as to the journal under systemd.
        loop {
            let line = lines.next().context("waifud ended")??;
            if line.contains("listen=[") {
                break;
            }
        }
        let mut log = std::fs::File::create(waifud.dir.path().join("log"))?;
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _disk_may_be_full = writeln!(log, "{line}");
            }
        });
        Ok(waifud)
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
