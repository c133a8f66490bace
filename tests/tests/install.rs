//! The Debian package on a booted Debian with systemd: installed, set up, upgraded, refused, removed, purged.
//!
//! The guest has no way to the mirrors: its image holds what the package depends on. It has no KVM either, so the
//! instance inside of it is emulated by an emulated machine: it runs, and nobody waits for it to be ready.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use waifud_images::Guest as Image;
use waifud_lab::{testing, wait};
use waifud_tests::World;
use waifud_tests::world::NODE;

/// A Debian machine to install on.
const TEMPLATE: &str = "debian-12-node";
/// Installing and starting things in an emulated machine.
const SLOW: Duration = Duration::from_mins(5);

/// The machine that waifud is installed on.
struct Machine<'a> {
    world: &'a World,
    address: String,
}

impl Machine<'_> {
    fn ssh(&self, program: &'static str) -> Vec<String> {
        let key = self.world.key.to_string_lossy().into_owned();
        let mut words = vec![program.to_owned(), "-q".to_owned(), "-i".to_owned(), key];
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=10",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        words
    }

    /// Runs a shell command as root.
    fn run(&self, script: &str) -> Result<String> {
        let mut words = self.ssh("ssh");
        words.extend([
            format!("root@{}", self.address),
            "--".to_owned(),
            script.to_owned(),
        ]);
        wait::run(&mut self.world.lab.command(NODE, words)?, SLOW)
            .with_context(|| format!("on the machine: {script}"))
    }

    /// Runs a shell command that must fail, and gives what it said.
    fn refused(&self, script: &str) -> Result<String> {
        self.run(&format!(
            "if ({script}) 2>&1; then echo; echo SUCCEEDED; fi"
        ))
        .and_then(|said| {
            ensure!(!said.ends_with("SUCCEEDED\n"), "{script} succeeded: {said}");
            Ok(said)
        })
    }

    /// Puts a file of this machine into `/root`.
    fn put(&self, file: &Path) -> Result<()> {
        let name = file.file_name().context("no file name")?;
        let inside = Path::new("/etc/waifud").join(name);
        std::fs::copy(file, self.world.lab.path_outside(&inside))?;
        let mut words = self.ssh("scp");
        words.push(inside.to_string_lossy().into_owned());
        words.push(format!("root@{}:/root/", self.address));
        wait::run(&mut self.world.lab.command(NODE, words)?, SLOW)?;
        Ok(())
    }

    /// Everything of the host's network that waifud could have changed, in words.
    fn network(&self) -> Result<String> {
        self.run(
            "nft list ruleset; iptables-save | grep -v '^#'; ip -o addr | sed 's/ valid_lft.*//'; ip rule; ip route; \
             sysctl -a 2>/dev/null | grep -E '^net\\.(ipv4|ipv6|bridge)\\.' | grep -vE 'stable_secret|_mem|max_orphans'",
        )
    }
}

fn package(dir: &Path, version: &str) -> Result<PathBuf> {
    let mut command = Command::new(testing::init_exe()?);
    command
        .args(["package", "--dev", "--version", version, "--out"])
        .arg(dir);
    let output = wait::run(&mut command, Duration::from_mins(10))?;
    let deb = output.lines().next().context("no package was named")?;
    Ok(PathBuf::from(deb))
}

/// The same package as another version.
fn newer(deb: &Path, version: &str) -> Result<PathBuf> {
    let dir = deb.with_extension("newer");
    let tool = |first: &[&str], paths: [&Path; 2]| {
        let mut command = Command::new("dpkg-deb");
        command.args(first).args(paths);
        wait::run(&mut command, SLOW)
    };
    tool(&["--raw-extract"], [deb, &dir])?;
    let control = dir.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)?;
    let line = text
        .lines()
        .find(|line| line.starts_with("Version:"))
        .context("no version")?;
    std::fs::write(&control, text.replace(line, &format!("Version: {version}")))?;
    let package = deb.with_file_name(format!("waifud_{version}_newer.deb"));
    tool(
        &["--root-owner-group", "-Zgzip", "-z1", "--build"],
        [&dir, &package],
    )?;
    Ok(package)
}

fn machine<'a>(world: &'a World, name: &str) -> Result<Machine<'a>> {
    let image = waifud_images::build(
        Image::DebianNode,
        &waifud_images::default_cache_dir(),
        &|line| eprintln!("{line}"),
    )?;
    let file = image.qcow2.display().to_string();
    world.waifuctl.json(&[
        "template", "add", TEMPLATE, "--user", "debian", "--file", &file,
    ])?;
    let user_data = world.waifuctl.home.join("machine.yaml");
    std::fs::write(
        &user_data,
        "#cloud-config\ndisable_root: false\nlocale: false\n",
    )?;
    let user_data = user_data.display().to_string();
    let key = world.public_key.display().to_string();
    let instance = world.waifuctl.json(&[
        "create",
        name,
        "-t",
        TEMPLATE,
        "--cpus",
        "2",
        "--memory",
        "2G",
        "--disk",
        "8G",
        "--user-data",
        &user_data,
        "--ssh-key",
        &key,
        "--wait",
        "--timeout",
        "9m",
    ])?;
    let address = instance
        .pointer("/status/addresses/0/address")
        .and_then(serde_json::Value::as_str)
        .context("no address")?;
    Ok(Machine {
        world,
        address: address.to_owned(),
    })
}

#[test]
fn the_package_is_installed_set_up_upgraded_and_removed_without_a_trace() -> Result<()> {
    World::with(|world| {
        let dir = tempfile::tempdir()?;
        let first = package(dir.path(), "0.1.0")?;
        let second = newer(&first, "0.1.0+1")?;
        let machine = machine(world, "cupboard")?;
        machine.put(&first)?;
        machine.put(&second)?;
        machine.put(&world.tiny.qcow2)?;
        let before = machine.network()?;

        installed(&machine, &first)?;
        set_up(&machine)?;
        confined(&machine)?;
        upgraded_under_a_running_guest(&machine, &second)?;
        removed(&machine, &before)?;
        world.delete("cupboard")
    })
}

fn name(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn installed(machine: &Machine<'_>, deb: &Path) -> Result<()> {
    let said = machine.run(&format!("dpkg -i /root/{}", name(deb)))?;
    ensure!(said.contains("sudo waifud init"), "no next step: {said}");
    machine
        .run("id waifud && id waifud-metadata && id waifud-image && getent group waifud-admin")?;
    machine.run("man --version >/dev/null 2>&1; test -s /usr/share/man/man1/waifuctl.1.gz")?;
    machine.run("bash -n /usr/share/bash-completion/completions/waifuctl")?;
    // Nothing runs before somebody has said so.
    machine.run("! systemctl is-active waifud waifud-agentd waifud-metadatad")?;
    Ok(())
}

fn set_up(machine: &Machine<'_>) -> Result<()> {
    let said = machine.run("waifud init --yes")?;
    ensure!(
        said.contains("waifuctl "),
        "init names no next command: {said}"
    );
    machine.run("systemctl is-active waifud waifud-agentd waifud-metadatad waifud-guests")?;
    machine.run("systemctl is-enabled waifud waifud-agentd waifud-metadatad waifud-guests")?;
    let ready = || {
        machine
            .run("waifuctl node list --json")
            .map(|text| text.contains("\"ready\""))
    };
    wait::until("the machine to be a ready node", SLOW, || {
        Ok(ready()?.then_some(()))
    })?;
    // Twice is once.
    machine.run("waifud init --yes")?;
    // A user who is not in the group hears which it is and how to get into it.
    let said = machine.refused("runuser -u debian -- waifuctl list")?;
    ensure!(
        said.contains("waifud-admin") && said.contains("usermod"),
        "{said}"
    );
    Ok(())
}

/// Who the daemons are, and what they may do, as the kernel says.
fn confined(machine: &Machine<'_>) -> Result<()> {
    for (daemon, user) in [
        ("waifud", "waifud"),
        ("waifud-metadatad", "waifud-metadata"),
        ("waifud-agentd", "root"),
    ] {
        let said = machine.run(&format!(
            "pid=$(systemctl show -P MainPID {daemon}); \
             test \"$(awk '/^Uid:/{{print $2,$3,$4,$5}}' /proc/$pid/status | tr ' ' '\\n' | sort -u)\" = \"$(id -u {user})\" && \
             awk '/^(CapEff|CapBnd|NoNewPrivs):/{{print $2}}' /proc/$pid/status"
        ))?;
        let fields: Vec<&str> = said.split_whitespace().collect();
        let [effective, bounding, no_new] = fields[..] else {
            anyhow::bail!("{daemon}: {said}");
        };
        ensure!(no_new == "1", "{daemon} may gain privileges");
        if user == "root" {
            // SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_BOOT, SYS_TIME: the agent needs none of them.
            let bounding = u64::from_str_radix(bounding, 16)?;
            for capability in [16, 17, 19, 22, 25] {
                ensure!(
                    bounding & (1 << capability) == 0,
                    "{daemon} has capability {capability}"
                );
            }
        } else {
            ensure!(
                u64::from_str_radix(effective, 16)? == 0,
                "{daemon}: {effective}"
            );
            ensure!(
                u64::from_str_radix(bounding, 16)? == 0,
                "{daemon}: {bounding}"
            );
        }
    }
    Ok(())
}

fn upgraded_under_a_running_guest(machine: &Machine<'_>, deb: &Path) -> Result<()> {
    machine.run(&format!(
        "waifuctl template add tiny --user debian --file /root/{}",
        name(&machine.world.tiny.qcow2)
    ))?;
    machine.run("waifuctl create inner -t tiny --memory 128M --disk 1G")?;
    let state =
        || machine.run("waifuctl show inner --json | grep -c '\"state\": *\"running\"' || true");
    wait::until("the inner guest to run", SLOW, || {
        Ok((state()?.trim() != "0").then_some(()))
    })?;
    let pids = "systemctl show -P MainPID waifud waifud-agentd waifud-metadatad";
    let qemu = machine.run("pgrep -f guest=inner")?;
    let daemons = machine.run(pids)?;
    machine.run(&format!("dpkg -i /root/{}", name(deb)))?;
    ensure!(
        machine.run("pgrep -f guest=inner")? == qemu,
        "the upgrade touched the guest"
    );
    ensure!(
        machine.run(pids)? != daemons,
        "the upgrade restarted no daemon"
    );
    machine.run("systemctl is-active waifud waifud-agentd waifud-metadatad")?;
    machine.run("waifuctl list")?;
    Ok(())
}

fn removed(machine: &Machine<'_>, before: &str) -> Result<()> {
    let said = machine.refused("dpkg -r waifud")?;
    ensure!(said.contains("inner"), "the refusal names no guest: {said}");
    machine.run("systemctl is-active waifud waifud-agentd waifud-metadatad")?;
    machine.run("waifuctl delete inner --yes --wait --timeout 3m")?;
    machine.run("dpkg -r waifud")?;
    ensure!(
        machine
            .run("systemctl list-units --plain --no-legend 'waifud*'")?
            .trim()
            .is_empty(),
        "a unit is still there"
    );
    let after = machine.network()?;
    ensure!(
        after == before,
        "the host's network is not what it was.\nbefore:\n{before}\nafter:\n{after}"
    );
    let said = machine.run("dpkg -P waifud 2>&1")?;
    ensure!(
        said.contains("/var/lib/waifud-agent"),
        "purge says nothing of disks: {said}"
    );
    machine.run(
        "test ! -e /etc/waifud && test ! -e /var/lib/waifud && test -d /var/lib/waifud-agent",
    )?;
    Ok(())
}
