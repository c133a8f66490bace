//! A second machine joins waifud with the command of `waifuctl node add`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::{OUTSIDE, wait};
use waifud_tests::{Machine, button};

/// Settings of the cluster's waifud. The machine is a guest of waifud's own node, which it may not call: it reaches waifud
/// through a forwarded port of the router at this address.
pub const SETTINGS: &str = "listen = [\"0.0.0.0:7373\"]\nadvertise = [\"https://192.0.2.1:7373\", \"https://127.0.0.1:7373\"]\n\
     installation = \"/etc/waifud/installation\"\n";
/// The address of waifud behind the router.
const WAIFUD: &str = "192.0.2.2";
const NAME: &str = "birch";
const LIMIT: Duration = Duration::from_mins(2);

/// Lets the machine, which has no waifud, join the cluster of the lab, and runs an instance on it.
pub fn joins_the_cluster_with_one_command(
    machine: &Machine<'_>,
    deb: &Path,
    disk: &Path,
) -> Result<()> {
    let world = machine.world;
    let installation = world.lab.path_outside("/etc/waifud/installation");
    let mut unpack = Command::new("dpkg-deb");
    wait::run(unpack.arg("--extract").arg(deb).arg(&installation), LIMIT)?;
    forward_port(machine)?;

    let added = world.waifuctl.json(&["node", "add", NAME])?;
    let command = added["install"]["run"].as_str().context("no command")?;
    ensure!(command.ends_with(" | sudo sh"), "{command}");
    machine.prints(command, "This machine is a node now.")?;
    // Repeated, it changes nothing.
    machine.prints(command, &format!("already node {NAME}"))?;
    // Another machine, or another name, cannot use the token; the shell prints why.
    let used = machine.refused(&format!(
        "rm /var/lib/waifud-agent/identity.json; {command}"
    ))?;
    ensure!(
        used.contains("another machine has already used it"),
        "{used}"
    );
    let again = world.waifuctl.json(&["node", "add", NAME])?;
    let again = again["install"]["run"].as_str().context("no command")?;
    machine.prints(again, "This machine is a node now.")?;
    machine.run("systemctl restart waifud-agentd")?;

    wait::until("the new node to be ready", LIMIT * 5, || {
        let node = world.waifuctl.json(&["node", "show", NAME])?;
        Ok((node["state"] == "ready").then_some(()))
    })?;
    let file = disk.display().to_string();
    let template = [
        "template", "add", "button", "--user", "nobody", "--file", &file,
    ];
    world.waifuctl.json(&template)?;
    let size = ["--memory", "64M", "--disk", "1G", "--no-ssh-key"];
    let create = ["create", "inner", "-t", "button", "--node", NAME];
    world.waifuctl.json(&[&create[..], &size].concat())?;
    let wait = ["wait", "inner", "--for", "running", "--timeout", "10m"];
    world.waifuctl.json(&wait)?;
    wait::until("the guest on the new node to boot", LIMIT * 5, || {
        let log = world.waifuctl.run(&["logs", "inner"])?;
        Ok(log.stdout.contains(button::UP).then_some(()))
    })?;
    let inner = world.waifuctl.json(&["show", "inner"])?;
    let node = inner.pointer("/status/node").and_then(Value::as_str);
    ensure!(node == Some(NAME), "{inner}");
    world.delete("inner")?;
    world.waifuctl.json(&["node", "remove", NAME, "--yes"])?;
    Ok(())
}

/// Forwards the port of the router to waifud.
fn forward_port(machine: &Machine<'_>) -> Result<()> {
    let rules = format!(
        "add table ip forwarding
         add chain ip forwarding prerouting {{ type nat hook prerouting priority dstnat; }}
         add chain ip forwarding postrouting {{ type nat hook postrouting priority srcnat; }}
         add rule ip forwarding prerouting tcp dport 7373 dnat to {WAIFUD}:7373
         add rule ip forwarding postrouting ip daddr {WAIFUD} tcp dport 7373 masquerade"
    );
    let words = ["nft", rules.as_str()];
    let mut nft = machine.world.lab.command(OUTSIDE, words)?;
    wait::run(&mut nft, LIMIT)?;
    let mut forwarding = machine
        .world
        .lab
        .command(OUTSIDE, ["sysctl", "-w", "net.ipv4.ip_forward=1"])?;
    wait::run(&mut forwarding, LIMIT)?;
    Ok(())
}
