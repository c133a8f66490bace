//! Twelve kills beside a running guest whose counter must not stop.
//!
//! The tiny guest counts seconds in `/run/counter`. After each kill: the same QEMU, the same boot, a counter that went on,
//! and the guest is shown as running. The last kill is QEMU's own: its policy starts it again, and its counter begins anew.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use waifud_lab::{Signal, wait};

use crate::{Guest, World};

/// Longer than any repair takes.
const SOON: Duration = Duration::from_mins(2);

/// A guest that must not notice.
struct Steady<'a> {
    guest: &'a Guest<'a>,
    qemu: String,
    boot: String,
    counted: u64,
}

impl<'a> Steady<'a> {
    fn new(guest: &'a Guest<'a>) -> Result<Self> {
        let boot = guest.run_when_up("cat /proc/sys/kernel/random/boot_id")?;
        let qemu = qemu_of(guest.world, &guest.name)?;
        ensure!(!qemu.is_empty(), "no QEMU runs");
        let mut steady = Self {
            guest,
            qemu,
            boot,
            counted: 0,
        };
        steady.goes_on("the beginning")?;
        Ok(steady)
    }

    /// It is reached, it is the same, and it has counted since.
    fn goes_on(&mut self, after: &str) -> Result<()> {
        let script = "cat /proc/sys/kernel/random/boot_id /run/counter";
        let counted = wait::until(&format!("the counter to go on after {after}"), SOON, || {
            let Ok(said) = self.guest.run(script) else {
                return Ok(None);
            };
            let mut lines = said.lines();
            ensure!(
                lines.next() == Some(self.boot.trim()),
                "the guest was rebooted by {after}"
            );
            let counted: u64 = lines.next().context("no counter")?.parse()?;
            Ok((counted > self.counted).then_some(counted))
        })?;
        self.counted = counted;
        let qemu = qemu_of(self.guest.world, &self.guest.name)?;
        ensure!(qemu == self.qemu, "another QEMU after {after}");
        self.guest
            .world
            .until(&self.guest.name, &format!("running after {after}"), |i| {
                i["status"]["state"] == "running" && i["status"]["ready"] == true
            })?;
        Ok(())
    }
}

/// The twelve; `between` is done before the second guest is created. Gives the second guest, which runs again after its own
/// kill.
pub fn twelve<'a>(
    world: &'a World,
    first: &'a Guest<'a>,
    between: impl FnOnce() -> Result<()>,
) -> Result<Guest<'a>> {
    let mut steady = Steady::new(first)?;
    at_rest(world, &mut steady)?;
    of_the_network(world, &mut steady)?;
    during_changes(world, &mut steady)?;
    between()?;
    let second = during_a_creation(world, &mut steady)?;
    of_qemu(world, &second)?;
    steady.goes_on("the death of another's QEMU")?;
    Ok(second)
}

/// 1 to 4: each daemon while nothing is to be done.
fn at_rest(world: &World, steady: &mut Steady<'_>) -> Result<()> {
    for service in ["waifud", "waifud-agentd", "waifud-metadatad", "libvirtd"] {
        kill(world, service)?;
        settle(world)?;
        steady.goes_on(&format!("the death of {service}"))?;
        let documents = steady.guest.run(
            "timeout 20 wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json",
        )?;
        let name = format!("\"{}\"", steady.guest.name);
        ensure!(documents.contains(&name), "after {service}: {documents}");
    }
    Ok(())
}

/// 5 to 7: what the network is made of is repaired.
fn of_the_network(world: &World, steady: &mut Steady<'_>) -> Result<()> {
    let before = pids(world, "/dnsmasq ")?;
    ensure!(!before.is_empty(), "no dnsmasq runs");
    for pid in &before {
        world.node(&["kill", "-KILL", pid])?;
    }
    wait::until("another dnsmasq", SOON, || {
        let now = pids(world, "/dnsmasq ")?;
        let another = !now.is_empty() && now.iter().all(|pid| !before.contains(pid));
        Ok(another.then_some(()))
    })?;
    steady.goes_on("the death of dnsmasq")?;

    let tables = || world.node(&["nft", "list", "tables"]);
    let before = tables()?;
    ensure!(!before.trim().is_empty(), "there were no rules");
    world.node(&["nft", "flush", "ruleset"])?;
    wait::until("the rules to be put back", SOON, || {
        Ok((tables()? == before).then_some(()))
    })?;
    steady.goes_on("nft flush ruleset")?;

    world.node(&["ip", "link", "del", "waifu0"])?;
    steady.goes_on("the loss of the bridge")
}

/// 9 to 11: three deaths while a second guest is made.
fn during_a_creation<'a>(world: &'a World, steady: &mut Steady<'_>) -> Result<Guest<'a>> {
    let key = world.public_key.display().to_string();
    let created = world.waifuctl.json(&[
        "create",
        "after",
        "-t",
        "tiny",
        "--memory",
        "128M",
        "--disk",
        "1G",
        "--ssh-key",
        &key,
    ])?;
    for service in ["waifud", "waifud-agentd", "libvirtd"] {
        kill(world, service)?;
    }
    settle(world)?;
    steady.goes_on("three deaths during a creation")?;
    let ready = world.until("after", "ready", |i| i["status"]["ready"] == true)?;
    ensure!(ready["id"] == created["id"], "it is another: {ready}");
    let domains = world.node(&["virsh", "-q", "-c", "qemu:///system", "list", "--all"])?;
    ensure!(domains.trim().lines().count() == 2, "domains: {domains}");
    let address = ready.pointer("/status/addresses/0/address");
    let address = address.and_then(|a| a.as_str()).context("no address")?;
    Ok(Guest {
        world,
        name: "after".to_owned(),
        address: address.to_owned(),
    })
}

/// 8: metadatad and the agent die in the middle of changes of the guest itself.
fn during_changes(world: &World, steady: &mut Steady<'_>) -> Result<()> {
    let name = steady.guest.name.clone();
    world.waifuctl.json(&["publish", &name, "2022:22"])?;
    kill(world, "waifud-agentd")?;
    kill(world, "waifud-metadatad")?;
    settle(world)?;
    let published = world.until(&name, "observed as published", |i| {
        i["status"]["observed_generation"] == i["generation"]
    })?;
    ensure!(
        published["spec"]["publish"][0]["port"] == 2022,
        "{published}"
    );
    steady.goes_on("two deaths during a publish")?;
    world.waifuctl.json(&["unpublish", &name, "2022"])?;
    Ok(())
}

/// 12: QEMU's own.
fn of_qemu(world: &World, guest: &Guest<'_>) -> Result<()> {
    let counted = "cat /run/counter";
    let before: u64 = guest.run_when_up(counted)?.trim().parse()?;
    let boot = guest.run("cat /proc/sys/kernel/random/boot_id")?;
    let qemu = qemu_of(world, &guest.name)?;
    let starts = starts(world, &guest.name)?;
    world.node(&["kill", "-KILL", &qemu])?;
    world.until(&guest.name, "started again", |i| {
        i["status"]["state"] == "running"
            && i["status"]["ready"] == true
            && qemu_of(world, &guest.name).is_ok_and(|now| !now.is_empty() && now != qemu)
    })?;
    ensure!(
        guest.run_when_up("cat /proc/sys/kernel/random/boot_id")? != boot,
        "its QEMU was killed and it was not rebooted ({before} s)"
    );
    wait::until("the events to tell of it", SOON, || {
        Ok((self::starts(world, &guest.name)? > starts).then_some(()))
    })
}

/// How often events said that it was started.
fn starts(world: &World, name: &str) -> Result<usize> {
    let events = world.waifuctl.json(&["events", "--limit", "1000"])?;
    let items = events["items"].as_array().context("no items")?;
    let these = items
        .iter()
        .filter(|e| e["kind"] == "instance.started" && e["object"]["name"] == name);
    Ok(these.count())
}

/// SIGKILL; returns when the supervisor has started another.
fn kill(world: &World, service: &str) -> Result<()> {
    let before = world.lab.pid_of(service)?.context("not running")?;
    world.lab.kill(service, Signal::SIGKILL)?;
    wait::until(&format!("{service} to come back"), SOON, || {
        Ok(world.lab.pid_of(service)?.filter(|pid| *pid != before))
    })?;
    Ok(())
}

fn settle(world: &World) -> Result<()> {
    world.lab.wait_ready(SOON)?;
    world.node_is_ready()
}

/// The guest's QEMU, as the node numbers it; empty without one.
fn qemu_of(world: &World, name: &str) -> Result<String> {
    let found = pids(world, &format!("guest={name},"))?;
    Ok(found.join(" "))
}

/// Processes of the node whose command line has this text.
fn pids(world: &World, text: &str) -> Result<Vec<String>> {
    // pgrep's own status says whether it found one; its output is what counts here.
    let script =
        "found=$(pgrep -f -- \"$1\"); for pid in $found; do [ $pid = $$ ] || echo $pid; done";
    let found = world.node(&["sh", "-c", script, "pids", text])?;
    Ok(found.lines().map(str::to_owned).collect())
}
