//! Twelve kills while a guest runs that must not be interrupted.
//!
//! The tiny guest counts seconds in `/run/counter`. After each kill, QEMU and the boot are the same, the counter has
//! advanced, and the guest is shown as running. The last kill is that of a QEMU: the restart policy restarts that
//! guest.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use waifud_lab::{Signal, wait};

use crate::{Guest, World};

/// Longer than every repair.
const SOON: Duration = Duration::from_mins(2);

/// A guest that must not be interrupted.
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
        steady.goes_on("the start")?;
        Ok(steady)
    }

    /// It is reachable and the same, and its counter has advanced.
    fn goes_on(&mut self, after: &str) -> Result<()> {
        let script = "cat /proc/sys/kernel/random/boot_id /run/counter";
        let counted = wait::until(&format!("the counter to go on after {after}"), SOON, || {
            let Ok(output) = self.guest.run(script) else {
                return Ok(None);
            };
            let mut lines = output.lines();
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

/// Performs the twelve kills. Calls `between` before the second guest is created. Returns the second guest, which runs
/// again after its QEMU was killed.
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
    steady.goes_on("the kill of another guest's QEMU")?;
    Ok(second)
}

/// Kills 1 to 4: each daemon while idle.
fn at_rest(world: &World, steady: &mut Steady<'_>) -> Result<()> {
    for service in ["waifud", "waifud-agentd", "waifud-metadatad", "libvirtd"] {
        kill(world, service)?;
        wait_until_ready(world)?;
        steady.goes_on(&format!("the kill of {service}"))?;
        let documents = steady.guest.run(
            "timeout 20 wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json",
        )?;
        let name = format!("\"{}\"", steady.guest.name);
        ensure!(documents.contains(&name), "after {service}: {documents}");
    }
    Ok(())
}

/// Kills 5 to 7: dnsmasq, rules and bridge are repaired.
fn of_the_network(world: &World, steady: &mut Steady<'_>) -> Result<()> {
    let before = pids(world, "/dnsmasq ")?;
    ensure!(!before.is_empty(), "no dnsmasq runs");
    for pid in &before {
        world.node(&["kill", "-KILL", pid])?;
    }
    wait::until("a new dnsmasq", SOON, || {
        let now = pids(world, "/dnsmasq ")?;
        let another = !now.is_empty() && now.iter().all(|pid| !before.contains(pid));
        Ok(another.then_some(()))
    })?;
    steady.goes_on("the kill of dnsmasq")?;

    let tables = || world.node(&["nft", "list", "tables"]);
    let before = tables()?;
    ensure!(!before.trim().is_empty(), "there were no rules");
    world.node(&["nft", "flush", "ruleset"])?;
    wait::until("the rules to be restored", SOON, || {
        Ok((tables()? == before).then_some(()))
    })?;
    steady.goes_on("nft flush ruleset")?;

    world.node(&["ip", "link", "del", "waifu0"])?;
    steady.goes_on("the loss of the bridge")
}

/// Kills 9 to 11: three daemons while a second guest is created.
fn during_a_creation<'a>(world: &'a World, steady: &mut Steady<'_>) -> Result<Guest<'a>> {
    let key = world.public_key.display().to_string();
    let created = world.create("after", &["--ssh-key", &key])?;
    for service in ["waifud", "waifud-agentd", "libvirtd"] {
        kill(world, service)?;
    }
    wait_until_ready(world)?;
    steady.goes_on("three kills during a creation")?;
    let ready = world.until("after", "ready", |i| i["status"]["ready"] == true)?;
    ensure!(
        ready["id"] == created["id"],
        "it is another instance: {ready}"
    );
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

/// Kill 8: metadatad and the agent while the guest's spec changes.
fn during_changes(world: &World, steady: &mut Steady<'_>) -> Result<()> {
    let name = steady.guest.name.clone();
    world.waifuctl.json(&["publish", &name, "2022:22"])?;
    kill(world, "waifud-agentd")?;
    kill(world, "waifud-metadatad")?;
    wait_until_ready(world)?;
    let published = world.until(&name, "observed as published", |i| {
        i["status"]["observed_generation"] == i["generation"]
    })?;
    ensure!(
        published["spec"]["publish"][0]["port"] == 2022,
        "{published}"
    );
    steady.goes_on("two kills during a publish")?;
    world.waifuctl.json(&["unpublish", &name, "2022"])?;
    Ok(())
}

/// Kill 12: QEMU.
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
    wait::until("an event of the restart", SOON, || {
        Ok((self::starts(world, &guest.name)? > starts).then_some(()))
    })
}

/// The number of events that report its start.
fn starts(world: &World, name: &str) -> Result<usize> {
    let events = world.waifuctl.json(&["events", "--limit", "1000"])?;
    let items = events["items"].as_array().context("no items")?;
    let these = items
        .iter()
        .filter(|e| e["kind"] == "instance.started" && e["object"]["name"] == name);
    Ok(these.count())
}

/// Sends SIGKILL and returns when the supervisor has restarted the service.
fn kill(world: &World, service: &str) -> Result<()> {
    let before = world.lab.pid_of(service)?.context("not running")?;
    world.lab.kill(service, Signal::SIGKILL)?;
    wait::until(&format!("{service} to come back"), SOON, || {
        Ok(world.lab.pid_of(service)?.filter(|pid| *pid != before))
    })?;
    Ok(())
}

fn wait_until_ready(world: &World) -> Result<()> {
    world.lab.wait_ready(SOON)?;
    world.node_is_ready()
}

/// The PID of the guest's QEMU in the node; empty if there is none.
fn qemu_of(world: &World, name: &str) -> Result<String> {
    let found = pids(world, &format!("guest={name},"))?;
    Ok(found.join(" "))
}

/// The PIDs of the node's processes whose command line contains this text.
fn pids(world: &World, text: &str) -> Result<Vec<String>> {
    // The exit status of pgrep is not used: it reports whether a process was found.
    let script =
        "found=$(pgrep -f -- \"$1\"); for pid in $found; do [ $pid = $$ ] || echo $pid; done";
    let found = world.node(&["sh", "-c", script, "pids", text])?;
    Ok(found.lines().map(str::to_owned).collect())
}
