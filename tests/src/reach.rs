//! Everything that reaches into a running guest: its console and log, SSH, ports and screen, by waifuctl as people run it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::wait;

use crate::world::SOON;
use crate::{Guest, Waifuctl};

/// A valid key that no guest has.
const NOBODYS_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
const SHOW_KEY: &str = "printf '%s\\n' '-----BEGIN SSH HOST KEY KEYS-----' \"$key\" '-----END SSH HOST KEY KEYS-----' >/dev/console";

/// Reaches the guest every way that there is.
///
/// # Errors
/// One of them does not lead there, or leads elsewhere.
pub fn every_way(guest: &Guest) -> Result<()> {
    log_and_console(guest)?;
    ssh(guest)?;
    ports_and_screen(guest)?;
    over_https(guest)?;
    only_the_keys_of_the_console(guest)
}

fn log_and_console(guest: &Guest) -> Result<()> {
    let log = guest.world.waifuctl.run(&["logs", &guest.name])?;
    ensure!(log.stdout.contains("tiny: metadata done"), "{log:?}");
    let words = ["console", &guest.name, "--lines", "400"];
    let mut console = Running::start(&guest.world.waifuctl, &words)?;
    console.wait_for("tiny: metadata done")?;
    console.stdin()?.write_all(b"nobody-of-that-name\r")?;
    console.wait_for("nobody-of-that-name")?;
    console.stdin()?.write_all(b"\x1d")?;
    console.ends_with(0)
}

fn ssh(guest: &Guest) -> Result<()> {
    let key = guest.private_key();
    let seven = ["ssh", &guest.name, "-i", &key, "--", "exit 7"];
    // sshd starts after the guest has said that it is ready.
    wait::until("waifuctl ssh to give the command's exit code", SOON, || {
        Ok((guest.world.waifuctl.run(&seven)?.code == 7).then_some(()))
    })?;
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
    let said = guest.world.waifuctl.run(&whoami)?;
    ensure!(said.stdout.contains("/home/debian"), "{said:?}");

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
    ensure!(hostname.trim() == guest.name, "plain ssh says {hostname:?}");
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
        let at = open[key].as_str().context("it does not say where")?;
        let mut connection = TcpStream::connect(at.trim_start_matches("vnc://"))?;
        connection.set_read_timeout(Some(SOON))?;
        let mut said = vec![0; greeting.len()];
        connection.read_exact(&mut said)?;
        ensure!(
            said == greeting.as_bytes(),
            "{verb}: {}",
            said.escape_ascii()
        );
        let pid = running.child.id().to_string();
        wait::run(Command::new("kill").args(["-INT", &pid]), SOON)?;
        running.ends_with(0)?;
    }
    Ok(())
}

/// From outside of all namespaces, as from another machine: TLS with waifud's own CA, and a token that says who asks.
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

    // More than any node has: it waits, and nothing boots.
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
    let told = guest.world.show("from-afar")?;
    ensure!(told["id"] == made["id"], "{told}");
    let deleted = waifuctl.run(&["delete", "from-afar", "--yes", "--wait", "--timeout", "1m"])?;
    ensure!(deleted.code == 0, "{deleted:?}");

    let mut console = Running::start(&waifuctl, &["console", &guest.name, "--lines", "400"])?;
    console.wait_for("tiny: metadata done")?;
    console.stdin()?.write_all(b"\x1d")?;
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

    let mut nobody = waifuctl.clone();
    if let Some(https) = &mut nobody.https {
        https.token.push('x');
    }
    let refused = nobody.run(&["list", "--json"])?;
    ensure!(
        refused.code == 1 && refused.problem()?["status"] == 401,
        "{refused:?}"
    );
    Ok(())
}

fn only_the_keys_of_the_console(guest: &Guest) -> Result<()> {
    let key = guest.private_key();
    let login = ["ssh", &guest.name, "-i", &key, "--", "true"];
    guest.run(&format!("key='{NOBODYS_KEY}'; {SHOW_KEY}"))?;
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
    wait::until("its own host key to be believed again", SOON, || {
        Ok((guest.world.waifuctl.run(&login)?.code == 0).then_some(()))
    })
}

/// waifuctl at work; ended when dropped.
struct Running {
    child: Child,
    output: Receiver<Vec<u8>>,
    said: String,
}

impl Running {
    fn start(waifuctl: &Waifuctl, args: &[&str]) -> Result<Self> {
        let mut child = waifuctl
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut part) {
                if sender
                    .send(part.iter().take(count).copied().collect())
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            output,
            said: String::new(),
        })
    }

    fn stdin(&mut self) -> Result<&mut ChildStdin> {
        self.child.stdin.as_mut().context("no stdin")
    }

    /// Everything it has said by the time that `text` is in it.
    fn wait_for(&mut self, text: &str) -> Result<String> {
        let found = wait::until(&format!("{text:?}"), SOON, || {
            match self.output.try_recv() {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(TryRecvError::Disconnected) => anyhow::bail!("it ended"),
                Err(TryRecvError::Empty) => {}
            }
            Ok(self.said.contains(text).then(|| self.said.clone()))
        });
        found.with_context(|| format!("it said {:?}", self.said))
    }

    fn ends_with(&mut self, code: i32) -> Result<()> {
        let status = wait::until("waifuctl to end", SOON, || Ok(self.child.try_wait()?))?;
        ensure!(status.code() == Some(code), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}
