//! Several nodes: a dead machine is removed by force, its instance is recreated on another one, and then the machine comes
//! back after all.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::wait;
use waifud_tests::World;
use waifud_tests::world::{SOON, TINY, creation};

const DEAD: &str = "alder";
const OTHER: &str = "birch";
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
fn an_instance_of_a_dead_machine_is_recreated_and_its_old_copy_stays_off_when_the_machine_returns()
-> Result<()> {
    World::with_nodes(2, |world| {
        let more = ["--node", DEAD, "--no-ssh-key", "--wait"];
        let web = world.waifuctl.json(&creation(TINY, "web", &more))?;
        ensure!(
            web["status"]["node"] == DEAD && guests(world, DEAD)? == 1,
            "{web}"
        );
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

        let again =
            world
                .waifuctl
                .json(&["recreate", "web", "--yes", "--wait", "--timeout", "5m"])?;
        ensure!(again["id"] == web["id"], "{again}");
        ensure!(
            again["status"]["node"] == OTHER && again["status"]["ready"] == true,
            "{again}"
        );
        let mac = "/spec/nics/0/mac";
        ensure!(again.pointer(mac) == web.pointer(mac), "{again}");

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
        world.delete("web")
    })
}
