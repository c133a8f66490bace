//! `cargo xtask lab`: the lab for interactive use and scripts.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use waifud_lab::shape::{Shape, parse_delay, parse_loss, parse_rate};
use waifud_lab::{Lab, LabOptions, current};

use crate::root;

/// Limit for waifud to list several nodes as ready after they have joined.
const READY_LIMIT: Duration = Duration::from_mins(2);

#[derive(Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the lab; it runs until `lab down`
    Up {
        /// Number of nodes: alder, birch, cedar, …. With more than one, waifud runs on a machine of its own, rowan
        #[arg(long, default_value_t = 1, value_name = "N")]
        nodes: usize,
        /// Name of the only node [default: alder]
        #[arg(long, value_name = "NAME", conflicts_with = "nodes")]
        node: Option<String>,
        /// Start libvirt only, without our daemons
        #[arg(long)]
        bare: bool,
        /// Start Redis on waifud's machine, and let waifud cache bundles there
        #[arg(long, conflicts_with = "bare")]
        redis: bool,
        /// What connects the guests of different nodes [default: waifud's default]
        #[arg(long, value_name = "FABRIC", conflicts_with = "bare", value_parser = ["wireguard", "static", "none"])]
        fabric: Option<String>,
        /// Directory of waifud, waifud-agentd, waifud-metadatad and waifuctl [default: the directory of xtask]
        #[arg(long)]
        bin_dir: Option<PathBuf>,
    },
    /// Print shell commands that set the lab's environment variables: eval "$(cargo xtask lab env)"
    Env,
    /// Run a command as root in a node or another machine, or in "outside", the simulated home network
    Exec {
        /// A machine in `lab status`, or "outside"
        #[arg(value_name = "MACHINE")]
        node: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Show the services of all machines, the machines that are off, and the links that are cut or slow
    Status,
    /// Restart a service
    Restart(ServiceName),
    /// Stop a service until `lab start`
    Stop(ServiceName),
    /// Start a stopped service
    Start(ServiceName),
    /// Kill a machine with its guests, as a power cut does, or send a signal to a service
    ///
    /// The lab restarts a service that ends. A machine stays off until `lab boot`.
    Kill {
        /// A machine, or a service in `lab status`: SERVICE, or MACHINE/SERVICE if several machines have it
        #[arg(value_name = "MACHINE|SERVICE")]
        target: String,
        /// For a service: number or name of the signal, for example TERM [default: KILL]
        signal: Option<String>,
    },
    /// Boot a machine that was killed
    ///
    /// It has a new boot id, and /run and /tmp are empty. /etc and /var are kept.
    Boot {
        /// A machine that is off
        machine: String,
    },
    /// Drop all traffic between two machines, in both directions
    Cut(Ends),
    /// Limit and delay the traffic between two machines, and lose a part of it; in each direction for itself
    Slow {
        #[command(flatten)]
        ends: Ends,
        /// Bits per second, for example 800k, 10M or 1G
        #[arg(long, value_parser = parse_rate)]
        rate: Option<u64>,
        /// Time that each frame takes, for example 50ms or 2s
        #[arg(long, value_parser = parse_delay)]
        delay: Option<Duration>,
        /// Share of frames that are lost, for example 2% or 0.1%
        #[arg(long, value_parser = parse_loss)]
        loss: Option<u32>,
    },
    /// Undo `lab cut` and `lab slow`
    Heal(Ends),
    /// Stop the lab and remove everything that belongs to it
    Down,
}

#[derive(clap::Args)]
struct ServiceName {
    /// A service in `lab status`: SERVICE, or MACHINE/SERVICE if several machines have it
    service: String,
}

#[derive(clap::Args)]
struct Ends {
    /// A machine, or "outside"
    a: String,
    /// Another machine
    b: String,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Up {
            nodes,
            node,
            bare,
            redis,
            fabric,
            bin_dir,
        } => up(nodes, node, bare, redis, fabric.as_deref(), bin_dir),
        Command::Env => {
            for (key, value) in the_lab()?.env()? {
                println!("export {key}={}", quoted(&value));
            }
            Ok(())
        }
        Command::Exec { node, command } => {
            root::become_root("entering the lab")?;
            let error = the_lab()?.command(&node, command)?.exec();
            Err(error).context("cannot run nsenter")
        }
        Command::Status => status(&controlled()?),
        Command::Restart(ServiceName { service }) => {
            controlled()?.restart(&service)?;
            report(&service, "restarted and ready");
            Ok(())
        }
        Command::Stop(ServiceName { service }) => {
            controlled()?.stop(&service)?;
            report(&service, "stopped");
            Ok(())
        }
        Command::Start(ServiceName { service }) => {
            controlled()?.start(&service)?;
            report(&service, "started and ready");
            Ok(())
        }
        Command::Kill { target, signal } => kill(&controlled()?, &target, signal.as_deref()),
        Command::Boot { machine } => {
            controlled()?.boot_machine(&machine)?;
            report(&machine, "booted, and its services are ready");
            Ok(())
        }
        Command::Cut(Ends { a, b }) => {
            controlled()?.cut(&a, &b)?;
            report(&format!("{a} and {b}"), "cut");
            Ok(())
        }
        Command::Slow {
            ends: Ends { a, b },
            rate,
            delay,
            loss,
        } => {
            let lab = controlled()?;
            let shape = Shape {
                rate,
                delay: delay.unwrap_or_default(),
                loss: loss.unwrap_or_default(),
            };
            lab.slow(&a, &b, shape)?;
            report(&format!("{a} and {b}"), &shape.to_string());
            Ok(())
        }
        Command::Heal(Ends { a, b }) => {
            controlled()?.heal(&a, &b)?;
            report(&format!("{a} and {b}"), "healed");
            Ok(())
        }
        Command::Down => {
            root::become_root("stopping the lab")?;
            down()
        }
    }
}

fn report(what: &str, result: &str) {
    eprintln!("{what}: {result}");
}

fn kill(lab: &Lab, target: &str, signal: Option<&str>) -> Result<()> {
    if !lab.machines().contains(&target) {
        lab.kill(target, parse_signal(signal.unwrap_or("KILL"))?)?;
        report(
            target,
            "the signal was sent; if the service ends, the lab restarts it",
        );
        return Ok(());
    }
    if let Some(signal) = signal {
        bail!(
            "{target} is a machine and gets no signal: omit {signal}, or name a service of it, for example {target}/libvirtd"
        );
    }
    lab.kill_machine(target)?;
    report(
        target,
        &format!("off, until `cargo xtask lab boot {target}`"),
    );
    Ok(())
}

fn up(
    nodes: usize,
    node: Option<String>,
    bare: bool,
    redis: bool,
    fabric: Option<&str>,
    bin_dir: Option<PathBuf>,
) -> Result<()> {
    root::become_root("starting a lab")?;
    let place = current::place();
    if let Some(lab) = current::lab(&place)? {
        bail!(
            "a lab is already running, in {}: stop it with `cargo xtask lab down`",
            lab.dir().display()
        );
    }
    let defaults = LabOptions::default();
    let lab = Lab::up(&LabOptions {
        node: node.unwrap_or(defaults.node),
        nodes,
        daemons: !bare,
        redis,
        bin_dir,
        stay: true,
        env: std::env::var("RUST_LOG")
            .map(|filter| ("RUST_LOG".to_owned(), filter))
            .into_iter()
            .collect(),
        ..LabOptions::default()
    })?;
    // Recorded before the wait, so that `lab down` finds it if the wait is interrupted.
    let ready = current::set(&place, &lab).and_then(|()| match nodes {
        1 => Ok(()),
        _ if bare => Ok(()),
        _ => lab.wait_nodes_ready(READY_LIMIT),
    });
    let ready = ready.and_then(|()| match fabric {
        Some(fabric) => lab.set_fabric(fabric),
        None => Ok(()),
    });
    if let Err(error) = ready {
        lab.down()?;
        current::clear(&place)?;
        return Err(error);
    }
    eprintln!("the lab is running: {}", lab.dir().display());
    eprintln!("  eval \"$(cargo xtask lab env)\"");
    eprintln!(
        "  cargo xtask lab exec {} -- virsh -c qemu:///system list",
        lab.nodes().first().unwrap_or(&"")
    );
    eprintln!("  cargo xtask lab down");
    Ok(())
}

/// Stops the lab, even if its guard was killed, and removes the remains of dead labs.
fn down() -> Result<()> {
    let place = current::place();
    let named = current::dir(&place)?;
    match current::lab(&place)? {
        Some(lab) => lab.down()?,
        None => eprintln!("no lab is running"),
    }
    current::clear(&place)?;
    let base = named.as_deref().and_then(std::path::Path::parent);
    let mut removed = waifud_lab::remove_stale(None)?;
    if let Some(base) = base.filter(|base| base.is_dir()) {
        removed.extend(waifud_lab::remove_stale(Some(base))?);
    }
    for dir in removed {
        eprintln!("removed the remains of a dead lab: {}", dir.display());
    }
    Ok(())
}

fn status(lab: &Lab) -> Result<()> {
    println!(
        "{:<8} {:<18} {:<12} {:>8} {:>8}",
        "MACHINE", "SERVICE", "STATE", "PID", "RESTARTS"
    );
    let disturbances = lab.disturbances()?;
    for node in lab.machines() {
        if disturbances.off.contains(node) {
            println!("{node:<8} {:<18} off", "-");
            continue;
        }
        for service in lab.status(node)? {
            let state = format!("{:?}", service.state).to_lowercase();
            let pid = lab
                .pid_of(&format!("{node}/{}", service.name))?
                .map_or("-".to_owned(), |pid| pid.to_string());
            println!(
                "{node:<8} {:<18} {state:<12} {pid:>8} {:>8}",
                service.name, service.restarts
            );
        }
    }
    for link in disturbances.cut {
        println!("cut: {link}");
    }
    for (link, shape) in disturbances.slow {
        println!("slow: {link}: {shape}");
    }
    lab.wait_ready(Duration::ZERO)
}

/// The running lab, as root.
fn controlled() -> Result<Lab> {
    root::become_root("controlling the lab")?;
    the_lab()
}

fn the_lab() -> Result<Lab> {
    current::lab(&current::place())?
        .context("no lab is running: start one with `cargo xtask lab up`")
}

/// `value` as one word of a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

fn parse_signal(text: &str) -> Result<waifud_lab::Signal> {
    let number = text
        .parse::<i32>()
        .ok()
        .and_then(|number| waifud_lab::Signal::try_from(number).ok());
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    number
        .or_else(|| name.parse().ok())
        .with_context(|| format!("invalid signal {text:?}: use for example TERM, KILL, STOP or 9"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_survive_a_shell() {
        assert_eq!(quoted("/a b'c"), r"'/a b'\''c'");
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "kill", "SIGKILL", "KILL"] {
            assert_eq!(parse_signal(text).unwrap(), waifud_lab::Signal::SIGKILL);
        }
        assert!(parse_signal("loud").is_err());
    }
}
