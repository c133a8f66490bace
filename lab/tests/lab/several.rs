//! A lab with several nodes: they join, lose power and links, and leave nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use waifud_lab::shape::Shape;
use waifud_lab::{Lab, LabOptions, OUTSIDE, testing, wait};

use crate::traces::{self, Machine, Traces};
use crate::{DOMAIN, LIMIT, ask, must, options_in};

const NODES: [&str; 3] = ["alder", "birch", "cedar"];
const WAIFUD: &str = "rowan";

static SHARED: OnceLock<Mutex<Option<Lab>>> = OnceLock::new();

/// Runs `test` in a lab with three nodes, which these tests share. The guard stops it when this process ends.
fn with_three_nodes(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if let Some(why) = testing::why_no_lab() {
        return testing::skip(&why);
    }
    let shared = SHARED.get_or_init(|| Mutex::new(None));
    let mut lab = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if lab.is_none() {
        *lab = Some(Lab::up(&LabOptions {
            nodes: NODES.len(),
            ..LabOptions::with_daemons()
        })?);
    }
    let lab = lab.as_ref().context("no lab")?;
    lab.wait_nodes_ready(2 * LIMIT)?;
    test(lab)
}

/// `waifuctl node list`, as seen from waifud's machine: the nodes by their names.
fn nodes(lab: &Lab) -> Result<Vec<Value>> {
    let text = must(lab, WAIFUD, &["waifuctl", "node", "list", "--json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array().context("no list of nodes")?;
    Ok(items.clone())
}

fn node(lab: &Lab, name: &str) -> Result<Value> {
    let mut nodes = nodes(lab)?.into_iter();
    let found = nodes.find(|node| node["name"] == name);
    found.with_context(|| format!("waifud does not list {name}"))
}

/// Whether a ping from one machine to the other is answered.
fn reaches(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    let ping = ["ping", "-q", "-c", "1", "-W", "1", to];
    Ok(ask(lab, from, &ping)?.status.success())
}

/// Returns when pings between the two are answered in both directions. After a cut, that takes a new address resolution.
fn must_reach(lab: &Lab, one: &str, other: &str) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        wait::until(&format!("{from} to reach {to}"), LIMIT, || {
            Ok(reaches(lab, from, to)?.then_some(()))
        })?;
    }
    Ok(())
}

/// The PIDs of all services of these machines.
fn pids(lab: &Lab, machines: &[&str]) -> Result<BTreeSet<(String, Option<i32>)>> {
    let mut pids = BTreeSet::new();
    for machine in machines {
        for service in lab.status(machine)? {
            let name = format!("{machine}/{}", service.name);
            let pid = lab.pid_of(&name)?;
            pids.insert((name, pid));
        }
    }
    Ok(pids)
}

#[test]
fn three_nodes_join_waifud_on_its_own_machine_and_become_ready() -> Result<()> {
    with_three_nodes(|lab| {
        assert_eq!(lab.nodes(), NODES);
        let listed = nodes(lab)?;
        let names: BTreeSet<_> = listed.iter().filter_map(|it| it["name"].as_str()).collect();
        assert_eq!(names, BTreeSet::from(NODES), "{listed:?}");
        assert!(listed.iter().all(|it| it["state"] == "ready"), "{listed:?}");
        let subnets: BTreeSet<_> = listed.iter().map(|it| it["subnets"].to_string()).collect();
        assert_eq!(subnets.len(), NODES.len(), "{subnets:?}");

        let services = |machine: &str| -> Result<Vec<String>> {
            Ok(lab.status(machine)?.into_iter().map(|it| it.name).collect())
        };
        assert_eq!(services(WAIFUD)?, ["waifud"]);
        for node in NODES {
            assert!(!services(node)?.contains(&"waifud".to_owned()), "{node}");
        }
        Ok(())
    })
}

#[test]
fn each_machine_has_an_identity_of_its_own() -> Result<()> {
    with_three_nodes(|lab| {
        for file in [
            "/etc/machine-id",
            "/proc/sys/kernel/random/boot_id",
            "/etc/hostname",
            "/sys/class/net/eth0/address",
        ] {
            let mut seen = BTreeSet::from([fs::read_to_string(file).unwrap_or_default()]);
            for machine in lab.machines() {
                let text = must(lab, machine, &["cat", file])?;
                assert_eq!(text, must(lab, machine, &["cat", file])?);
                assert!(seen.insert(text), "{machine} shares its {file}: {seen:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_service_of_several_machines_must_be_named_with_its_machine() -> Result<()> {
    with_three_nodes(|lab| {
        let error = format!("{:#}", lab.pid_of("libvirtd").unwrap_err());
        assert!(error.contains("alder/libvirtd"), "{error}");
        let of = |machine| lab.pid_of(&format!("{machine}/libvirtd"));
        assert_ne!(of("alder")?, of("birch")?);
        assert!(lab.pid_of("waifud")?.is_some());
        assert!(lab.pid_of("oak/libvirtd").is_err());
        Ok(())
    })
}

#[test]
fn a_cut_stops_two_machines_from_reaching_each_other_and_nothing_else() -> Result<()> {
    with_three_nodes(|lab| {
        for (one, other, third) in [("alder", "birch", "cedar"), ("cedar", OUTSIDE, "alder")] {
            must_reach(lab, one, other)?;
            assert!(arrives(lab, one, other)? && arrives(lab, other, one)?);
            lab.cut(other, one)?;
            let disturbances = lab.disturbances()?;
            assert_eq!(disturbances.cut.len(), 1, "{disturbances:?}");
            assert!(!arrives(lab, one, other)? && !arrives(lab, other, one)?);
            for machine in [one, other] {
                must_reach(lab, machine, third)?;
            }
            lab.heal(one, other)?;
            must_reach(lab, one, other)?;
            assert!(lab.disturbances()?.cut.is_empty());
        }
        assert!(lab.cut("alder", "alder").is_err());
        assert!(lab.cut("alder", "oak").is_err());
        Ok(())
    })
}

/// The shortest round-trip time in milliseconds of `count` pings, and how many were answered.
fn pings(lab: &Lab, from: &str, to: &str, count: u32) -> Result<(f64, u32)> {
    let count = count.to_string();
    let words = ["ping", "-q", "-i", "0.01", "-W", "2", "-c", &count, to];
    let text = String::from_utf8(ask(lab, from, &words)?.stdout)?;
    let answered = text.split(" packets transmitted, ").nth(1);
    let answered = answered.and_then(|rest| rest.split(' ').next()?.parse().ok());
    let times = text.split(" = ").nth(1).unwrap_or_default();
    let shortest = times.split('/').next().and_then(|time| time.parse().ok());
    Ok((
        shortest.unwrap_or(f64::INFINITY),
        answered.with_context(|| format!("no result: {text}"))?,
    ))
}

#[test]
fn a_slow_link_delays_and_loses_in_both_directions_also_after_a_boot() -> Result<()> {
    with_three_nodes(|lab| {
        let millis = Duration::from_millis;
        let late = Shape {
            delay: millis(100),
            ..Shape::default()
        };
        for (one, other, third) in [("alder", "cedar", "birch"), (OUTSIDE, "cedar", "alder")] {
            lab.slow(one, other, late)?;
            assert_eq!(lab.disturbances()?.slow.len(), 1);
            for (from, to) in [(one, other), (other, one)] {
                let (shortest, answered) = pings(lab, from, to, 5)?;
                assert!(
                    answered == 5 && shortest >= 200.0,
                    "{from}: {shortest} {answered}"
                );
            }
            assert!(pings(lab, one, third, 5)?.0 < 200.0);
            lab.heal(one, other)?;
            assert!(pings(lab, one, other, 5)?.0 < 200.0);
        }

        lab.slow("alder", "cedar", late)?;
        lab.kill_machine("cedar")?;
        lab.boot_machine("cedar")?;
        must_reach(lab, "alder", "cedar")?;
        assert!(pings(lab, "cedar", "alder", 2)?.0 >= 200.0);
        // A cut has precedence, and heal ends both.
        lab.cut("alder", "cedar")?;
        assert!(!arrives(lab, "alder", "cedar")? && !arrives(lab, "cedar", "alder")?);
        lab.heal("alder", "cedar")?;
        must_reach(lab, "alder", "cedar")?;
        assert!(pings(lab, "cedar", "alder", 2)?.0 < 200.0);

        let loss = Shape {
            loss: 300_000,
            ..Shape::default()
        };
        lab.slow("alder", "cedar", loss)?;
        let (_, answered) = pings(lab, "alder", "cedar", 200)?;
        // 49 % are expected to survive both directions; the bounds are seven standard deviations away.
        assert!((50..150).contains(&answered), "{answered}");
        lab.heal("alder", "cedar")?;
        assert!(lab.slow("alder", "cedar", Shape::default()).is_err());
        Ok(())
    })
}

#[test]
fn a_connection_passes_all_bytes_over_a_slow_link_at_its_rate() -> Result<()> {
    with_three_nodes(|lab| {
        let rate = Shape {
            rate: Some(8_000_000),
            ..Shape::default()
        };
        lab.slow("alder", "cedar", rate)?;
        let file = lab.path_outside_of("alder", "/tmp/bytes");
        let bytes: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(&file, &bytes[..2_000_000])?;
        let begun = Instant::now();
        let copied = copy(lab, "alder", "/tmp/bytes", "cedar")?;
        let took = begun.elapsed();
        assert_eq!(copied.len(), 2_000_000);
        assert!(copied == bytes[..2_000_000], "the bytes were changed");
        // 2 MB at 1 MB/s, less what the buffers of both ends hold.
        assert!(took >= Duration::from_secs(1), "{took:?}");
        lab.heal("alder", "cedar")
    })
}

/// Runs `work` in the network of a machine. A socket belongs to the namespace in which its thread creates it.
fn inside<T: Send + 'static>(
    lab: &Lab,
    machine: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<thread::JoinHandle<Result<T>>> {
    let namespace = fs::File::open(format!("/proc/{}/ns/net", lab.init_pid(machine)?))?;
    Ok(thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    }))
}

fn joined<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread.join().ok().context("a thread panicked")?
}

/// Whether a datagram arrives that goes in this direction only: the addresses have been resolved by an earlier packet.
fn arrives(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    let address = address(lab, to)?;
    let receiver = joined(inside(lab, to, move || Ok(UdpSocket::bind((address, 0))?))?)?;
    let to = receiver.local_addr()?;
    joined(inside(lab, from, move || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"x", to)?;
        Ok(())
    })?)?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(receiver.recv(&mut [0; 8]).is_ok())
}

/// Sends a file over TCP, and returns what arrived.
fn copy(lab: &Lab, from: &str, path: &str, to: &str) -> Result<Vec<u8>> {
    let address = address(lab, to)?;
    let bytes = fs::read(lab.path_outside_of(from, path))?;
    let (listens, listening) = mpsc::channel();
    let receiver = inside(lab, to, move || {
        let listener = TcpListener::bind((address, 0))?;
        listens.send(listener.local_addr()?)?;
        let mut got = Vec::new();
        listener.accept()?.0.read_to_end(&mut got)?;
        Ok(got)
    })?;
    let sender = inside(lab, from, move || {
        let mut stream = TcpStream::connect_timeout(&listening.recv()?, LIMIT)?;
        stream.write_all(&bytes)?;
        Ok(())
    })?;
    joined(sender)?;
    joined(receiver)
}

/// The address of a machine, from its `/etc/hosts`.
fn address(lab: &Lab, machine: &str) -> Result<Ipv4Addr> {
    let hosts = must(lab, machine, &["cat", "/etc/hosts"])?;
    let mut lines = hosts.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(_, name)| *name == machine);
    Ok(found.context("the machine has no address")?.0.parse()?)
}

/// How often an init has reported that a service of its machine ended. One that is killed itself reports nothing.
fn orderly_stops(lab: &Lab) -> Result<usize> {
    let log = fs::read_to_string(lab.dir().join("guard.log"))?;
    Ok(log.matches(" ended: ").count())
}

#[test]
fn a_killed_node_loses_its_guests_and_boots_with_its_identity_while_the_others_run_on() -> Result<()>
{
    with_three_nodes(|lab| {
        let others = [WAIFUD, "alder", "cedar"];
        let (running, before) = (pids(lab, &others)?, node(lab, "birch")?);
        let boot_id = ["cat", "/proc/sys/kernel/random/boot_id"];
        let first_boot = must(lab, "birch", &boot_id)?;
        for file in ["/run/mark", "/tmp/mark", "/etc/mark", "/var/lib/mark"] {
            must(lab, "birch", &["touch", file])?;
        }
        fs::write(lab.path_outside_of("birch", "/tmp/still.xml"), DOMAIN)?;
        let virsh = ["virsh", "-q", "-c", "qemu:///system"];
        let create = [&virsh[..], &["create", "--paused", "/tmp/still.xml"]].concat();
        must(lab, "birch", &create)?;
        must(lab, "birch", &["pgrep", "--uid", "64055"])?;
        let init = lab.init_pid("birch")?;

        let stops = orderly_stops(lab)?;
        lab.kill_machine("birch")?;
        assert_eq!(orderly_stops(lab)?, stops, "services had time to stop");
        assert!(!Path::new(&format!("/proc/{init}")).exists());
        assert_eq!(
            lab.disturbances()?.off,
            BTreeSet::from(["birch".to_owned()])
        );
        assert!(lab.init_pid("birch").is_err() && lab.status("birch").is_err());
        assert!(lab.kill_machine("birch").is_err());
        // The others are not disturbed, and the lab goes on.
        assert_eq!(pids(lab, &others)?, running);
        lab.wait_ready(LIMIT)?;
        let last_contact = node(lab, "birch")?["last_contact"].clone();

        lab.boot_machine("birch")?;
        assert!(lab.boot_machine("birch").is_err());
        assert_ne!(must(lab, "birch", &boot_id)?, first_boot);
        let exists = |file: &str| lab.path_outside_of("birch", file).exists();
        assert!(!exists("/run/mark") && !exists("/tmp/mark"));
        assert!(exists("/etc/mark") && exists("/var/lib/mark"));
        assert_eq!(
            must(lab, "birch", &[&virsh[..], &["list"]].concat())?.trim(),
            ""
        );
        wait::until("birch to be in contact again", LIMIT, || {
            let now = node(lab, "birch")?;
            let heard = now["last_contact"] != last_contact;
            Ok((heard && now["state"] == "ready").then_some(()))
        })?;
        let after = node(lab, "birch")?;
        assert_eq!(after["id"], before["id"]);
        assert_eq!(after["subnets"], before["subnets"]);
        assert_eq!(nodes(lab)?.len(), NODES.len());
        must_reach(lab, "birch", "alder")?;
        must_reach(lab, "birch", OUTSIDE)?;
        assert_eq!(pids(lab, &others)?, running);
        Ok(())
    })
}

#[test]
fn waifud_is_reachable_over_https_again_after_its_machine_has_booted() -> Result<()> {
    with_three_nodes(|lab| {
        let https = lab.https()?;
        let waifuctl = testing::init_exe()?.with_file_name("waifuctl");
        let list = || -> Result<bool> {
            let mut command = std::process::Command::new(&waifuctl);
            command
                .args(["node", "list", "--json"])
                .env_remove("WAIFUD_SOCKET")
                .env("WAIFUD_URL", &https.url)
                .env("WAIFUD_CA", &https.ca)
                .env("WAIFUD_TOKEN", &https.token);
            Ok(wait::output(&mut command, LIMIT)?.status.success())
        };
        assert!(list()?);
        lab.kill_machine(WAIFUD)?;
        assert!(!list()?);
        lab.boot_machine(WAIFUD)?;
        assert!(list()?);
        Ok(())
    })
}

/// A lab with two nodes without our daemons.
fn two_bare_nodes(base: &tempfile::TempDir) -> LabOptions {
    LabOptions {
        nodes: 2,
        ..options_in(base)
    }
}

#[test]
fn after_down_nothing_of_several_nodes_is_left() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    let base = tempfile::tempdir()?;
    let lab = Lab::up(&two_bare_nodes(&base))?;
    let before = Traces::of(&lab)?;
    lab.cut("alder", "birch")?;
    lab.kill_machine("birch")?;
    lab.boot_machine("birch")?;
    let after = Traces::of(&lab)?;
    lab.kill_machine("alder")?;
    lab.down()?;
    before.must_be_gone()?;
    after.must_be_gone()?;
    machine.must_be_unchanged()
}

#[test]
fn a_guard_that_is_killed_at_any_step_of_the_start_leaves_no_process() -> Result<()> {
    let Some(machine) = Machine::before()? else {
        return Ok(());
    };
    // Files that appear while a lab starts: the guard listens, the first and the last machine run, all are connected.
    for step in ["guard.sock", "outside.ctl", "birch.ctl", "pids.json"] {
        let base = tempfile::tempdir()?;
        let options = two_bare_nodes(&base);
        let started = thread::spawn(move || Lab::up(&options).map(drop));
        let dir = wait::until("the lab's directory", LIMIT, || visible_lab(base.path()))?;
        let guard = wait::until("the guard", LIMIT, || Ok(traces::guard_of(&dir)))?;
        wait::until(step, LIMIT, || Ok(dir.join(step).exists().then_some(())))?;
        traces::sigkill(guard)?;
        // It fails, unless it was ready before.
        let result = started.join().ok().context("the start panicked")?;
        ensure!(step == "pids.json" || result.is_err(), "started at {step}");
        Traces::in_dir(&dir)?.processes_must_end()?;
        waifud_lab::remove_stale(Some(base.path()))?;
        Traces::in_dir(&dir)?.must_be_gone()?;
    }
    machine.must_be_unchanged()
}

/// The directory of a lab that is being started in `base`.
fn visible_lab(base: &Path) -> Result<Option<PathBuf>> {
    let paths = fs::read_dir(base)?.flatten().map(|entry| entry.path());
    let mut labs = paths.filter(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("waifud-lab-")
    });
    Ok(labs.next())
}
