//! Daemons are killed and restarted while guests run: guests are not interrupted, and requested changes still take
//! effect.

use anyhow::{Context, Result, ensure};
use waifud_lab::wait;
use waifud_tests::{Guest, World, kills};

/// The backup's path in the node.
const BACKUP: &str = "/etc/waifud/yesterday.tar";

fn qemu_pids(world: &World) -> Result<String> {
    // The exit status of pgrep is not used: it reports whether a process was found.
    world.node(&["sh", "-c", "pgrep qemu-system || true"])
}

#[test]
fn guests_survive_twelve_kills_and_new_guests_can_be_created() -> Result<()> {
    World::with(|world| {
        let guest = world.ready_guest("steady", &[])?;
        let back_up = || world.node(&["waifud", "backup", BACKUP]).map(drop);
        let other = kills::twelve(world, &guest, back_up)?;
        ensure!(other.run_when_up("hostname")?.trim() == "after");
        a_restored_backup_destroys_nothing(world, &guest, &other)?;
        world.delete("after")?;
        world.delete("steady")
    })
}

/// The first guest is in the backup; the second was created after it.
fn a_restored_backup_destroys_nothing(
    world: &World,
    known: &Guest<'_>,
    newer: &Guest<'_>,
) -> Result<()> {
    let boots = |guest: &Guest<'_>| guest.run_when_up("cat /proc/sys/kernel/random/boot_id");
    let before = (boots(known)?, boots(newer)?);
    let pids = qemu_pids(world)?;
    world.lab.stop("waifud")?;
    let refused = world.node(&["waifud", "restore", "--yes", BACKUP]);
    ensure!(
        refused.is_err(),
        "a database was overwritten without --replace"
    );
    world.node(&["waifud", "restore", "--replace", "--yes", BACKUP])?;
    world.lab.start("waifud")?;
    world.lab.wait_ready(std::time::Duration::from_mins(1))?;
    world.until(&known.name, "running after the restore", |i| {
        i["status"]["state"] == "running"
    })?;
    let shown = world.waifuctl.run(&["show", &newer.name])?;
    ensure!(
        shown.code == 1,
        "an instance that is not in the backup is shown: {}",
        shown.stdout
    );
    let unmanaged = wait::until(
        "the newer guest to be shown as unmanaged",
        std::time::Duration::from_mins(2),
        || {
            let node = world.waifuctl.json(&["node", "show", "alder"])?;
            let found = node["unmanaged"].as_array().and_then(|list| {
                let named = |u: &&serde_json::Value| u["name"] == newer.name.as_str();
                list.iter().find(named).cloned()
            });
            Ok(found.filter(|u| u["adoptable"] == true))
        },
    )?;
    ensure!(unmanaged["running"] == true, "{unmanaged}");
    world.waifuctl.json(&["adopt", &newer.name])?;
    let adopted = world.until(&newer.name, "running as adopted", |i| {
        i["status"]["state"] == "running" && i["status"]["ready"] == true
    })?;
    ensure!(
        adopted
            .pointer("/status/addresses/0/address")
            .and_then(|a| a.as_str())
            == Some(newer.address.as_str()),
        "{adopted}"
    );
    world
        .waifuctl
        .json(&["node", "confirm", "--all", "--yes"])?;
    ensure!(qemu_pids(world)? == pids, "a QEMU process has changed");
    ensure!(
        (boots(known)?, boots(newer)?) == before,
        "a guest was rebooted"
    );
    Ok(())
}

/// Runs the agent's program as a unit of the host would.
fn agentd(world: &World, command: &[&str]) -> Result<String> {
    let config = ["waifud-agentd", "--config", "/etc/waifud/agentd.toml"];
    world.node(&[&config, command].concat())
}

/// The names of the objects of all events of this kind, oldest first, without the first `since`.
fn names_in_events(world: &World, kind: &str, since: usize) -> Result<Vec<String>> {
    let events = world.waifuctl.json(&["events", "--limit", "1000"])?;
    let items = events["items"].as_array().context("no items")?;
    let these = items.iter().filter(|event| event["kind"] == kind);
    Ok(these
        .skip(since)
        .filter_map(|event| event["object"]["name"].as_str().map(str::to_owned))
        .collect())
}

/// The boot ids of the boots that ended cleanly. The guest writes each at the end of its shutdown.
fn clean_ends(guest: &Guest<'_>) -> Result<Vec<String>> {
    let text = guest.run_when_up("cat /var/log/clean-ends 2>/dev/null || true")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// `high` has a higher priority than `low`.
fn the_host_reboots(world: &World, high: &Guest<'_>, low: &Guest<'_>) -> Result<()> {
    let both = [high, low];
    let stops = names_in_events(world, "instance.stopped", 0)?.len();
    let starts = names_in_events(world, "instance.started", 0)?.len();
    let boots = both
        .iter()
        .map(|guest| guest.run("cat /proc/sys/kernel/random/boot_id"))
        .collect::<Result<Vec<_>>>()?;
    let output = agentd(world, &["stop-guests", "--grace", "60"])?;
    let expected = format!(
        "{} (priority 0): shut down\n{} (priority 10): shut down\n",
        low.name, high.name
    );
    ensure!(output == expected, "{output}");
    for guest in both {
        let off = world.until(&guest.name, "stopped", |i| {
            i["status"]["state"] == "stopped"
        })?;
        ensure!(off["status"]["stopped_by"] == "host", "{off}");
    }
    let order = names_in_events(world, "instance.stopped", stops)?;
    ensure!(order == [&*low.name, &*high.name], "stopped: {order:?}");

    // An agent that starts in the meantime does not start one either.
    world.lab.restart("waifud-agentd")?;
    for guest in both {
        world.until(&guest.name, "a reason that mentions the host", |i| {
            let why = i["status"]["reason"].as_str();
            why.is_some_and(|why| why.contains("shutting down"))
        })?;
    }
    ensure!(qemu_pids(world)?.trim().is_empty(), "a guest was started");

    agentd(world, &["start-guests"])?;
    for (guest, boot) in both.iter().zip(&boots) {
        world.until(&guest.name, "ready again", |i| {
            i["status"]["state"] == "running" && i["status"]["ready"] == true
        })?;
        let ends = clean_ends(guest)?;
        ensure!(ends == [boot.trim()], "{}: {ends:?}", guest.name);
    }
    let order = names_in_events(world, "instance.started", starts)?;
    ensure!(order == [&*high.name, &*low.name], "started: {order:?}");
    Ok(())
}

#[test]
fn a_host_shutdown_stops_guests_in_order_and_the_next_boot_starts_them() -> Result<()> {
    World::with(|world| {
        let high = world.ready_guest("first", &["--priority", "10"])?;
        let low = world.ready_guest("second", &[])?;
        for guest in [&high, &low] {
            guest.run_when_up("true")?;
        }
        the_host_reboots(world, &high, &low)?;
        world.delete("second")?;
        world.delete("first")
    })
}

#[test]
fn a_guest_that_ended_while_no_daemon_ran_is_started_without_waifud() -> Result<()> {
    World::with(|world| {
        let guest = world.ready_guest("lonely", &[])?;
        let boot = guest.run_when_up("cat /proc/sys/kernel/random/boot_id")?;
        world.lab.stop("waifud")?;
        world.lab.stop("waifud-agentd")?;
        // As after a power failure: the guest has no process.
        world.node(&["virsh", "-q", "-c", "qemu:///system", "destroy", "lonely"])?;
        world.lab.start("waifud-agentd")?;
        let again = wait::until(
            "the guest to be started again",
            std::time::Duration::from_mins(3),
            || Ok(guest.run("cat /proc/sys/kernel/random/boot_id").ok()),
        )?;
        ensure!(again != boot, "the guest was not stopped");
        world.lab.start("waifud")?;
        world.lab.wait_ready(std::time::Duration::from_mins(1))?;
        world.until("lonely", "running again", |i| {
            i["status"]["state"] == "running"
        })?;
        world.delete("lonely")
    })
}

#[test]
fn without_libvirtd_an_instance_reports_what_it_waits_for_and_continues_when_it_returns()
-> Result<()> {
    World::with(|world| {
        world.lab.stop("libvirtd")?;
        let created = world.create("patient", &["--no-ssh-key"])?;
        ensure!(created["status"]["node"] == "alder", "{created}");
        world.until("patient", "a reason that mentions libvirt", |i| {
            let status = &i["status"];
            [&status["reason"], &status["step"]["waiting_for"]]
                .iter()
                .any(|v| v.as_str().is_some_and(|text| text.contains("libvirt")))
        })?;
        world.lab.start("libvirtd")?;
        world.until("patient", "running", |i| i["status"]["state"] == "running")?;
        world.delete("patient")
    })
}

#[test]
fn a_guest_that_powered_itself_off_stays_off_and_its_owner_resizes_reboots_and_force_stops_it()
-> Result<()> {
    World::with(|world| {
        let guest = world.ready_guest("sleepy", &[])?;
        guest.run_when_up("true")?;
        // The power-off breaks the connection.
        let _broken = guest.run("poweroff");
        let off = world
            .waifuctl
            .json(&["wait", "sleepy", "--for", "stopped"])?;
        let by = off.pointer("/items/0/status/stopped_by");
        ensure!(by.is_some_and(|by| by == "guest"), "{off}");
        world.lab.restart("waifud-agentd")?;
        world.lab.wait_ready(std::time::Duration::from_mins(1))?;
        world.node_is_ready()?;
        let still = world.show("sleepy")?;
        ensure!(
            still["status"]["state"] == "stopped" && still["spec"]["run"] == true,
            "{still}"
        );
        let started = world.waifuctl.run(&["start", "sleepy"])?;
        ensure!(started.code == 0, "{started:?}");
        world.until("sleepy", "running again", |i| {
            i["status"]["state"] == "running" && i["status"]["ready"] == true
        })?;
        resized_and_rebooted(world, &guest)?;

        let begun = std::time::Instant::now();
        let off = world
            .waifuctl
            .json(&["stop", "sleepy", "--force", "--wait"])?;
        eprintln!("stop --force --wait: {:?}", begun.elapsed());
        ensure!(off["status"]["state"] == "stopped", "{off}");
        ensure!(off["status"]["stopped_by"] == "user", "{off}");
        ensure!(qemu_pids(world)?.trim().is_empty(), "QEMU still runs");
        world.delete("sleepy")
    })
}

/// A disk grows while the guest runs, memory at the next reboot. One request causes one reboot, which keeps everything
/// else.
fn resized_and_rebooted(world: &World, guest: &Guest<'_>) -> Result<()> {
    let name = guest.name.as_str();
    guest.run_when_up("echo kept > /root/kept && touch /run/of-this-boot && sync")?;
    let boot = guest.run("cat /proc/sys/kernel/random/boot_id")?;
    let memory = |guest: &Guest<'_>| -> Result<u64> {
        let total = guest.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
        Ok(total.trim().parse()?)
    };
    let (before, ends) = (memory(guest)?, clean_ends(guest)?);
    let starts = names_in_events(world, "instance.started", 0)?.len();

    let begun = std::time::Instant::now();
    let more = ["resize", name, "--disk", "2G", "--memory", "192M", "--wait"];
    let resized = world.waifuctl.json(&more)?;
    eprintln!("resize --wait: {:?}", begun.elapsed());
    ensure!(
        resized["status"]["restart_needed"] == serde_json::json!(["memory_bytes"]),
        "{resized}"
    );
    // In units of 512 bytes, independent of the disk's sector size.
    let sectors = guest.run("cat /sys/block/vda/size")?;
    ensure!(sectors.trim() == "4194304", "the guest sees {sectors}");
    ensure!(memory(guest)? == before, "memory changed without a reboot");

    let begun = std::time::Instant::now();
    let rebooted = world.waifuctl.json(&["reboot", name, "--wait"])?;
    eprintln!("reboot --wait: {:?}", begun.elapsed());
    let needed = &rebooted["status"]["restart_needed"];
    ensure!(
        needed.as_array().is_none_or(Vec::is_empty),
        "after the reboot: {rebooted}"
    );
    let address = rebooted.pointer("/status/addresses/0/address");
    ensure!(
        address.and_then(|a| a.as_str()) == Some(&guest.address),
        "{rebooted}"
    );
    let now = guest.run_when_up(
        "cat /root/kept && cat /proc/sys/kernel/random/boot_id && cat /sys/block/vda/size",
    )?;
    let lines: Vec<_> = now.lines().collect();
    ensure!(
        matches!(lines.as_slice(), ["kept", new, "4194304"] if *new != boot.trim()),
        "{now}"
    );
    // Files in memory are new, including the counter of seconds.
    guest.run("test ! -e /run/of-this-boot && test -s /run/counter")?;
    ensure!(memory(guest)? > before, "memory did not increase");
    let mut expected = ends;
    expected.push(boot.trim().to_owned());
    ensure!(
        clean_ends(guest)? == expected,
        "there was not exactly one clean shutdown"
    );
    let again = names_in_events(world, "instance.started", starts)?;
    ensure!(again == [name], "started: {again:?}");
    Ok(())
}

#[test]
fn daemons_that_face_users_and_guests_run_as_their_users_without_capabilities() -> Result<()> {
    World::with(|world| {
        for (service, user) in [
            ("waifud", "waifud"),
            ("waifud-metadatad", "waifud-metadata"),
            ("waifud-agentd", "root"),
        ] {
            let pid = world
                .lab
                .pid_of(service)?
                .context("the service is not running")?;
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.split_whitespace().nth(1))
                    .map(str::to_owned)
                    .with_context(|| format!("no {name} of {service}"))
            };
            let uid = world.node(&["id", "-u", user])?;
            ensure!(
                field("Uid:")? == uid.trim(),
                "{service} does not run as {user}"
            );
            if user != "root" {
                for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapAmb:"] {
                    let bits = field(set)?;
                    ensure!(
                        bits.chars().all(|digit| digit == '0'),
                        "{service} has {set} {bits}"
                    );
                }
                ensure!(
                    field("NoNewPrivs:")? == "1",
                    "{service} may gain privileges"
                );
            }
        }
        Ok(())
    })
}
