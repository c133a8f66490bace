//! A complete lab: it starts libvirt, runs guests as `libvirt-qemu`, and leaves nothing behind, however it ends.

mod several;
mod traces;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use traces::{Machine, Traces};
use waifud_lab::{Lab, LabOptions, ServiceState, Signal, testing, wait};

const LIMIT: Duration = Duration::from_secs(30);

fn lab() -> Result<Option<Lab>> {
    testing::lab_or_skip(&LabOptions::default())
}

fn ask(lab: &Lab, node: &str, words: &[&str]) -> Result<Output> {
    wait::output(&mut lab.command(node, words)?, LIMIT)
}

fn must(lab: &Lab, node: &str, words: &[&str]) -> Result<String> {
    wait::run(&mut lab.command(node, words)?, LIMIT)
}

fn virsh(lab: &Lab, words: &[&str]) -> Result<String> {
    must(
        lab,
        "alder",
        &[&["virsh", "-q", "-c", "qemu:///system"], words].concat(),
    )
}

/// Starts a paused guest without disk, network and screen.
const DOMAIN: &str = "<domain type='qemu'><name>still</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
    <os><type arch='x86_64' machine='q35'>hvm</type></os>\
    <devices><serial type='null'/><video><model type='none'/></video><memballoon model='none'/></devices></domain>";

fn start_guest(lab: &Lab) -> Result<()> {
    fs::write(lab.path_outside("/tmp/still.xml"), DOMAIN)?;
    virsh(lab, &["create", "--paused", "/tmp/still.xml"])?;
    Ok(())
}

#[test]
fn libvirt_answers_inside_and_sees_no_cgroups_of_the_machine() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let version = virsh(&lab, &["version"])?;
    assert!(version.contains("QEMU"), "{version}");
    assert_eq!(virsh(&lab, &["list", "--all"])?.trim(), "");
    assert!(!must(&lab, "alder", &["cat", "/proc/mounts"])?.contains("cgroup"));
    lab.down()
}

#[test]
fn a_guest_runs_as_libvirt_qemu_and_survives_the_daemon() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    start_guest(&lab)?;
    let qemu = || must(&lab, "alder", &["pgrep", "--uid", "64055", "--list-name"]);
    let before = qemu()?;
    assert!(before.contains("qemu-system"), "{before}");

    lab.kill("libvirtd", Signal::SIGKILL)?;
    wait::until("libvirtd to be restarted", LIMIT, || {
        let status = lab.status("alder")?;
        let libvirtd = status.into_iter().find(|entry| entry.name == "libvirtd");
        Ok(libvirtd.filter(|entry| entry.state == ServiceState::Ready && entry.restarts == 1))
    })?;
    assert_eq!(qemu()?, before);
    assert_eq!(virsh(&lab, &["domstate", "still"])?.trim(), "paused");
    lab.down()
}

#[test]
fn a_stopped_service_stays_stopped_until_it_is_started() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let first = lab.pid_of("libvirtd")?.context("libvirtd runs")?;
    lab.stop("libvirtd")?;
    assert_eq!(lab.pid_of("libvirtd")?, None);
    assert!(lab.kill("libvirtd", Signal::SIGTERM).is_err());
    lab.start("libvirtd")?;
    lab.wait_ready(LIMIT)?;
    let second = lab.pid_of("libvirtd")?.context("libvirtd runs again")?;
    assert_ne!(first, second);
    lab.restart("libvirtd")?;
    assert_ne!(lab.pid_of("libvirtd")?, Some(second));
    virsh(&lab, &["list"])?;
    assert!(lab.restart("sshd").is_err());
    lab.down()
}

#[test]
fn a_node_reaches_the_outside_and_nothing_else() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    for (from, to) in [
        ("alder", "192.0.2.1"),
        ("alder", "198.51.100.1"),
        ("outside", "192.0.2.2"),
    ] {
        must(&lab, from, &["ping", "-q", "-c", "1", "-W", "5", to])?;
    }
    // Only the route is queried: outside has no further route, so nothing can leave the machine.
    let route = ask(&lab, "outside", &["ip", "route", "get", "203.0.113.1"])?;
    assert!(!route.status.success(), "{route:?}");
    let devices = must(&lab, "alder", &["ls", "/sys/class/net"])?;
    assert_eq!(
        devices.split_whitespace().collect::<Vec<_>>(),
        ["eth0", "lo"]
    );
    assert_eq!(
        must(&lab, "alder", &["cat", "/proc/sys/net/ipv4/ip_forward"])?.trim(),
        "0"
    );
    assert_eq!(must(&lab, "alder", &["hostname"])?.trim(), "alder");
    lab.down()
}

#[test]
fn a_node_writes_only_into_the_labs_directory() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    for path in [
        "/usr/share/waifud-test",
        "/root/waifud-test",
        "/run/waifud-lab/host/etc/waifud-test",
    ] {
        assert!(
            !ask(&lab, "alder", &["touch", path])?.status.success(),
            "{path}"
        );
    }
    for path in [
        "/etc/waifud/x",
        "/var/lib/x",
        "/run/x",
        "/tmp/x",
        "/var/cache/x",
        "/var/log/x",
    ] {
        must(&lab, "alder", &["touch", path])?;
        assert!(lab.path_outside(path).exists(), "{path}");
        assert!(lab.path_outside(path).starts_with(lab.dir()));
    }
    lab.down()
}

#[test]
fn users_of_the_node_have_their_directories_and_no_capability() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let run = |user: &str, words: &[&str]| {
        wait::output(&mut lab.command_as("alder", user, words)?, LIMIT)
    };
    for (user, dir) in [
        ("waifud", "/var/lib/waifud/x"),
        ("waifud-metadata", "/run/waifud-metadata/x"),
    ] {
        assert!(run(user, &["touch", dir])?.status.success(), "{user}");
        let status = run(user, &["grep", "Cap[EPB]", "/proc/self/status"])?;
        let text = String::from_utf8(status.stdout)?;
        assert_eq!(text.matches("0000000000000000").count(), 3, "{text}");
    }
    assert!(
        !run("waifud-metadata", &["ls", "/var/lib/waifud"])?
            .status
            .success()
    );
    assert!(
        !run("waifud-metadata", &["ls", "/run/waifud-lab/host/root"])?
            .status
            .success()
    );
    lab.down()
}

#[test]
fn our_daemons_run_as_their_own_users_in_order_and_are_restarted() -> Result<()> {
    if let Some(why) = testing::why_no_lab() {
        return testing::skip(&why);
    }
    // Each daemon is replaced by a script that runs the helper below in this program.
    let bin = tempfile::tempdir()?;
    fs::set_permissions(bin.path(), fs::Permissions::from_mode(0o755))?;
    let exe = std::env::current_exe()?;
    for name in ["waifud", "waifud-metadatad", "waifud-agentd"] {
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = join ]; then exit 0; fi\nWAIFUD_LAB_TEST_DAEMON=\"$0 $*\" exec '{}' --exact daemon_that_listens --ignored --nocapture\n",
            exe.display()
        );
        fs::write(bin.path().join(name), text)?;
        fs::set_permissions(bin.path().join(name), fs::Permissions::from_mode(0o755))?;
    }
    // Creates the join token, which is passed to the agent's `join` above.
    fs::write(
        bin.path().join("waifuctl"),
        "#!/bin/sh\necho '{\"token\":\"t\"}'\n",
    )?;
    fs::set_permissions(
        bin.path().join("waifuctl"),
        fs::Permissions::from_mode(0o755),
    )?;
    let lab = Lab::up(&LabOptions {
        bin_dir: Some(bin.path().to_owned()),
        visible: vec![exe.parent().context("a directory")?.to_owned()],
        env: vec![("COLOUR".into(), "blue".into())],
        ..LabOptions::with_daemons()
    })?;
    for (service, uid, groups) in [
        ("waifud", "64910", "64914"),
        ("waifud-metadatad", "64911", ""),
        ("waifud-agentd", "0", ""),
    ] {
        let pid = lab.pid_of(service)?.context("it runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default()
                .trim_start_matches(':')
                .trim()
                .to_owned()
        };
        assert_eq!(field("Uid"), [uid; 4].join("\t"), "{service}");
        assert_eq!(field("Groups"), groups, "{service}");
        assert_eq!(field("SigBlk"), "0000000000000000", "{service}");
        let powerless = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|name| field(name) == "0000000000000000");
        assert_eq!(
            powerless.iter().all(|none| *none),
            uid != "0",
            "{service}: {status}"
        );
        let log = fs::read_to_string(lab.path_outside(format!("/var/log/waifud/{service}.log")))?;
        assert!(
            log.contains("--config /etc/waifud/") && log.contains("COLOUR=blue"),
            "{log}"
        );
    }
    assert_eq!(
        fs::read_to_string(lab.path_outside("/etc/waifud/agentd.toml"))?,
        "node = \"alder\"\n"
    );

    let before = lab.pid_of("waifud")?;
    lab.kill("waifud", Signal::SIGKILL)?;
    wait::until("waifud to be restarted", LIMIT, || {
        Ok(lab.pid_of("waifud")?.filter(|pid| Some(*pid) != before))
    })?;
    lab.wait_ready(LIMIT)?;
    lab.down()
}

// Not a test: the test that the reason names starts it.
#[test]
#[ignore = "the helper process of our_daemons_run_as_their_own_users_in_order_and_are_restarted"]
fn daemon_that_listens() -> Result<()> {
    let call = std::env::var("WAIFUD_LAB_TEST_DAEMON").context("started by hand")?;
    println!(
        "{call} COLOUR={}",
        std::env::var("COLOUR").unwrap_or_default()
    );
    let socket = if call.contains("metadatad") {
        "/run/waifud-metadata/control.sock"
    } else if call.contains("agentd") {
        "/run/waifud-agent/none.sock"
    } else {
        "/run/waifud/waifud.sock"
    };
    let _ = fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    loop {
        listener.accept()?;
    }
}

/// A lab in this directory.
fn options_in(base: &tempfile::TempDir) -> LabOptions {
    LabOptions {
        base: Some(base.path().to_owned()),
        ..LabOptions::default()
    }
}

/// A lab with a running guest, and the traces of both.
fn with_a_guest(options: &LabOptions) -> Result<(Lab, Traces)> {
    let lab = Lab::up(options)?;
    start_guest(&lab)?;
    let traces = Traces::of(&lab)?;
    Ok((lab, traces))
}

#[test]
fn after_down_nothing_of_the_lab_is_left() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    let (lab, traces) = with_a_guest(&LabOptions::default())?;
    lab.down()?;
    traces.must_be_gone()?;
    machine.must_be_unchanged()
}

#[test]
fn after_a_nodes_pid_1_is_killed_nothing_of_the_lab_is_left() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    let (lab, traces) = with_a_guest(&LabOptions::default())?;
    traces::sigkill(lab.init_pid("alder")?)?;
    // The guard removes it: the handle still exists and has done nothing.
    traces.must_be_gone()?;
    machine.must_be_unchanged()?;
    drop(lab);
    Ok(())
}

#[test]
fn after_the_guard_is_killed_the_next_lab_removes_what_is_left() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    let base = tempfile::tempdir()?;
    let options = options_in(&base);
    let (lab, traces) = with_a_guest(&options)?;
    traces::sigkill(lab.guard_pid())?;
    traces.processes_must_end()?;
    assert!(lab.dir().exists(), "no process was left to remove it");

    let next = Lab::up(&options)?;
    traces.must_be_gone()?;
    next.down()?;
    drop(lab);
    machine.must_be_unchanged()
}

#[test]
fn a_lab_ends_with_the_process_that_created_it() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    // Another process of this program runs the helper below, which waits to be killed.
    let mut owner = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "owner_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("WAIFUD_LAB_TEST_OWNER", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let dir = traces::line_after(&mut owner, "LAB ")?;
    let lab = Lab::attach(Path::new(&dir))?;
    let traces = Traces::of(&lab)?;
    owner.kill()?;
    owner.wait()?;
    traces.must_be_gone()?;
    machine.must_be_unchanged()
}

// Not a test: the test that the reason names starts it.
#[test]
#[ignore = "the helper process of a_lab_ends_with_the_process_that_created_it"]
fn owner_that_is_killed() -> Result<()> {
    std::env::var("WAIFUD_LAB_TEST_OWNER").context("started by hand")?;
    let lab = Lab::up(&LabOptions::default())?;
    println!("LAB {}", lab.dir().display());
    wait::until("to be killed", Duration::from_mins(1), || Ok(None))
}

#[test]
fn a_lab_that_cannot_start_reports_the_reason_and_leaves_nothing() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    let base = tempfile::tempdir()?;
    let options = LabOptions {
        files: vec![(
            "/etc/libvirt/libvirtd.conf".into(),
            "host_uuid = broken".into(),
        )],
        start_limit: Duration::from_secs(6),
        ..options_in(&base)
    };
    let error = format!(
        "{:#}",
        Lab::up(&options)
            .err()
            .context("libvirtd accepted an invalid file")?
    );
    assert!(
        error.contains("libvirtd") && error.contains("libvirtd.conf"),
        "{error}"
    );
    ensure!(
        fs::read_dir(base.path())?.next().is_none(),
        "something remains"
    );
    machine.must_be_unchanged()
}
