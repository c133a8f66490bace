//! Access to a running guest with waifuctl: console and log, SSH, ports and screen.

use std::io::Read;
use std::net::TcpStream;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::wait;

use crate::running::Running;
use crate::world::SOON;
use crate::{Guest, World, guest_agent, home};

/// The node's address in the simulated home network.
const NODE_AT_HOME: &str = "192.0.2.2";
/// A valid key that no guest has.
const OTHER_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
const SHOW_KEY: &str = "printf '%s\\n' '-----BEGIN SSH HOST KEY KEYS-----' \"$key\" '-----END SSH HOST KEY KEYS-----' >/dev/console";

/// Reaches the guest in every way that waifuctl offers.
///
/// # Errors
/// One of them does not reach this guest.
pub fn every_way(guest: &Guest) -> Result<()> {
    ssh(guest)?;
    log_and_console(guest)?;
    guest_agent::runs_programs(guest)?;
    ports_and_screen(guest)?;
    published(guest)?;
    over_https(guest)?;
    only_the_keys_of_the_console(guest)
}

fn log_and_console(guest: &Guest) -> Result<()> {
    let log = guest.world.waifuctl.run(&["logs", &guest.name])?;
    ensure!(log.stdout.contains("tiny: metadata done"), "{log:?}");
    let mut follows = Running::start(&guest.world.waifuctl, &["logs", &guest.name, "-f"])?;
    follows.wait_for("tiny: metadata done")?;
    guest.run("echo \"and it is $((20 + 3))\" >/dev/console")?;
    follows.wait_for("and it is 23")?;
    // The output of the user's script, which does not appear on the console.
    let log = guest
        .world
        .waifuctl
        .run(&["logs", &guest.name, "--cloud-init"])?;
    ensure!(log.stdout == "ran-once\n", "{log:?}");

    let words = ["console", &guest.name, "--lines", "400"];
    let mut console = Running::at_a_terminal(&guest.world.waifuctl, &words)?;
    console.wait_for("tiny: metadata done")?;
    ensure!(console.is_raw()?, "the terminal is not in raw mode");
    console.types(b"nobody-of-that-name\r")?;
    console.wait_for("nobody-of-that-name")?;
    console.types(b"\x1d")?;
    console.ends_with(0)?;
    ensure!(!console.is_raw()?, "the terminal remains in raw mode");
    Ok(())
}

fn ssh(guest: &Guest) -> Result<()> {
    let key = guest.private_key();
    let seven = ["ssh", &guest.name, "-i", &key, "--", "exit 7"];
    // The guest is ready, so the first attempt must succeed.
    let ended = guest.world.waifuctl.run(&seven)?;
    ensure!(ended.code == 7, "{ended:?}");
    let whoami = [
        "ssh",
        &guest.name,
        "-i",
        &key,
        "--",
        "whoami",
        ";",
        "echo",
        "$HOME",
    ];
    let outcome = guest.world.waifuctl.run(&whoami)?;
    ensure!(outcome.stdout.contains("/home/debian"), "{outcome:?}");

    let config = guest.world.waifuctl.run(&["ssh-config", &guest.name])?;
    ensure!(config.code == 0, "{config:?}");
    ensure!(
        config.stdout.contains("StrictHostKeyChecking yes"),
        "{config:?}"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &config.stdout)?;
    let mut plain = Command::new("ssh");
    plain.arg("-F").arg(file.path());
    plain.args(["-i", &key, &guest.name, "cat", "/etc/hostname"]);
    let hostname = wait::run(&mut plain, SOON)?;
    ensure!(
        hostname.trim() == guest.name,
        "plain ssh printed {hostname:?}"
    );
    Ok(())
}

/// Copies a file with scp and the output of `ssh-config` to the guest and back. For a guest that has an SFTP server.
///
/// # Errors
/// The returned file differs.
pub fn copies_files(world: &World, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = world.waifuctl.run(&["ssh-config", name])?;
    ensure!(config.code == 0, "{config:?}");
    let at = |file: &str| dir.path().join(file).display().to_string();
    std::fs::write(at("config"), &config.stdout)?;
    std::fs::write(at("notes"), "of today\n")?;
    let key = world.public_key.with_extension("").display().to_string();
    let there = format!("{name}:notes");
    for (from, to) in [(at("notes"), there.clone()), (there, at("back"))] {
        let mut scp = Command::new("scp");
        scp.args(["-q", "-F", &at("config"), "-i", &key, &from, &to]);
        wait::run(&mut scp, SOON)?;
    }
    let back = std::fs::read_to_string(at("back"))?;
    ensure!(back == "of today\n", "the returned file contains {back:?}");
    Ok(())
}

fn ports_and_screen(guest: &Guest) -> Result<()> {
    for (verb, more, key, greeting) in [
        ("forward", Some("0:22"), "local", "SSH-2.0-dropbear"),
        ("screen", None, "url", "RFB 003.008\n"),
    ] {
        let args: Vec<&str> = [verb, guest.name.as_str()]
            .into_iter()
            .chain(more)
            .collect();
        let words = [&args[..], &["--json"]].concat();
        let mut running = Running::start(&guest.world.waifuctl, &words)?;
        let line = running.wait_for("\n")?;
        let open: Value = serde_json::from_str(&line)?;
        let at = open[key]
            .as_str()
            .context("the output contains no address")?;
        let mut connection = TcpStream::connect(at.trim_start_matches("vnc://"))?;
        connection.set_read_timeout(Some(SOON))?;
        let mut received = vec![0; greeting.len()];
        connection.read_exact(&mut received)?;
        ensure!(
            received == greeting.as_bytes(),
            "{verb}: {}",
            received.escape_ascii()
        );
        let pid = running.id().to_string();
        wait::run(Command::new("kill").args(["-INT", &pid]), SOON)?;
        running.ends_with(0)?;
    }
    Ok(())
}

/// A machine in the home network reaches the guest's sshd at a published port of the node, until it is unpublished.
fn published(guest: &Guest) -> Result<()> {
    let Guest { world, name, .. } = guest;
    let asks = ["ssh-keyscan", "-T", "2", "-p", "2222", NODE_AT_HOME];
    let answer = || {
        let keys = home::outside(world, &asks).unwrap_or_default();
        keys.contains("ssh-ed25519").then_some(keys)
    };
    ensure!(answer().is_none(), "the port already answers");
    let shown = world.waifuctl.json(&["publish", name, "2222:22"])?;
    ensure!(
        shown.pointer("/spec/publish/0/port") == Some(&Value::from(2222)),
        "{shown}"
    );
    let keys = wait::until("the published port to answer", SOON, || Ok(answer()))?;
    let own = guest.run("dropbearkey -y -f /etc/dropbear/ed25519 | grep ^ssh-ed25519")?;
    let own = own
        .split_whitespace()
        .nth(1)
        .context("the guest has no key")?;
    ensure!(keys.contains(own), "another host answers: {keys}");
    world.waifuctl.json(&["firewall", "deny", name, "--in"])?;
    ensure!(
        answer().is_none(),
        "the port answers although connections are denied"
    );
    let from_home = ["--port", "22", "--from", "192.0.2.0/24"];
    let allow = [&["firewall", "allow", name][..], &from_home].concat();
    world.waifuctl.json(&allow)?;
    ensure!(
        answer().is_some(),
        "the port does not answer although a rule allows it"
    );
    // The node itself reaches the guest whatever the rules.
    world
        .waifuctl
        .json(&["firewall", "deny", name, "--first", "--in", "--port", "22"])?;
    ssh(guest)?;
    world.waifuctl.json(&["firewall", "allow", name, "--in"])?;
    let list = world.waifuctl.json(&["firewall", "list", name])?;
    let rules = list["rules"].as_array().context("no rules")?;
    for rule in rules {
        let id = rule["id"].as_str().context("no id")?;
        world.waifuctl.json(&["firewall", "remove", name, id])?;
    }
    world.waifuctl.json(&["unpublish", name, "2222"])?;
    wait::until("the port to be closed", SOON, || {
        Ok(answer().is_none().then_some(()))
    })
}

/// Access from outside the namespaces, as from another machine: TLS with waifud's CA, and a token.
fn over_https(guest: &Guest) -> Result<()> {
    let waifuctl = guest.world.waifuctl.over(guest.world.lab.https()?);
    let listed = waifuctl.json(&["list"])?;
    let names = |list: &Value| {
        list["items"].as_array().is_some_and(|items| {
            let name = guest.name.as_str();
            items.iter().any(|item| item["name"] == name)
        })
    };
    ensure!(names(&listed), "{listed}");

    // More memory than any node has, so the instance stays pending.
    let big = [
        "create",
        "from-afar",
        "-t",
        "tiny",
        "--memory",
        "900G",
        "--no-ssh-key",
    ];
    let made = waifuctl.json(&big)?;
    ensure!(made["status"]["state"] == "pending", "{made}");
    let shown = guest.world.show("from-afar")?;
    ensure!(shown["id"] == made["id"], "{shown}");
    let deleted = waifuctl.run(&["delete", "from-afar", "--yes", "--wait", "--timeout", "1m"])?;
    ensure!(deleted.code == 0, "{deleted:?}");

    let mut console = Running::start(&waifuctl, &["console", &guest.name, "--lines", "400"])?;
    console.wait_for("tiny: metadata done")?;
    console.types(b"\x1d")?;
    console.ends_with(0)?;
    let seven = [
        "ssh",
        &guest.name,
        "-i",
        &guest.private_key(),
        "--",
        "exit 7",
    ];
    let ended = waifuctl.run(&seven)?;
    ensure!(ended.code == 7, "{ended:?}");

    let mut unauthenticated = waifuctl.clone();
    if let Some(https) = &mut unauthenticated.https {
        https.token.push('x');
    }
    let refused = unauthenticated.run(&["list", "--json"])?;
    refused.is_problem("status", 401)?;
    Ok(())
}

fn only_the_keys_of_the_console(guest: &Guest) -> Result<()> {
    let key = guest.private_key();
    let login = ["ssh", &guest.name, "-i", &key, "--", "true"];
    guest.run(&format!("key='{OTHER_KEY}'; {SHOW_KEY}"))?;
    let refused = wait::until("another host key to be refused", SOON, || {
        let outcome = guest.world.waifuctl.run(&login)?;
        Ok((outcome.code == 255).then_some(outcome))
    })?;
    ensure!(
        refused.stderr.contains("Host key verification failed"),
        "{refused:?}"
    );
    guest.run(&format!(
        "key=$(dropbearkey -y -f /etc/dropbear/ed25519 | grep ^ssh-); {SHOW_KEY}"
    ))?;
    wait::until("its own host key to be accepted again", SOON, || {
        Ok((guest.world.waifuctl.run(&login)?.code == 0).then_some(()))
    })
}
