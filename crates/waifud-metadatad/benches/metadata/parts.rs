//! The two measured programs, as processes in the node's namespace. Both end with this process, even if it is killed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use waifud_api::MetadatadClient;

use crate::kit::World;

const PATIENCE: Duration = Duration::from_secs(30);

/// The program's directory, which is removed at the end, even after an interrupt.
pub struct Home(tempfile::TempDir);

impl Home {
    pub fn new() -> Result<Self> {
        let home = Self(tempfile::tempdir()?);
        let text = format!(
            "socket = \"{}\"\nstate_dir = \"{}\"\n",
            home.socket().display(),
            home.path().join("state").display(),
        );
        fs::write(home.config(), text)?;
        remove_when_interrupted(home.path().to_owned());
        Ok(home)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn config(&self) -> PathBuf {
        self.path().join("metadatad.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("run/control.sock")
    }
}

/// A signal ends this process without running destructors. Processes and namespaces end anyway, but the directory must
/// be removed.
fn remove_when_interrupted(path: PathBuf) {
    std::thread::spawn(move || {
        let Ok(runtime) = Builder::new_current_thread().enable_all().build() else {
            return;
        };
        let came = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::io::Result::Ok(())
        });
        if came.is_ok() {
            let _ = fs::remove_dir_all(path);
            std::process::exit(130);
        }
    });
}

/// A process.
pub struct Part(Child);

impl Part {
    /// waifud-metadatad, once it answers on its socket.
    pub fn metadatad(world: &World, home: &Home) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(env!("CARGO_BIN_EXE_waifud-metadatad"))
            .arg("--config")
            .arg(home.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let part = Self::spawn(world, command)?;
        let client = MetadatadClient::new(home.socket());
        let ready = async move {
            while client.status().await.is_err() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        world
            .node
            .run(move || timeout(PATIENCE, ready))
            .context("waifud-metadatad does not answer")?;
        Ok(part)
    }

    /// This program in the role of the node's agent.
    pub fn node(world: &World, home: &Home) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("node")
            .arg(home.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut part = Self::spawn(world, command)?;
        let mut line = String::new();
        BufReader::new(part.0.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(
            line == "ready\n",
            "the node's end has not started: {line:?}"
        );
        Ok(part)
    }

    fn spawn(world: &World, mut command: Command) -> Result<Self> {
        let child = world.node.run(move || async move { command.spawn() });
        Ok(Self(child.context("a part could not be started")?))
    }

    /// A line of `/proc/PID/status`, in KiB.
    pub fn memory(&self, which: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(which)?.strip_prefix(':'))
            .with_context(|| format!("no {which}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Seconds of processor time so far; the kernel counts in hundredths (proc(5), fields 14 and 15).
    pub fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields = stat.rsplit(") ").next().context("no fields")?;
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks = ticks.map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        Ok(f64::from(ticks) / 100.0)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The load averages of the last 1, 5 and 15 minutes.
pub fn load_average() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}
