//! A Debian machine with systemd to install waifud on. It is itself a guest of the suite's node and is controlled over
//! SSH.
//!
//! It cannot reach package mirrors: its image contains the dependencies of the package. It has no KVM either, so an
//! emulated machine emulates the guest inside.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_images::Guest as Image;
use waifud_lab::wait;

use crate::World;
use crate::world::NODE;

const TEMPLATE: &str = "debian-12-node";
/// Limit of operations in an emulated machine: a minute or two on a calm machine, much more on a busy one.
pub const SLOW: Duration = Duration::from_mins(15);
/// The socket in the lab of the SSH connection that all commands share. The handshake is slow in an emulated machine.
const CONNECTION: &str = "/tmp/machine.ssh";

/// The machine that waifud is installed on.
pub struct Machine<'a> {
    /// The world that it runs in.
    pub world: &'a World,
    name: String,
    address: String,
}

impl<'a> Machine<'a> {
    /// Creates the machine, which then boots while the caller does something else.
    ///
    /// # Errors
    /// Its image cannot be built, or waifud refuses it.
    pub fn create(world: &'a World, name: &str) -> Result<Self> {
        let cache = waifud_images::default_cache_dir();
        let image = waifud_images::build(Image::DebianNode, &cache, &|line| eprintln!("{line}"))?;
        let file = image.qcow2.display().to_string();
        let template = [
            "template", "add", TEMPLATE, "--user", "debian", "--file", &file,
        ];
        world.waifuctl.json(&template)?;
        let user_data = world.waifuctl.home.join("machine.yaml");
        std::fs::write(
            &user_data,
            "#cloud-config\ndisable_root: false\nlocale: false\nssh_genkeytypes: [ecdsa, ed25519]\n\
             grub_dpkg: {enabled: false}\n",
        )?;
        let user_data = user_data.display().to_string();
        let key = world.public_key.display().to_string();
        // With two processors, an emulated machine needs a third more processor time for the same work.
        let size = ["--cpus", "1", "--memory", "2G", "--disk", "8G"];
        let configured = ["--user-data", &user_data, "--ssh-key", &key];
        let create = ["create", name, "-t", TEMPLATE];
        let instance = world
            .waifuctl
            .json(&[&create[..], &size, &configured].concat())?;
        let address = instance
            .pointer("/status/addresses/0/address")
            .and_then(Value::as_str)
            .context("no address")?;
        Ok(Self {
            world,
            name: name.to_owned(),
            address: address.to_owned(),
        })
    }

    /// Waits until its cloud-init is done.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn wait_until_ready(&self) -> Result<()> {
        let words = ["wait", &self.name, "--for", "ready", "--timeout", "15m"];
        self.world.waifuctl.json(&words).map(drop)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn ssh(&self, program: &'static str) -> Vec<String> {
        let key = self.world.key.to_string_lossy().into_owned();
        let mut words = vec![program.to_owned(), "-q".to_owned(), "-i".to_owned(), key];
        let control = format!("ControlPath={CONNECTION}");
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=10",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ControlMaster=auto",
            "ControlPersist=10m",
            "ServerAliveInterval=10",
            control.as_str(),
        ] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words
    }

    /// Runs a shell command as root.
    ///
    /// # Errors
    /// It cannot be reached, or the command fails or exceeds the limit.
    pub fn run(&self, script: &str) -> Result<String> {
        let mut words = self.ssh("ssh");
        words.extend([
            format!("root@{}", self.address),
            "--".to_owned(),
            script.to_owned(),
        ]);
        wait::run(&mut self.world.lab.command(NODE, words)?, SLOW)
            .with_context(|| format!("on the machine: {script}"))
    }

    /// Runs a shell command whose output must contain `part`.
    ///
    /// # Errors
    /// As [`Machine::run`], and if the output does not contain it.
    pub fn prints(&self, script: &str, part: &str) -> Result<()> {
        let output = self.run(script)?;
        ensure!(output.contains(part), "no {part:?} from {script}: {output}");
        Ok(())
    }

    /// Runs a shell command that must fail, and returns its output.
    ///
    /// # Errors
    /// It succeeded.
    pub fn refused(&self, script: &str) -> Result<String> {
        let output = self.run(&format!(
            "if ({script}) 2>&1; then echo; echo SUCCEEDED; fi"
        ))?;
        ensure!(
            !output.ends_with("SUCCEEDED\n"),
            "{script} succeeded: {output}"
        );
        Ok(output)
    }

    /// Runs a shell command until `condition` holds for its output.
    ///
    /// # Errors
    /// It does not hold within [`SLOW`].
    pub fn until(&self, what: &str, script: &str, condition: impl Fn(&str) -> bool) -> Result<()> {
        let mut last = String::new();
        wait::until(what, SLOW, || {
            last = self.run(script)?;
            Ok(condition(&last).then_some(()))
        })
        .with_context(|| format!("the last output was: {last}"))
    }

    /// Copies files into its `/root`.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn put(&self, files: &[&Path]) -> Result<()> {
        let mut words = self.ssh("scp");
        for file in files {
            let name = file.file_name().context("no file name")?;
            let inside = Path::new("/etc/waifud").join(name);
            std::fs::copy(file, self.world.lab.path_outside(&inside))?;
            words.push(inside.to_string_lossy().into_owned());
        }
        words.push(format!("root@{}:/root/", self.address));
        wait::run(&mut self.world.lab.command(NODE, words)?, SLOW)?;
        Ok(())
    }

    /// Reboots it with systemd and waits until it answers. Disables cloud-init, which has finished its work and is slow
    /// in an emulated machine.
    ///
    /// # Errors
    /// It does not answer within [`SLOW`].
    pub fn reboot(&self) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(BOOT_ID)?;
        self.run("touch /etc/cloud/cloud-init.disabled && systemctl reboot")?;
        let mut leave = self.ssh("ssh");
        leave.extend(["-O", "exit", self.address.as_str()].map(str::to_owned));
        // The other side may have closed the connection already.
        let _closed = wait::output(&mut self.world.lab.command(NODE, leave)?, SLOW)?;
        wait::until("the machine's next boot", SLOW, || {
            let now = self.run(BOOT_ID);
            Ok(now.ok().filter(|now| *now != before).map(|_| ()))
        })
    }

    /// A description of everything in its network configuration that waifud could change.
    ///
    /// # Errors
    /// The commands fail.
    pub fn network(&self) -> Result<String> {
        self.run(
            "nft list ruleset; iptables-save | grep -v '^#'; ip -o addr | sed 's/ valid_lft.*//'; ip rule; ip route; \
             sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6|bridge)\\.' | grep -vE 'stable_secret|fastopen_key|_mem|max_orphans'",
        )
    }

    /// Deletes it.
    ///
    /// # Errors
    /// The deletion does not end in time.
    pub fn delete(&self) -> Result<()> {
        self.world.delete(&self.name)
    }
}

/// Prints the duration of each step on standard error. The test harness does not capture it, so that the log of a suite
/// that passed contains it, too.
pub struct Steps {
    since: Instant,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            since: Instant::now(),
        }
    }
}

impl Steps {
    /// A step has ended.
    pub fn done(&mut self, what: &str) {
        let line = format!("{:>6.1} s  {what}\n", self.since.elapsed().as_secs_f64());
        // The log is for readers only.
        let _unwritten = std::io::stderr().write_all(line.as_bytes());
        self.since = Instant::now();
    }
}
