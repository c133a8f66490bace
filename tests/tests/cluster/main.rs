//! Several nodes, which read bundles from Redis: a dead machine is removed by force, its instance is recreated on another one
//! without Redis, and then the machine comes back after all. Instances move between nodes, and waifud to another machine.

mod moves;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::wait;
use waifud_tests::world::{SOON, TINY, creation};
use waifud_tests::{Waifuctl, World};

const DEAD: &str = "alder";
const OTHER: &str = "birch";
/// The machine of waifud.
const OLD: &str = "rowan";
/// The file with the join token, inside the node.
const TOKEN: &str = "/run/waifud-agent/join-token";

/// Runs waifuctl, which must succeed.
fn must(world: &World, args: &[&str]) -> Result<String> {
    let outcome = world.waifuctl.run(args)?;
    ensure!(
        outcome.code == 0,
        "{args:?} ended with {}: {}",
        outcome.code,
        outcome.stderr
    );
    Ok(outcome.stdout)
}

/// How many guests run on a machine.
fn guests(world: &World, machine: &str) -> Result<usize> {
    // The exit status of pgrep is not used: it reports whether a process was found.
    let script = ["sh", "-c", "pgrep -c qemu-system || true"];
    let text = wait::run(&mut world.lab.command(machine, script)?, SOON)?;
    text.trim().parse().context("no number of guests")
}

/// The unmanaged objects on a node of one instance.
fn unmanaged(world: &World, node: &str, name: &str) -> Result<Vec<Value>> {
    let node = world.waifuctl.json(&["node", "show", node])?;
    let list = node["unmanaged"].as_array().cloned().unwrap_or_default();
    let of_it = |entry: &Value| entry["name"] == name;
    Ok(list.into_iter().filter(of_it).collect())
}

/// Joins a machine with a new key, as an administrator would.
fn join_again(world: &World, node: &str) -> Result<()> {
    let made = world
        .waifuctl
        .json(&["node", "token", "create", "--name", node])?;
    let token = made["token"].as_str().context("no token")?;
    let file = world.lab.path_outside_of(node, TOKEN);
    fs::write(&file, token)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let join = ["waifud-agentd", "join", "--token-file", TOKEN];
    wait::run(&mut world.lab.command(node, join)?, SOON)?;
    wait::until(&format!("{node} to be ready"), SOON, || {
        let shown = world.waifuctl.run(&["node", "show", node, "--json"])?;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_default();
        Ok((shown["state"] == "ready").then_some(()))
    })
}

#[test]
fn a_dead_machine_is_replaced_and_comes_back_and_waifud_moves_to_another_one() -> Result<()> {
    World::with_nodes_and_redis(2, |world| {
        let web = boots_from_redis(world)?;
        ensure!(
            web["status"]["node"] == DEAD && guests(world, DEAD)? == 1,
            "{web}"
        );
        guests_of_two_nodes_reach_each_other(world)?;
        must(world, &["node", "cordon", DEAD])?;
        must(world, &["node", "uncordon", DEAD])?;

        world.lab.kill_machine(DEAD)?;
        world.until("web", "unknown", |it| it["status"]["state"] == "unknown")?;
        // Until an administrator says so, the machine may come back.
        let early = world.waifuctl.run(&["recreate", "web", "--yes"])?;
        early.is_refused("may come back")?;
        let remove = ["node", "remove", DEAD, "--yes"];
        let kept = world.waifuctl.run(&remove)?;
        kept.is_refused("still has instances: web")?;
        let forced = [&remove[..], &["--force"]].concat();
        world.waifuctl.run(&forced)?.is_refused("--confirm-off")?;
        let forced = [&forced[..], &["--confirm-off"]].concat();
        let removed = world.waifuctl.json(&forced)?;
        ensure!(removed["lost"] == serde_json::json!(["web"]), "{removed}");
        let why = must(world, &["why", "web"])?;
        ensure!(why.contains("waifuctl recreate web"), "{why}");

        redis_fails(world)?;
        let again =
            world
                .waifuctl
                .json(&["recreate", "web", "--yes", "--wait", "--timeout", "5m"])?;
        ensure!(again["id"] == web["id"], "{again}");
        ensure!(
            again["status"]["node"] == OTHER && again["status"]["ready"] == true,
            "{again}"
        );
        for kept in ["/spec/nics/0/mac", "/spec/nics/0/address"] {
            ensure!(again.pointer(kept) == web.pointer(kept), "{again}");
        }

        // The machine comes back. Its guest boots, because nothing tells it otherwise, until it has joined again.
        world.lab.boot_machine(DEAD)?;
        wait::until("the old guest to boot", SOON, || {
            Ok((guests(world, DEAD)? == 1).then_some(()))
        })?;
        join_again(world, DEAD)?;
        wait::until("the old guest to be off", SOON, || {
            Ok((guests(world, DEAD)? == 0).then_some(()))
        })?;
        let kept = wait::until("the old copy to be kept", SOON, || {
            let kept = unmanaged(world, DEAD, "web")?;
            Ok(kept
                .iter()
                .any(|one| one["running"] == false)
                .then_some(kept))
        })?;
        ensure!(kept.len() == 1, "{kept:?}");
        ensure!(guests(world, OTHER)? == 1);
        let web = world.show("web")?;
        ensure!(
            web["status"]["node"] == OTHER && web["status"]["ready"] == true,
            "{web}"
        );

        must(
            world,
            &["delete", "web", "--unmanaged", "--node", DEAD, "--yes"],
        )?;
        wait::until("the old copy to be destroyed", SOON, || {
            Ok(unmanaged(world, DEAD, "web")?.is_empty().then_some(()))
        })?;
        let volumes = [
            "sh",
            "-c",
            "find /var/lib/waifud-agent -name '*.qcow2' | grep -c volumes || true",
        ];
        let volumes = wait::run(&mut world.lab.command(DEAD, volumes)?, SOON)?;
        ensure!(volumes.trim() == "0", "{volumes} volumes are left");
        ensure!(world.show("web")?["status"]["ready"] == true);
        a_group_is_spread(world)?;
        moves::an_instance_moves(world)?;
        waifud_moves(world)
    })
}

/// The verdict and the message of a check of doctor.
fn check(world: &World, subject: &str) -> Result<Option<(String, String)>> {
    let doctor = world.waifuctl.run(&["doctor", "--json"])?;
    let doctor: Value = serde_json::from_str(&doctor.stdout).unwrap_or_default();
    let checks = doctor["items"].as_array().cloned().unwrap_or_default();
    let found = checks.into_iter().find(|check| check["subject"] == subject);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(found.map(|check| (text(&check["verdict"]), text(&check["message"]))))
}

/// Creates web while its agent is away, so that its bundle is in Redis first. The guest boots with what the node reads there.
fn boots_from_redis(world: &World) -> Result<Value> {
    let agent = format!("{DEAD}/waifud-agentd");
    world.lab.stop(&agent)?;
    let more = ["--node", DEAD, "--no-ssh-key"];
    world.waifuctl.json(&creation(TINY, "web", &more))?;
    wait::until("the bundle to be in Redis", SOON, || {
        let redis = check(world, "redis")?;
        Ok(redis.filter(|(verdict, message)| verdict == "ok" && message.contains("1 bundles")))
    })?;
    world.lab.start(&agent)?;
    must(world, &["start", "web", "--wait", "--timeout", "5m"])?;
    let log = "/var/log/waifud/waifud-metadatad.log";
    let log = fs::read_to_string(world.lab.path_outside_of(DEAD, log))?;
    ensure!(log.contains("read a bundle from Redis"), "{log}");
    world.show("web")
}

/// Redis ends, which waifud and the node report. What follows works without it.
fn redis_fails(world: &World) -> Result<()> {
    world.lab.stop(&format!("{OLD}/redis"))?;
    for subject in ["redis".to_owned(), format!("node {OTHER} redis")] {
        wait::until(&format!("doctor to report {subject}"), SOON, || {
            let found = check(world, &subject)?;
            Ok(found
                .filter(|(verdict, message)| verdict == "warn" && message.contains("cannot reach")))
        })?;
    }
    Ok(())
}

/// A guest of one node pings one of the other by its address: through the mesh, also while the agent of the other node is
/// killed and starts again, and over routes.
fn guests_of_two_nodes_reach_each_other(world: &World) -> Result<()> {
    let more = ["--node", OTHER, "--no-ssh-key", "--wait"];
    let pal = world.waifuctl.json(&creation(TINY, "pal", &more))?;
    ensure!(pal["status"]["node"] == OTHER, "{pal}");
    an_image_was_copied(world)?;
    let address = must(world, &["ip", "web"])?;
    let ping = |count: &str| {
        let seen = must(
            world,
            &["exec", "pal", "--", "ping", "-c", count, address.trim()],
        )?;
        let all = format!("{count} packets received");
        ensure!(seen.contains(&all), "{seen}");
        anyhow::Ok(())
    };
    let fabric = world.waifuctl.json(&["fabric", "show"])?;
    ensure!(
        fabric["kind"] == "wireguard" && fabric["configured"].is_null(),
        "{fabric}"
    );
    ping("2")?;
    rules_apply_between_nodes(world, address.trim())?;
    names_resolve_without_waifud(world, address.trim())?;

    let mesh = ["sh", "-c", "pgrep -f 'agentd[ ]mesh' || true"];
    let pids = || wait::run(&mut world.lab.command(DEAD, mesh)?, SOON);
    let before = pids()?;
    ensure!(!before.is_empty(), "the mesh has no process of its own");
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| ping("8"));
        world.lab.restart(&format!("{DEAD}/waifud-agentd"))?;
        match pinging.join() {
            Ok(pinged) => pinged,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    ensure!(pids()? == before, "the mesh was started again");

    must(world, &["fabric", "set", "static"])?;
    for node in [DEAD, OTHER] {
        wait::until(&format!("{node} to have routes"), SOON, || {
            let routes = ["ip", "route", "show", "proto", "216"];
            let routes = wait::run(&mut world.lab.command(node, routes)?, SOON)?;
            Ok(routes.contains("via 192.0.2.").then_some(()))
        })?;
    }
    wait::until("a ping over the routes", SOON, || Ok(ping("2").ok()))?;
    ensure!(pids()?.is_empty(), "the mesh still runs");
    must(world, &["fabric", "set", "wireguard"])?;
    must(world, &["delete", "pal", "--yes", "--wait"]).map(drop)
}

/// A guest denies connections, except those of an instance of the other node, whose rule is removed again.
fn rules_apply_between_nodes(world: &World, address: &str) -> Result<()> {
    let pings = || -> Result<bool> {
        let ping = ["exec", "pal", "--", "ping", "-c", "1", "-W", "1", address];
        let seen = world.waifuctl.run(&ping)?;
        Ok(seen.stdout.contains("1 packets received"))
    };
    must(world, &["firewall", "deny", "web", "--in"])?;
    ensure!(!pings()?, "the rule is not in force");
    let pal = ["--protocol", "icmp", "--from", "instance:pal"];
    let allow = [&["firewall", "allow", "web"][..], &pal].concat();
    must(world, &allow)?;
    ensure!(pings()?, "the rule for pal does not match its address");
    let list = world.waifuctl.json(&["firewall", "list", "web"])?;
    let addresses = list.pointer("/rules/0/addresses/0");
    let id = list.pointer("/rules/0/id").and_then(Value::as_str);
    ensure!(
        addresses.is_some() && list["in"]["action"] == "deny",
        "{list}"
    );
    must(world, &["firewall", "remove", "web", id.context("no id")?])?;
    ensure!(!pings()?, "the removed rule is in force");
    must(world, &["firewall", "allow", "web", "--in"])?;
    ensure!(pings()?, "the rules are still in force");
    Ok(())
}

/// The second node has got the image from the first one, not from waifud.
fn an_image_was_copied(world: &World) -> Result<()> {
    let events = || world.waifuctl.json(&["events", "--limit", "1000"]);
    wait::until("the event of a copied image", SOON, || {
        let events = events()?;
        let items = events["items"].as_array().context("no items")?;
        let is_it = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["kind"] == "node.image-copied"
                && event["object"]["name"] == OTHER
                && message.ends_with(&format!("was copied from {DEAD}"))
        };
        Ok(items.iter().any(is_it).then_some(()))
    })
}

/// A guest of one node finds one of the other by its name, also while waifud is away and after its agent has started again
/// without it. It does not find one that has been deleted.
fn names_resolve_without_waifud(world: &World, address: &str) -> Result<()> {
    const SAID: &str = "found web";
    let run = |script: &str| must(world, &["exec", "pal", "--", "/bin/sh", "-c", script]);
    let ping = "ping -c 2 web && ping -c 2 web.waifu.internal";
    let pinged = wait::until("a ping by name", SOON, || Ok(run(ping).ok()))?;
    ensure!(
        pinged.matches("2 packets received").count() == 2,
        "{pinged}"
    );
    ensure!(pinged.contains(&format!("({address})")), "{pinged}");
    ensure!(run(&format!("nslookup {address}"))?.contains("web.waifu.internal"));
    let more = ["--node", DEAD, "--no-ssh-key", "--no-start"];
    world.waifuctl.json(&creation(TINY, "brief", &more))?;
    let lookup = |name: &str| run(&format!("nslookup {name}.waifu.internal || true"));
    let found = |text: &str| text.contains("10.144.");
    let resolves = |name: &str, wanted: bool| {
        wait::until(&format!("{name} to resolve: {wanted}"), SOON, || {
            let text = lookup(name)?;
            let answer = text.split_once("Name:").map_or("", |(_, answer)| answer);
            Ok((found(answer) == wanted).then_some(()))
        })
    };
    resolves("brief", true)?;
    must(world, &["delete", "brief", "--yes", "--wait"])?;
    resolves("brief", false)?;

    // Without waifud there is no command in a guest, so from now on it writes to its console whenever a ping succeeds.
    run(&format!(
        "(while :; do ping -c 1 -W 1 web.waifu.internal >/dev/null 2>&1 && echo {SAID} >/dev/console; sleep 1; done) >/dev/null 2>&1 &"
    ))?;
    let pal = world.show("pal")?;
    let id = pal["id"].as_str().context("no id")?;
    let console = format!("/var/lib/waifud-agent/instances/{id}/console.log");
    let console = world.lab.path_outside_of(OTHER, &console);
    let said = || {
        anyhow::Ok(
            String::from_utf8_lossy(&fs::read(&console)?)
                .matches(SAID)
                .count(),
        )
    };
    let until_said_again = || {
        let before = said()?;
        wait::until("the guest to find the other by its name", SOON, || {
            Ok((said()? > before + 1).then_some(()))
        })
    };
    until_said_again()?;
    world.lab.stop(&format!("{OLD}/waifud"))?;
    until_said_again()?;
    // What the agent has on its disk is enough, also for a dnsmasq that starts again.
    world.lab.stop(&format!("{OTHER}/waifud-agentd"))?;
    let end = "kill \"$(cat /run/waifud-agent/network/dnsmasq.pid)\" && rm /run/waifud-agent/network/dnsmasq.names*";
    wait::run(&mut world.lab.command(OTHER, ["sh", "-c", end])?, SOON)?;
    world.lab.start(&format!("{OTHER}/waifud-agentd"))?;
    until_said_again()?;
    world.lab.start(&format!("{OLD}/waifud"))?;
    wait::until("both nodes to be in contact again", SOON, || {
        let connected = |name| must(world, &["exec", name, "--", "/bin/true"]).is_ok();
        Ok((connected("pal") && connected("web")).then_some(()))
    })
}

/// Four instances of a group are placed on two nodes, two on each. They are not started.
fn a_group_is_spread(world: &World) -> Result<()> {
    let names = ["db-1", "db-2", "db-3", "db-4"];
    let mut nodes = Vec::new();
    for name in names {
        let created = world.create(name, &["--spread", "db", "--no-ssh-key", "--no-start"])?;
        let node = created["status"]["node"].as_str().context("not placed")?;
        nodes.push(node.to_owned());
    }
    nodes.sort();
    ensure!(nodes == [DEAD, DEAD, OTHER, OTHER], "{nodes:?}");
    let all = ["delete", "db-1", "db-2", "db-3", "db-4", "--yes", "--wait"];
    must(world, &all).map(drop)
}

/// The machine of waifud is lost. waifud is restored on that of a node, as docs/guides/move-waifud.md says. Its nodes follow, the
/// guest keeps running, and an instance that is not in the backup is adopted.
fn waifud_moves(world: &World) -> Result<()> {
    const SETTINGS: &str = "listen = [\"0.0.0.0:7373\"]\n\
        advertise = [\"https://rowan:7373\", \"https://birch:7373\"]\n";
    const CONFIG: &str = "/etc/waifud/waifud.toml";
    const BACKUP: &str = "/etc/waifud/moving.tar";
    let lab = &world.lab;
    fs::write(lab.path_outside_of(OLD, CONFIG), SETTINGS)?;
    lab.restart(&format!("{OLD}/waifud"))?;
    for node in [DEAD, OTHER] {
        let known = lab.path_outside_of(node, "/var/lib/waifud-agent/identity.json");
        wait::until(&format!("{node} to learn the new address"), SOON, || {
            let text = fs::read_to_string(&known)?;
            Ok(text.contains("https://birch:7373").then_some(()))
        })?;
    }
    wait::run(&mut lab.command(OLD, ["waifud", "backup", BACKUP])?, SOON)?;
    let copy = lab.path_outside_of(OTHER, BACKUP);
    fs::copy(lab.path_outside_of(OLD, BACKUP), copy)?;
    // Not in the backup.
    world.create("late", &["--node", OTHER, "--no-ssh-key", "--no-start"])?;
    world.until("late", "prepared", |it| it["status"]["state"] == "stopped")?;
    lab.kill_machine(OLD)?;
    let lost = Instant::now();
    fs::write(lab.path_outside_of(OTHER, CONFIG), SETTINGS)?;
    let restore = ["waifud", "restore", "--yes", BACKUP];
    wait::run(&mut lab.command(OTHER, restore)?, SOON)?;

    let boots = guests(world, OTHER)?;
    let mut serve = lab.command_as(OTHER, "waifud", ["waifud"])?;
    let log = fs::File::create(lab.path_outside_of(OTHER, "/var/log/waifud/moved.log"))?;
    let _served = Ended(
        serve
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?,
    );
    let there = Waifuctl {
        socket: lab.path_outside_of(OTHER, "/run/waifud/waifud.sock"),
        ..world.waifuctl.clone()
    };
    wait::until("waifuctl list to work", SOON, || {
        Ok((there.run(&["list"])?.code == 0).then_some(()))
    })?;
    eprintln!(
        "waifuctl list works {:.1} s after waifud's machine was lost",
        lost.elapsed().as_secs_f64()
    );
    wait::until("the nodes to follow", SOON, || {
        let nodes = there.run(&["node", "list", "--json"])?;
        let nodes: Value = serde_json::from_str(&nodes.stdout).unwrap_or_default();
        let items = nodes["items"].as_array().cloned().unwrap_or_default();
        // A restored database says that they are ready; there is a contact only after they have found this waifud.
        let is_there = |node: &&Value| node["state"] == "ready" && !node["last_contact"].is_null();
        Ok((items.iter().filter(is_there).count() == 2).then_some(()))
    })?;
    let web = there.json(&["show", "web"])?;
    ensure!(
        web["status"]["state"] == "running" && web["status"]["ready"] == true,
        "{web}"
    );
    ensure!(boots == 1 && guests(world, OTHER)? == 1);
    eprintln!(
        "both nodes are in contact {:.1} s after it was lost",
        lost.elapsed().as_secs_f64()
    );
    wait::until("late to be unmanaged", SOON, || {
        let node = there.json(&["node", "show", OTHER])?;
        let unmanaged = node["unmanaged"].as_array().cloned().unwrap_or_default();
        let mut names = unmanaged.iter().map(|it| &it["name"]);
        Ok(names.any(|name| name == "late").then_some(()))
    })?;
    let adopted = there.json(&["adopt", "late"])?;
    let node = adopted.pointer("/0/status/node");
    ensure!(node == Some(&OTHER.into()), "{adopted}");
    there.json(&["node", "confirm", "--all", "--yes"])?;
    let gone = there.run(&[
        "delete",
        "web",
        "late",
        "--yes",
        "--wait",
        "--timeout",
        "2m",
    ])?;
    ensure!(gone.code == 0, "{gone:?}");
    Ok(())
}

/// A program that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended.
        let _best_effort = self.0.kill();
        let _best_effort = self.0.wait();
    }
}
