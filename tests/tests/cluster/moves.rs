//! Instances that move between two nodes, with their disks, address and firewall.

use anyhow::{Context, Result, ensure};
use waifud_lab::wait;
use waifud_tests::World;
use waifud_tests::world::SOON;

use crate::{DEAD, OTHER, guests, must, unmanaged};

/// Runs a shell command in `web`, through the guest agent.
fn in_web(world: &World, script: &str) -> Result<String> {
    must(world, &["exec", "web", "--", "/bin/sh", "-c", script])
}

/// The number of disks on a machine.
fn disks(world: &World, machine: &str) -> Result<usize> {
    let script = [
        "sh",
        "-c",
        "ls -A /var/lib/waifud-agent/pools/*/volumes /var/lib/waifud-agent/*/volumes 2>/dev/null | grep -c root || true",
    ];
    let text = wait::run(&mut world.lab.command(machine, script)?, SOON)?;
    text.trim().parse().context("no number of disks")
}

/// `web` moves to the other node, and back because that is drained, with what its guest has written.
pub fn an_instance_moves(world: &World) -> Result<()> {
    let write =
        "dd if=/dev/urandom of=/root/data bs=1M count=5 2>/dev/null; sync; sha256sum /root/data";
    let data = in_web(world, write)?;
    let before = world.show("web")?;
    let move_to = |node: &'static str| ["move", "web", "--to", node];
    let needs_consent = || {
        let before = world.show("web")?;
        must(world, &["fabric", "set", "none"])?;
        world
            .waifuctl
            .run(&move_to(OTHER))?
            .is_refused("another address")?;
        ensure!(world.show("web")?["generation"] == before["generation"]);
        must(world, &["fabric", "set", "wireguard"])
    };
    let wait = ["--wait", "--timeout", "2m"];
    let address = must(world, &["ip", "web"])?;
    let deny = [
        "firewall",
        "deny",
        "web",
        "--in",
        "--protocol",
        "tcp",
        "--port",
        "9",
    ];
    must(world, &deny)?;
    // It came from there: its address belongs to the subnet of the node that was dead.
    for (from, to) in [(OTHER, DEAD), (DEAD, OTHER)] {
        if to == DEAD {
            let moved = world.waifuctl.json(&[&move_to(to)[..], &wait].concat())?;
            ensure!(moved["status"]["node"] == to, "{moved}");
        } else {
            needs_consent()?;
            drained(world, from, &wait)?;
        }
        let ready = world.until("web", "ready", |it| it["status"]["ready"] == true)?;
        ensure!(guests(world, to)? == 1 && guests(world, from)? == 0);
        ensure!(has_firewall(world, to)? && !has_firewall(world, from)?);
        ensure!(
            ready["id"] == before["id"] && ready["status"]["node"] == to,
            "{ready}"
        );
        let mac = "/spec/nics/0/mac";
        ensure!(ready.pointer(mac) == before.pointer(mac), "{ready}");
        ensure!(in_web(world, "sha256sum /root/data")? == data);
        keeps_its_address(world, address.trim())?;
        let over = world.until("web", "no longer moving", |it| it["move"].is_null())?;
        // From node to node, not through the machine of waifud.
        let handed_over = format!("instance.handed-over to {to}");
        let events = world.waifuctl.json(&["events", "web", "--limit", "1000"])?;
        let events = events["items"].as_array().context("no items")?;
        let directly = events.iter().any(|event| {
            let text = |key: &str| event[key].as_str().unwrap_or_default();
            let message = text("message");
            format!("{} {message}", text("kind")).starts_with(&handed_over)
                && message.ends_with("its disks were copied directly")
        });
        ensure!(directly, "{events:?}");
        ensure!(over["status"]["state"] == "running", "{over}");
        ensure!(disks(world, to)? == 1 && disks(world, from)? == 0);
        ensure!(unmanaged(world, from, "web")?.is_empty());
    }
    Ok(())
}

/// Wherever `web` is, both nodes reach it at this address, and it reaches the gateway that it has had from the beginning.
fn keeps_its_address(world: &World, address: &str) -> Result<()> {
    ensure!(must(world, &["ip", "web"])?.trim() == address);
    for node in [DEAD, OTHER] {
        let ping = ["ping", "-n", "-q", "-c", "1", "-W", "5", address];
        wait::until(&format!("web to answer {node} at {address}"), SOON, || {
            Ok(wait::run(&mut world.lab.command(node, ping)?, SOON).ok())
        })?;
    }
    let routes = in_web(world, "ip route show default")?;
    let mut words = routes.split_ascii_whitespace();
    let gateway = words.nth(2).context("no default route")?;
    let subnet = |text: &str| text.rsplit_once('.').map(|(net, _)| net.to_owned());
    ensure!(subnet(gateway) == subnet(address), "{routes}");
    in_web(world, &format!("ping -c 1 -W 5 {gateway}"))?;
    Ok(())
}

/// A node is drained of `web`, its only instance, and then accepts instances again.
fn drained(world: &World, node: &str, wait: &[&str]) -> Result<()> {
    let drain = ["node", "drain", node];
    let explain = [&drain[..], &["--explain"]].concat();
    let plan = world.waifuctl.json(&explain)?;
    ensure!(plan["draining"] == false, "{plan}");
    ensure!(
        plan.pointer("/instances/0/to") == Some(&OTHER.into()),
        "{plan}"
    );
    let empty = world.waifuctl.json(&[&drain[..], wait].concat())?;
    ensure!(empty["instances"] == serde_json::json!([]), "{empty}");
    let state = || {
        let shown = world.waifuctl.json(&["node", "show", node])?;
        anyhow::Ok(shown["state"].clone())
    };
    ensure!(state()? == "cordoned");
    must(world, &["node", "uncordon", node])?;
    ensure!(state()? == "ready");
    Ok(())
}

/// Whether the firewall of an instance is in force on a node.
fn has_firewall(world: &World, node: &str) -> Result<bool> {
    let list = ["nft", "list", "table", "inet", "waifud"];
    let rules = wait::run(&mut world.lab.command(node, list)?, SOON)?;
    Ok(rules.contains("chain firewall-wf-"))
}
