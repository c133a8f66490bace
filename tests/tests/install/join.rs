//! `waifuctl node add`: the machine, from which waifud was purged, becomes a node of the suite's own waifud with the line
//! that waifuctl prints, and runs an instance.
//!
//! That waifud serves the package from an installed tree in its lab. A guest cannot reach its own node, so a forwarder in
//! the simulated internet leads to waifud.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::{OUTSIDE, wait};
use waifud_tests::machine::SLOW;
use waifud_tests::world::SOON;
use waifud_tests::{Machine, World, button};

/// The settings of the suite's waifud. Nothing listens on the second address, so the command works only with its address
/// replaced, and the new machine has to try the others.
pub const SETTINGS: &str = r#"
listen = ["127.0.0.1:7373", "192.0.2.2:7373"]
advertise = ["https://127.0.0.1:7373", "https://192.0.2.1:7373", "https://198.51.100.1:7373"]
installation = "/var/lib/installation"
"#;
const INSTALLATION: &str = "/var/lib/installation";
const PRINTED: &str = "https://192.0.2.1:7373";
const FORWARDED: &str = "https://198.51.100.1:7373";
const FORWARDER: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 7373);
const WAIFUD: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 2), 7373);
/// The name of the new node.
pub const NODE: &str = "larch";
/// The instance on it.
const GUEST: &str = "nested";
/// The programs in `/usr/bin`, except those of apt.
const WITHOUT_APT: &str = "/root/without-apt";
/// The pin of another key.
const OTHER_PIN: &str = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The machine joins, runs an instance, and joins again after it has lost its key.
pub fn joined(machine: &Machine<'_>, deb: &Path, disk: &Path) -> Result<()> {
    let world = machine.world;
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(deb);
    wait::run(unpack.arg(world.lab.path_outside(INSTALLATION)), SOON)?;
    let (from, to) = (SocketAddr::from(FORWARDER), SocketAddr::from(WAIFUD));
    world.lab.forward(OUTSIDE, from, to)?;

    // The agent has records of the other waifud, which was purged. They must not hold back deletions.
    machine.run("grep -q incarnation /var/lib/waifud-agent/records/node.json")?;
    let line = printed(world)?;
    refuses_another_key(machine, &line)?;
    machine.prints(&line, "This machine is a node now.")?;
    is_ready(machine)?;
    runs_an_instance(machine, disk)?;
    changes_nothing_again(machine, &line)?;
    gets_a_new_key(machine, &line)
}

/// The line that `node add` prints, with the address that waifuctl suggests if the printed one cannot be reached.
fn printed(world: &World) -> Result<String> {
    let added = world.waifuctl.run(&["node", "add", NODE])?;
    let advice = format!("cannot reach {PRINTED}, replace it with {FORWARDED}");
    ensure!(
        added.code == 0 && added.stderr.contains(&advice) && added.stdout.contains(PRINTED),
        "{added:?}"
    );
    Ok(added.stdout.trim().replace(PRINTED, FORWARDED))
}

/// curl refuses a server with another key, and nothing is installed.
fn refuses_another_key(machine: &Machine<'_>, line: &str) -> Result<()> {
    let (before, rest) = line.split_once("sha256//").context("no pin")?;
    let (_, rest) = rest.split_once('\'').context("the pin has no end")?;
    let other = format!("{before}{OTHER_PIN}'{rest}");
    let code = format!("{other}; echo \"curl ended with ${{PIPESTATUS[0]}}\"");
    machine.prints(&code, "curl ended with 90\n")?;
    machine.run("! test -e /usr/sbin/waifud-agentd")?;
    Ok(())
}

fn is_ready(machine: &Machine<'_>) -> Result<()> {
    let is_ready = |node: &Value| node["name"] == NODE && node["state"] == "ready";
    wait::until("the new node to be ready", SLOW, || {
        let nodes = machine.world.waifuctl.json(&["node", "list"])?;
        let nodes = nodes["items"].as_array().context("no list of nodes")?;
        Ok(nodes.iter().any(is_ready).then_some(()))
    })
    .with_context(|| {
        let log = machine.run("journalctl -u waifud-agentd -o cat -n 40");
        log.unwrap_or_else(|error| format!("{error:#}"))
    })
}

fn runs_an_instance(machine: &Machine<'_>, disk: &Path) -> Result<()> {
    let waifuctl = &machine.world.waifuctl;
    let disk = disk.display().to_string();
    let template = ["template", "add", "button", "--user", "nobody"];
    waifuctl.json(&[&template[..], &["--file", &disk]].concat())?;
    let create = ["create", GUEST, "-t", "button", "--node", NODE];
    let size = ["--memory", "64M", "--disk", "1G", "--no-ssh-key"];
    waifuctl.json(&[&create[..], &size].concat())?;
    // Reading its log is work for the emulated machine.
    waifuctl.json(&["wait", GUEST, "--for", "running", "--timeout", "10m"])?;
    let mut last = None;
    wait::until("the instance on the new node to boot", SLOW, || {
        let log = waifuctl.run(&["logs", GUEST])?;
        let is_up = log.stdout.contains(button::UP);
        last = Some(log);
        Ok(is_up.then_some(()))
    })
    .with_context(|| format!("{last:?}\n{:?}", waifuctl.run(&["why", GUEST])))?;
    let shown = machine.world.show(GUEST)?;
    ensure!(shown["status"]["node"] == NODE, "{shown}");
    machine.prints("virsh -q -c qemu:///system list --name", GUEST)
}

/// The same line on a machine that is a node already.
fn changes_nothing_again(machine: &Machine<'_>, line: &str) -> Result<()> {
    const STATE: &str = "cat /var/lib/waifud-agent/identity.json && \
        systemctl show -P MainPID waifud-agentd waifud-metadatad && pgrep -f '[g]uest=nested'";
    let before = machine.run(STATE)?;
    let output = machine.run(line)?;
    ensure!(
        output.contains("is already installed") && output.contains("already node larch"),
        "{output}"
    );
    let after = machine.run(STATE)?;
    ensure!(after == before, "before: {before}\nafter: {after}");
    Ok(())
}

/// A machine that has lost its key cannot use the same line again. With a new one it becomes the same node, with a new
/// key. Meanwhile, waifud's files are removed, and there is no apt, as on hosts that do not run Debian.
fn gets_a_new_key(machine: &Machine<'_>, line: &str) -> Result<()> {
    let world = machine.world;
    let id = || -> Result<Value> {
        let shown = world.waifuctl.json(&["node", "show", NODE])?;
        Ok(shown["id"].clone())
    };
    let before = id()?;
    let lose = "systemctl stop waifud-agentd && rm /var/lib/waifud-agent/identity.json";
    machine.run(lose)?;
    let refused = machine.refused(line)?;
    ensure!(
        refused.contains("another machine has already used it"),
        "{refused}"
    );
    let unpacked = "find /usr -path '*waifud*' -type f | sort";
    let files = machine.run(unpacked)?;
    machine.run(&format!(
        "systemctl stop waifud-metadatad && {unpacked} | xargs rm && mkdir {WITHOUT_APT} && \
         ln -s /usr/bin/* {WITHOUT_APT} && rm {WITHOUT_APT}/apt-get {WITHOUT_APT}/dpkg-query && \
         stat -c '%n %a' / /usr /usr/sbin >/root/modes"
    ))?;
    let line = printed(world)?.replace("sudo sh", &format!("env PATH=/usr/sbin:{WITHOUT_APT} sh"));
    let output = machine.run(&line)?;
    ensure!(output.contains("is unpacked into /usr"), "{output}");
    ensure!(id()? == before, "another node was created");
    let again = machine.run(unpacked)?;
    ensure!(files == again, "before: {files}\nunpacked: {again}");
    machine.run("stat -c '%n %a' / /usr /usr/sbin | diff /root/modes -")?;
    is_ready(machine)?;
    // Only the node itself can confirm this, with its new key.
    let delete = ["delete", GUEST, "--yes", "--wait", "--timeout", "5m"];
    world.waifuctl.json(&delete)?;
    machine.run("! pgrep -f '[g]uest=nested'")?;
    Ok(())
}
