//! `cargo xtask demo`: the main job in one command.
//!
//! Installs missing packages, builds the programs, starts the three daemons in a lab, and adds a template from a real
//! Debian cloud image. Then it creates a VM with cloud-config user-data, waits until the guest's cloud-init has
//! finished, and verifies the result over SSH. On a terminal, the lab then stays up until Ctrl-C. The last line of
//! standard output is a JSON object; everything else goes to standard error. Nothing remains afterwards.

mod proof;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use serde_json::Value;
use waifud_images::{BuiltImage, Guest};
use waifud_lab::{Lab, LabOptions, current, wait};

use crate::{build, packages, root};

/// The name of the instance.
const INSTANCE: &str = "demo";
/// The name of the template.
const TEMPLATE: &str = "debian-12";
/// Limit of the first boot. Emulated on two busy cores, it took three minutes in one run and seven in another.
const READY_LIMIT: &str = "12m";
/// Limit of commands that answer at once.
const SHORT: Duration = Duration::from_mins(1);

#[derive(Parser)]
pub struct Args {
    /// Exit after the verification, even on a terminal
    #[arg(long)]
    once: bool,
    /// Packages are installed and programs built already (for the tests)
    #[arg(long, hide = true)]
    prepared: bool,
}

/// The last line of standard output.
#[derive(Serialize)]
struct Report {
    instance: String,
    address: String,
    datasource: String,
    cloud_init: String,
    hypervisor: String,
    seconds: Seconds,
}

/// Durations in seconds; all but `image` are measured from the request.
#[derive(Serialize)]
struct Seconds {
    image: f64,
    accepted: f64,
    running: f64,
    ready: f64,
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<()> {
    if !args.prepared {
        packages::ensure("demo")?;
        step("building the programs");
        build::programs()?;
    }
    root::become_root("starting guests in namespaces")?;
    let image = debian_image()?;
    step("starting libvirtd, waifud, waifud-agentd and waifud-metadatad in their own namespaces");
    let lab = Lab::up(&LabOptions::with_daemons())?;
    let place = current::place();
    let is_current = current::lab(&place)?.is_none() && current::set(&place, &lab).is_ok();
    let result = main_job(&lab, &image, args);
    if is_current {
        current::clear(&place)?;
    }
    step("stopping the lab");
    lab.down()?;
    let report = result?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// The part between the start and the end of the lab.
fn main_job(lab: &Lab, image: &BuiltImage, args: &Args) -> Result<Report> {
    let waifuctl = Waifuctl::new(lab)?;
    let key = proof::make_key(lab)?;
    let user_data = lab.path_outside("/etc/waifud/demo-user-data.yaml");
    std::fs::write(&user_data, proof::USER_DATA).context("cannot write the user-data")?;
    waifuctl.wait_for_node()?;

    step(&format!(
        "waifuctl template add {TEMPLATE} --file {}",
        image.qcow2.display()
    ));
    waifuctl.show(&[
        "template",
        "add",
        TEMPLATE,
        "--user",
        "debian",
        "--file",
        path(&image.qcow2)?,
    ])?;

    step(&format!(
        "waifuctl create {INSTANCE} -t {TEMPLATE} --user-data … --ssh-key … --wait"
    ));
    let create = [
        "create",
        INSTANCE,
        "-t",
        TEMPLATE,
        // An emulated guest with two processors needs a third more of the machine's time.
        "--cpus",
        "1",
        "--memory",
        "1G",
        "--disk",
        "4G",
        "--user-data",
        path(&user_data)?,
        "--ssh-key",
        path(&key.public_outside)?,
        "--idempotency-key",
        "demo",
    ];
    let begun = Instant::now();
    let created = waifuctl.json(&create)?;
    let accepted = begun.elapsed().as_secs_f64();
    // The same request with the same key returns the same instance. This one waits and shows the steps.
    waifuctl.show(&[&create[..], &["--wait", "--timeout", READY_LIMIT]].concat())?;
    let instance = waifuctl.json(&["show", INSTANCE])?;
    ensure!(
        instance["id"] == created["id"],
        "the repeated request created another instance"
    );
    let address = text(&instance, "/status/addresses/0/address")?;

    step(&format!("verifying the guest, over SSH to {address}"));
    let proven = proof::ask_guest(lab, &key, &address, INSTANCE)?;
    waifuctl.module_succeeded("modules-final/scripts-user")?;
    let (running, ready) = waifuctl.times(&created)?;
    let report = Report {
        instance: INSTANCE.to_owned(),
        address,
        datasource: proven.datasource,
        cloud_init: proven.cloud_init,
        hypervisor: text(&instance, "/status/hypervisor")?,
        seconds: Seconds {
            image: round(image.seconds),
            accepted: round(accepted),
            running,
            ready,
        },
    };
    if !args.once && std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        wait_for_ctrl_c(lab, &key, &report.address)?;
    }
    Ok(report)
}

/// Keeps the lab for the user until Ctrl-C.
fn wait_for_ctrl_c(lab: &Lab, key: &proof::Key, address: &str) -> Result<()> {
    let node = lab.nodes().first().copied().unwrap_or("alder").to_owned();
    eprintln!("\nThe VM is running. In another terminal, in this directory, as root:\n");
    eprintln!(
        "  eval \"$(cargo xtask lab env)\"     # the lab's socket, and this build of waifuctl"
    );
    eprintln!("  waifuctl list");
    eprintln!("  waifuctl show {INSTANCE}");
    eprintln!("  waifuctl why {INSTANCE}");
    eprintln!("  waifuctl create -t {TEMPLATE} --memory 1G --wait");
    eprintln!(
        "  cargo xtask lab exec {node} -- ssh -i {} -o StrictHostKeyChecking=accept-new -o \
         UserKnownHostsFile=/etc/waifud/demo-known-hosts debian@{address}",
        key.private_inside.display()
    );
    eprintln!("\nPress Ctrl-C here to stop the lab and remove everything.");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let _which = signals.wait()?;
    Ok(())
}

/// The Debian image, from the cache or newly built.
fn debian_image() -> Result<BuiltImage> {
    step(
        "getting a Debian 12 cloud image, built from this machine's package mirrors (about two minutes, once)",
    );
    let image = waifud_images::build(
        Guest::DebianBookworm,
        &waifud_images::default_cache_dir(),
        &|line| {
            eprintln!("  {line}");
        },
    )?;
    if image.from_cache {
        eprintln!("  found in the cache: {}", image.qcow2.display());
    }
    Ok(image)
}

/// Runs waifuctl with the lab's waifud.
struct Waifuctl {
    program: PathBuf,
    socket: PathBuf,
}

impl Waifuctl {
    fn new(lab: &Lab) -> Result<Self> {
        let env = lab.env()?;
        let find = |key: &str| {
            let found = env.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
            found.with_context(|| format!("the lab has no {key}"))
        };
        let path = find("PATH")?;
        let program = path
            .split(':')
            .map(|dir| Path::new(dir).join("waifuctl"))
            .find(|file| file.is_file());
        Ok(Self {
            program: program.context("waifuctl is not built: cargo build -p waifuctl")?,
            socket: find("WAIFUD_SOCKET")?.into(),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("WAIFUD_SOCKET", &self.socket);
        command
    }

    /// Runs a command and returns its JSON output.
    fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args);
        command.arg("--json");
        let output = wait::run(&mut command, SHORT)?;
        serde_json::from_str(&output)
            .with_context(|| format!("waifuctl {} printed invalid JSON", args.join(" ")))
    }

    /// Runs a command whose output is for the user. It goes to standard error.
    fn show(&self, args: &[&str]) -> Result<()> {
        let status = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status()
            .context("cannot start waifuctl")?;
        ensure!(
            status.success(),
            "waifuctl {} ended with {status}",
            args.first().unwrap_or(&"")
        );
        Ok(())
    }

    /// Waits until the node accepts instances.
    fn wait_for_node(&self) -> Result<()> {
        wait::until("the node to be ready", SHORT, || {
            let nodes = self.json(&["node", "list"])?;
            let ready = nodes["items"]
                .as_array()
                .is_some_and(|n| n.iter().any(|n| n["state"] == "ready"));
            Ok(ready.then_some(()))
        })
    }

    /// Waits until the guest's cloud-init has reported the success and the duration of a module.
    fn module_succeeded(&self, name: &str) -> Result<()> {
        let what = format!("cloud-init's report of {name}");
        wait::until(&what, 2 * SHORT, || {
            let why = self.json(&["why", INSTANCE])?;
            let modules = why.pointer("/evidence/modules").and_then(Value::as_array);
            let mut modules = modules.into_iter().flatten();
            let reported = modules.find(|module| module["name"] == name);
            let succeeded = reported
                .is_some_and(|module| module["result"] == "success" && module["took_ms"].is_u64());
            Ok(succeeded.then_some(()))
        })
    }

    /// Seconds from the instance's creation to running and to ready, from waifud's events.
    fn times(&self, created: &Value) -> Result<(f64, f64)> {
        let events = self.json(&["events", INSTANCE])?;
        let begun: jiff::Timestamp = text(created, "/created_at")?.parse()?;
        let of = |kind: &str| -> Result<f64> {
            let items = events["items"].as_array().context("no events")?;
            let Some(event) = items.iter().find(|e| e["kind"] == kind) else {
                bail!("{INSTANCE} has no event {kind}");
            };
            let at: jiff::Timestamp = text(event, "/at")?.parse()?;
            Ok(round(at.duration_since(begun).as_secs_f64()))
        };
        Ok((of("instance.started")?, of("instance.ready")?))
    }
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found
        .map(str::to_owned)
        .with_context(|| format!("{pointer} is missing in {value}"))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not valid UTF-8", path.display()))
}

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn step(description: &str) {
    eprintln!("==> {description}");
}
