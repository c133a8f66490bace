//! The Debian package on a running Debian with systemd: installed, set up, upgraded, rebooted, removed, purged. Then the
//! machine joins the suite's own waifud as a node.

mod deb;
mod join;
mod kernel;
mod mesh;

use std::path::Path;

use anyhow::{Result, ensure};
use deb::Newer;
use waifud_tests::machine::Steps;
use waifud_tests::{Machine, World, button, guest_agent, reach};

const DAEMONS: &str = "waifud waifud-agentd waifud-metadatad";

#[test]
fn the_package_is_installed_set_up_upgraded_and_removed_without_a_trace() -> Result<()> {
    World::with_settings(join::SETTINGS, |world| {
        let mut steps = Steps::default();
        // It boots while the packages are built and checked.
        let machine = Machine::create(world, "cupboard")?;
        let dir = tempfile::tempdir()?;
        let first = deb::package(dir.path(), "0.1.0")?;
        deb::is_clean(&first)?;
        let second = deb::newer(&first, "0.1.0+1")?;
        let guest_disk = button::image(dir.path())?;
        let kernel_tests = kernel::program(dir.path())?;
        steps.done("packages");
        machine.wait_until_ready()?;
        steps.done("the machine");
        reached_from_outside(&machine)?;
        steps.done("reached from outside");
        machine.put(&[&first, &second.head, &guest_disk, &kernel_tests])?;
        steps.done("files put there");
        kernel::conforms(&machine)?;
        steps.done("mesh and VLANs in its kernel");
        let before = machine.network()?;

        installed(&machine, &first)?;
        steps.done("installed");
        set_up(&machine)?;
        steps.done("set up");
        backed_up(&machine)?;
        steps.done("backed up over SSH");
        guest(&machine)?;
        confined(&machine)?;
        steps.done("a guest inside");
        upgraded_under_a_running_guest(&machine, &first, &second)?;
        steps.done("upgraded");
        rebooted(&machine)?;
        steps.done("rebooted");
        removed(&machine, &before)?;
        steps.done("removed");
        purged(&machine)?;
        steps.done("purged");
        join::joined(&machine, &first, &guest_disk)?;
        steps.done("joined");
        mesh::changes_between_kernel_and_process(&machine, join::NODE)?;
        steps.done("changed between kernel and process");
        machine.delete()
    })
}

/// The machine is itself an instance, so features that need a complete Debian in the guest are tested here.
fn reached_from_outside(machine: &Machine<'_>) -> Result<()> {
    let (world, name) = (machine.world, machine.name());
    guest_agent::runs_programs_in(world, name)?;
    guest_agent::sets_a_password(world, name, "debian")?;
    let log = world.waifuctl.run(&["logs", name, "--cloud-init"])?;
    ensure!(log.stdout.contains("Cloud-init v. "), "{log:?}");
    reach::copies_files(world, name)
}

fn name(file: &Path) -> String {
    file.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn installed(machine: &Machine<'_>, deb: &Path) -> Result<()> {
    // The next step.
    let install = format!("apt-get install -qy /root/{}", name(deb));
    machine.prints(&install, "sudo waifud init")?;
    machine
        .run("id waifud && id waifud-metadata && id waifud-image && getent group waifud-admin")?;
    machine.run("test -s /usr/share/man/man1/waifuctl.1.gz")?;
    machine.run("bash -n /usr/share/bash-completion/completions/waifuctl")?;
    // No daemon runs before `waifud init`.
    machine.run(&format!("! systemctl is-active {DAEMONS}"))?;
    Ok(())
}

fn set_up(machine: &Machine<'_>) -> Result<()> {
    // The next command.
    machine.prints("waifud init --yes", "waifuctl ")?;
    machine.run(&format!("systemctl is-active {DAEMONS} waifud-guests"))?;
    machine.run(&format!("systemctl is-enabled {DAEMONS} waifud-guests"))?;
    // `waifud init` waited for the node.
    machine.prints("waifuctl node list --json", "\"ready\"")?;
    // A second run changes nothing.
    machine.run("waifud init --yes")?;
    let again = machine.run("waifuctl node list --json")?;
    let again: serde_json::Value = serde_json::from_str(&again)?;
    let count = again["items"].as_array().map(Vec::len);
    ensure!(count == Some(1), "init twice made other nodes: {again}");
    // Stopping this unit by hand would stop the guests.
    let refused = machine.refused("systemctl stop waifud-guests")?;
    ensure!(refused.contains("refused"), "{refused}");
    machine.run("systemctl is-active waifud-guests")?;
    // The error for a user outside the group names the group and the command that adds the user.
    let output = machine.refused("runuser -u debian -- waifuctl list")?;
    ensure!(
        output.contains("waifud-admin") && output.contains("usermod"),
        "{output}"
    );
    Ok(())
}

/// The users and capabilities of the daemons, from the kernel.
fn confined(machine: &Machine<'_>) -> Result<()> {
    for (daemon, user) in [
        ("waifud", "waifud"),
        ("waifud-metadatad", "waifud-metadata"),
        ("waifud-agentd", "root"),
    ] {
        let output = machine.run(&format!(
            "pid=$(systemctl show -P MainPID {daemon}); \
             test \"$(awk '/^Uid:/{{print $2,$3,$4,$5}}' /proc/$pid/status | tr ' ' '\\n' | sort -u)\" = \"$(id -u {user})\" && \
             awk '/^(CapEff|CapBnd|NoNewPrivs):/{{print $2}}' /proc/$pid/status"
        ))?;
        let fields: Vec<&str> = output.split_whitespace().collect();
        let [effective, bounding, no_new] = fields[..] else {
            anyhow::bail!("{daemon}: {output}");
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

/// The unit for regular backups writes over SSH, here to the same machine, and a backup can be restored.
fn backed_up(machine: &Machine<'_>) -> Result<()> {
    // Without a directory, the unit ends and says why.
    machine.run("systemctl enable --now waifud-backup")?;
    machine.until(
        "the unit to end",
        "systemctl show -P ActiveState waifud-backup",
        |state| state.trim() == "failed",
    )?;
    machine.prints(
        "journalctl -u waifud-backup -o cat",
        "set `to` in section [backup] of /etc/waifud/waifud.toml",
    )?;
    machine.run(
        "install -d -m 0700 /root/backups && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 && \
         cat /root/.ssh/id_ed25519.pub >>/root/.ssh/authorized_keys && \
         ssh-keyscan -t ed25519 127.0.0.1 >>/root/.ssh/known_hosts",
    )?;
    machine.run(
        "printf '\\n[backup]\\nto = \"root@127.0.0.1:/root/backups\"\\n' >>/etc/waifud/waifud.toml && \
         systemctl restart waifud-backup",
    )?;
    let made = "find /root/backups -name 'waifud-*.tar'";
    machine.until("a backup over SSH", made, |files| {
        files.lines().count() == 1
    })?;
    machine.prints("stat -c '%U %a' /root/backups/waifud-*.tar", "root 600")?;
    machine.until(
        "waifuctl doctor to show it",
        "waifuctl doctor || true",
        |checks| checks.contains("in root@127.0.0.1:/root/backups: the last one is from"),
    )?;
    machine.run("systemctl is-active waifud-backup")?;
    Ok(())
}

/// Starts a guest inside the machine.
fn guest(machine: &Machine<'_>) -> Result<()> {
    machine.run("waifuctl template add button --user nobody --file /root/button.qcow2")?;
    machine.run("waifuctl create inner -t button --memory 64M --disk 1G --no-ssh-key")?;
    runs(machine, 1)
}

/// Waits until it runs and reacts to its power button, in its boot with this number. QEMU appends to the log of the
/// console.
fn runs(machine: &Machine<'_>, boot: usize) -> Result<()> {
    machine.run("waifuctl wait inner --for running --timeout 5m")?;
    machine.until(
        "the guest inside to boot",
        "waifuctl logs inner 2>&1 || true",
        |output| output.matches(button::UP).count() == boot,
    )
}

fn upgraded_under_a_running_guest(machine: &Machine<'_>, deb: &Path, newer: &Newer) -> Result<()> {
    machine.run(&format!(
        "{{ cat /root/{}; tail -c +{} /root/{}; }} >/root/newer.deb",
        name(&newer.head),
        newer.rest_from,
        name(deb)
    ))?;
    let pids = &format!("systemctl show -P MainPID {DAEMONS}");
    let qemu = machine.run("pgrep -f guest=inner")?;
    let daemons = machine.run(pids)?;
    machine.run("apt-get install -qy /root/newer.deb")?;
    ensure!(
        machine.run("pgrep -f guest=inner")? == qemu,
        "the upgrade restarted the guest"
    );
    let now = machine.run(pids)?;
    let same = now
        .split_whitespace()
        .any(|pid| daemons.split_whitespace().any(|before| pid == before));
    ensure!(
        !same,
        "the upgrade did not restart every daemon: {daemons}{now}"
    );
    machine.run(&format!("systemctl is-active {DAEMONS}"))?;
    lists_the_guest(machine, "waifud after its upgrade")
}

/// Waits until waifud answers and knows the guest.
fn lists_the_guest(machine: &Machine<'_>, what: &str) -> Result<()> {
    machine.until(what, "waifuctl list || true", |output| {
        output.contains("inner")
    })
}

/// At a shutdown, our unit stops the guest cleanly. The next boot starts it again.
fn rebooted(machine: &Machine<'_>) -> Result<()> {
    machine.reboot()?;
    let journal = machine.run("journalctl -b -1 -o cat -u waifud-guests")?;
    ensure!(
        journal.contains("inner (priority 0): shut down"),
        "the guest was not shut down cleanly: {journal}"
    );
    machine.until(
        "waifud after the boot",
        &format!("systemctl is-active {DAEMONS} waifud-guests || true"),
        |output| output.lines().count() == 4 && output.lines().all(|line| line == "active"),
    )?;
    lists_the_guest(machine, "waifud to answer")?;
    runs(machine, 2)
}

fn removed(machine: &Machine<'_>, before: &str) -> Result<()> {
    let output = machine.refused("apt-get remove -qy waifud")?;
    ensure!(
        output.contains("inner"),
        "the refusal does not name the guest: {output}"
    );
    machine.run(&format!("systemctl is-active {DAEMONS}"))?;
    lists_the_guest(machine, "waifud after the refusal")?;
    machine.run("waifuctl stop inner --wait --timeout 3m")?;
    machine.run("apt-get remove -qy waifud")?;
    is_gone(machine, before)?;
    kept(machine)?;
    // Installed and set up again, it has the guest.
    machine.run("apt-get install -qy /root/newer.deb")?;
    machine.run("waifud init --yes")?;
    lists_the_guest(machine, "waifud after its second installation")?;
    machine.run("waifuctl delete inner --yes --wait --timeout 3m")?;
    machine.run("apt-get remove -qy waifud")?;
    is_gone(machine, before)
}

/// The removal keeps the defined domain, its disk, and the settings.
fn kept(machine: &Machine<'_>) -> Result<()> {
    machine.prints("virsh -q -c qemu:///system list --all", "inner")?;
    let disks = machine.run(
        "for disk in $(virsh -q -c qemu:///system domblklist --details inner | awk '$2 == \"disk\" {print $4}'); \
         do test -s \"$disk\" && echo \"$disk\" || exit 1; done",
    )?;
    ensure!(disks.contains('/'), "the domain has no disk: {disks}");
    machine.run("test -s /etc/waifud/waifud.toml")?;
    Ok(())
}

/// No daemon runs or is started at boot, and the host's network is as before the installation.
fn is_gone(machine: &Machine<'_>, before: &str) -> Result<()> {
    let running =
        machine.run("systemctl list-units --plain --no-legend --state=running 'waifud*'")?;
    ensure!(running.trim().is_empty(), "a daemon still runs: {running}");
    let enabled = machine.run("find /etc/systemd -name 'waifud*'")?;
    ensure!(
        enabled.trim().is_empty(),
        "still started at boot: {enabled}"
    );
    let after = machine.network()?;
    let lines = |of: &str, other: &str| {
        let other: Vec<_> = other.lines().collect();
        of.lines()
            .filter(|line| !other.contains(line))
            .collect::<Vec<_>>()
            .join("\n")
    };
    ensure!(
        after == before,
        "the host's network has changed.\nonly before:\n{}\nonly after:\n{}",
        lines(before, &after),
        lines(&after, before)
    );
    Ok(())
}

fn purged(machine: &Machine<'_>) -> Result<()> {
    // It names the directory of the disks, which stay.
    machine.prints("apt-get purge -qy waifud 2>&1", "/var/lib/waifud-agent")?;
    let left = machine.run(
        "find / -xdev -name '*waifu*' -not -path '/root/*' -not -path '/var/lib/waifud-agent/*'; \
         find /run -name '*waifu*' -not -path '/run/systemd/*'",
    )?;
    ensure!(left.trim() == "/var/lib/waifud-agent", "left: {left}");
    // The accounts stay, so that their numbers are not reused by others. Their shells do not allow a login.
    machine.run("id waifud && id waifud-metadata && id waifud-image")?;
    let shells = machine.run("getent passwd waifud waifud-metadata waifud-image | cut -d: -f7")?;
    ensure!(
        shells.lines().count() == 3 && shells.lines().all(|shell| shell.ends_with("/nologin")),
        "{shells}"
    );
    Ok(())
}
