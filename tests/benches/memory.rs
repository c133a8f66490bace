//! Memory of each daemon: at rest, with 50 paused guests, and with 5 more running guests.
//!
//! The 50 instances run a guest in one boot sector ([`waifud_tests::button`]) and are paused through libvirt, so that
//! they use no processor time. Then 5 tiny guests with a kernel are created and become ready. `-- --paused N --running
//! N` changes the numbers.
//!
//! *RSS* is the resident memory of a process. It includes the pages of its program and of its libraries that happen to be
//! mapped, also those that other processes use. *Private* is what this process alone has changed: its heap, stacks and
//! data (`Pss_Dirty` of `/proc/PID/smaps_rollup`, proc(5)).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::{Lab, LabOptions, wait};
use waifud_tests::{Waifuctl, button};

const NODE: &str = "alder";
const LIMIT: Duration = Duration::from_mins(10);
/// The daemons with their target for resident memory at 50 guests in MiB, and libvirtd for comparison.
const DAEMONS: [(&str, Option<u64>); 4] = [
    ("waifud", Some(32)),
    ("waifud-agentd", Some(32)),
    ("waifud-metadatad", Some(16)),
    ("libvirtd", None),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |flag: &str, default: usize| -> Result<usize> {
        let given = args.iter().position(|arg| arg == flag);
        let given = given.and_then(|at| args.get(at + 1));
        Ok(given.map_or(Ok(default), |text| text.parse())?)
    };
    let (paused, running) = (number("--paused", 50)?, number("--running", 5)?);

    let me = std::env::current_exe()?;
    // target/release/deps/memory-123
    let bin_dir = me
        .ancestors()
        .nth(2)
        .context("this program has no directory")?;
    let cache = waifud_images::default_cache_dir();
    let tell = |line: &str| eprintln!("{line}");
    let tiny = waifud_images::build(waifud_images::Guest::Tiny, &cache, &tell)?;
    let lab = Lab::up(&LabOptions {
        init_exe: Some(bin_dir.join("xtask")),
        bin_dir: Some(bin_dir.to_owned()),
        ..LabOptions::with_daemons()
    })?;
    let work = tempfile::tempdir()?;
    let waifuctl = Waifuctl {
        program: bin_dir.join("waifuctl"),
        socket: lab.path_outside("/run/waifud/waifud.sock"),
        https: None,
        home: work.path().to_owned(),
    };
    let small = button::image(work.path())?;
    for (name, file) in [("tiny", tiny.qcow2.as_path()), ("button", small.as_path())] {
        let file = file.display().to_string();
        waifuctl.json(&["template", "add", name, "--file", &file])?;
    }

    let mut table = vec![("at rest".to_owned(), measure(&lab)?)];
    for number in 0..paused {
        pause(&lab, &waifuctl, &format!("still{number}"))?;
    }
    table.push((format!("{paused} paused"), measure(&lab)?));
    for number in 0..running {
        ready(&waifuctl, &format!("live{number}"))?;
    }
    table.push((format!("and {running} running"), measure(&lab)?));
    print(&table);
    lab.down()
}

/// Creates an instance, waits until it runs, and pauses it.
fn pause(lab: &Lab, waifuctl: &Waifuctl, name: &str) -> Result<()> {
    create(waifuctl, name, "button", "64M", &[])?;
    wait::until(&format!("{name} to run"), LIMIT, || {
        let shown = waifuctl.json(&["show", name])?;
        Ok((shown["status"]["state"] == "running").then_some(()))
    })?;
    let words = ["virsh", "-q", "-c", "qemu:///system", "suspend", name];
    wait::run(&mut lab.command(NODE, words)?, LIMIT)?;
    wait::until(&format!("{name} to be reported as paused"), LIMIT, || {
        let shown = waifuctl.json(&["show", name])?;
        Ok((shown["status"]["state"] == "paused").then_some(()))
    })
}

fn ready(waifuctl: &Waifuctl, name: &str) -> Result<()> {
    let made = create(
        waifuctl,
        name,
        "tiny",
        "128M",
        &["--wait", "--timeout", "5m"],
    )?;
    ensure!(made["status"]["ready"] == true, "{made}");
    Ok(())
}

fn create(
    waifuctl: &Waifuctl,
    name: &str,
    template: &str,
    memory: &str,
    more: &[&str],
) -> Result<Value> {
    let words = ["create", name, "-t", template, "--memory", memory];
    let rest = ["--disk", "1G", "--no-ssh-key"];
    waifuctl.json(&[&words[..], &rest, more].concat())
}

/// RSS and private memory of each daemon, in KiB.
fn measure(lab: &Lab) -> Result<Vec<(u64, u64)>> {
    DAEMONS
        .iter()
        .map(|(daemon, _)| {
            let pid = lab.pid_of(daemon)?.context("a daemon is not running")?;
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
            let field = |name: &str| -> Result<u64> {
                let line = text.lines().find(|line| line.starts_with(name));
                let words = line.and_then(|line| line.split_whitespace().nth(1));
                Ok(words.with_context(|| format!("no {name}"))?.parse()?)
            };
            Ok((field("Rss:")?, field("Pss_Dirty:")?))
        })
        .collect()
}

fn print(table: &[(String, Vec<(u64, u64)>)]) {
    #[expect(clippy::cast_precision_loss, reason = "sizes of processes")]
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("memory of each daemon, RSS / private in MiB");
    print!("  {:<16}", "");
    for (when, _) in table {
        print!(" {when:>16}");
    }
    println!();
    for (at, (daemon, target)) in DAEMONS.iter().enumerate() {
        print!("  {daemon:<16}");
        let mut most = 0;
        for (rss, private) in table.iter().filter_map(|(_, sizes)| sizes.get(at)) {
            print!(
                " {:>16}",
                format!("{:.1} / {:.1}", mib(*rss), mib(*private))
            );
            most = most.max(*rss);
        }
        match target {
            Some(target) if most <= target * 1024 => {
                println!("   target: under {target}: met");
            }
            Some(target) => println!("   target: under {target}: missed"),
            None => println!(),
        }
    }
}
