//! A lab node with its own libvirtd, and the domains in it: definitions, processes, files.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use waifud_agent::Settings;
use waifud_hypervisor::libvirt::{LibvirtConfig, LibvirtHypervisor};
use waifud_hypervisor::{DomainState, Hypervisor};
use waifud_lab::{Lab, LabOptions, testing};

use super::diskless::Diskless;
use crate::DEADLINE;
use crate::machine::Machine;

/// The uid of `libvirt-qemu` in Debian's libvirt packages.
const QEMU: u32 = 64_055;
const NODE: &str = "alder";

pub struct Node {
    lab: Lab,
    /// The node's `/` as seen from outside.
    root: PathBuf,
    /// A connection for checks, independent of the agent's.
    watcher: Arc<LibvirtHypervisor>,
    clusters: AtomicU32,
    starts: Arc<AtomicU32>,
}

impl Node {
    /// `None` if the machine cannot run a lab; the skip is reported.
    pub fn up() -> Option<Arc<Self>> {
        let lab = testing::lab_or_skip(&LabOptions::default()).unwrap()?;
        let run = lab.path_outside("/run");
        Some(Arc::new(Self {
            root: run.parent().unwrap().to_owned(),
            watcher: LibvirtHypervisor::connect(config(&lab)).unwrap(),
            clusters: AtomicU32::default(),
            starts: Arc::default(),
            lab,
        }))
    }

    /// The outer PIDs of the QEMUs in the node, known to libvirt or not. A running QEMU is a child of the node's init.
    pub fn qemus(&self) -> Vec<i32> {
        let init = self.lab.init_pid(NODE).unwrap();
        let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
        let children = children.unwrap();
        let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
        let is_qemu = |pid: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.starts_with("qemu-system"))
        };
        pids.filter(is_qemu).collect()
    }

    /// Kills the only QEMU, like a crash.
    pub fn crash_qemu(&self) -> i32 {
        let [pid] = self.qemus()[..] else {
            panic!("one QEMU is expected, not {:?}", self.qemus());
        };
        let signal = nix::sys::signal::Signal::SIGKILL;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
        pid
    }

    fn files(&self, place: &str, is_a_domains: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(place));
        let names = entries.into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.filter(|name| is_a_domains(name)).collect();
        names.sort();
        names
    }

    /// Definitions, libvirt's state of running domains, and processes.
    fn left(&self) -> String {
        let ending = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let defined = self.files("etc/libvirt/qemu", |name| ending(name) == "xml");
        let running = self.files("run/libvirt/qemu", |name| {
            // This one belongs to libvirtd itself.
            ending(name) == "xml" || ending(name) == "pid" && name != "driver.pid"
        });
        // Each name contains a number.
        let directories = self.files("var/lib/libvirt/qemu", |name| name.starts_with("domain-"));
        let (directories, qemus) = (directories.len(), self.qemus().len());
        format!(
            "defined {defined:?}, running {running:?}, {directories} directories, {qemus} QEMUs"
        )
    }
}

fn config(lab: &Lab) -> LibvirtConfig {
    let socket = lab.path_outside("/run/libvirt/libvirt-sock");
    let mut config = LibvirtConfig::new(lab.path_outside("/var/lib/probe.json"));
    config.uri = format!("qemu:///system?socket={}", socket.display());
    config.qemu_owner = Some((QEMU, QEMU));
    config.make_directories = false;
    config.start_paused = true;
    config
}

#[async_trait]
impl Machine for Node {
    fn connect(&self) -> Arc<dyn Hypervisor> {
        let libvirt = LibvirtHypervisor::connect(config(&self.lab)).unwrap();
        Arc::new(Diskless::new(
            libvirt,
            self.root.clone(),
            self.starts.clone(),
        ))
    }

    fn adapt(&self, settings: &mut Settings) {
        // At paths that QEMU in the node can open too.
        let number = self.clusters.fetch_add(1, Ordering::Relaxed);
        let make = |place: &str| {
            let path = self.root.join(place).join(format!("wf{number}"));
            std::fs::create_dir(&path).unwrap();
            path
        };
        settings.state_dir = make("var/lib");
        settings.run_dir = make("run");
        settings.qemu_owner = Some((QEMU, QEMU));
        // No guest handles the request, so a clean stop ends by being forced off.
        settings.timing.grace = std::time::Duration::from_millis(200);
    }

    async fn tell(&self, text: &mut String) {
        let starts = self.starts.load(Ordering::Relaxed);
        writeln!(text, "started {starts} times").unwrap();
        let Ok(list) = self.watcher.list().await else {
            return;
        };
        for domain in list {
            let (epoch, state) = (domain.epoch, domain.state);
            assert_ne!(state, DomainState::Running, "started halted");
            writeln!(text, "domain {} {epoch:?} {state:?}", domain.name).unwrap();
            writeln!(text, "{}", sizes(&self.root, &domain.name)).unwrap();
        }
        writeln!(text, "{}", self.left()).unwrap();
    }

    async fn clear(&self) {
        for domain in self.watcher.list().await.unwrap() {
            self.watcher.ensure_absent(domain.id).await.unwrap();
        }
        self.starts.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        while self.left() != "defined [], running [], 0 directories, 0 QEMUs" {
            assert!(begun.elapsed() < DEADLINE, "orphans: {}", self.left());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

/// The sizes in libvirt's stored definition for the domain's next start.
fn sizes(root: &Path, name: &str) -> String {
    let path = root.join(format!("etc/libvirt/qemu/{name}.xml"));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().map(str::trim);
    let sizes = lines.filter(|line| line.starts_with("<memory") || line.starts_with("<vcpu"));
    sizes.collect::<Vec<_>>().join(" ")
}
