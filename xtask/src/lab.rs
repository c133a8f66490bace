//! `cargo xtask lab`: the lab for interactive use and scripts.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use waifud_lab::{Lab, LabOptions, current};

use crate::root;

#[derive(Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the lab; it runs until `lab down`
    Up {
        /// Name of the node
        #[arg(long, default_value = "alder")]
        node: String,
        /// Start libvirt only, without our daemons
        #[arg(long)]
        bare: bool,
        /// Directory of waifud, waifud-agentd, waifud-metadatad and waifuctl [default: the directory of xtask]
        #[arg(long)]
        bin_dir: Option<PathBuf>,
    },
    /// Print shell commands that set the lab's environment variables: eval "$(cargo xtask lab env)"
    Env,
    /// Run a command as root in a node, or in "outside", the simulated home network
    Exec {
        /// A node in `WAIFUD_LAB_NODES`, or "outside"
        node: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Show the services of all nodes
    Status,
    /// Restart a service
    Restart(ServiceName),
    /// Stop a service until `lab start`
    Stop(ServiceName),
    /// Start a stopped service
    Start(ServiceName),
    /// Send a signal to a service; the lab restarts the service if it ends
    Kill {
        #[command(flatten)]
        of: ServiceName,
        /// Number or name of the signal, for example TERM
        #[arg(default_value = "KILL")]
        signal: String,
    },
    /// Stop the lab and remove everything that belongs to it
    Down,
}

#[derive(clap::Args)]
struct ServiceName {
    /// Name of the service in `lab status`
    service: String,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Up {
            node,
            bare,
            bin_dir,
        } => up(node, bare, bin_dir),
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
        Command::Status => {
            root::become_root("controlling the lab")?;
            status(&the_lab()?)
        }
        Command::Restart(ServiceName { service }) => {
            root::become_root("controlling the lab")?;
            the_lab()?.restart(&service)?;
            report(&service, "restarted and ready");
            Ok(())
        }
        Command::Stop(ServiceName { service }) => {
            root::become_root("controlling the lab")?;
            the_lab()?.stop(&service)?;
            report(&service, "stopped");
            Ok(())
        }
        Command::Start(ServiceName { service }) => {
            root::become_root("controlling the lab")?;
            the_lab()?.start(&service)?;
            report(&service, "started and ready");
            Ok(())
        }
        Command::Kill {
            of: ServiceName { service },
            signal,
        } => {
            root::become_root("controlling the lab")?;
            the_lab()?.kill(&service, parse_signal(&signal)?)?;
            report(
                &service,
                "the signal was sent; if the service ends, the lab restarts it",
            );
            Ok(())
        }
        Command::Down => {
            root::become_root("stopping the lab")?;
            down()
        }
    }
}

fn report(service: &str, result: &str) {
    eprintln!("{service}: {result}");
}

fn up(node: String, bare: bool, bin_dir: Option<PathBuf>) -> Result<()> {
    root::become_root("starting a lab")?;
    let place = current::place();
    if let Some(lab) = current::lab(&place)? {
        bail!(
            "a lab is already running, in {}: stop it with `cargo xtask lab down`",
            lab.dir().display()
        );
    }
    let lab = Lab::up(&LabOptions {
        node,
        daemons: !bare,
        bin_dir,
        stay: true,
        env: std::env::var("RUST_LOG")
            .map(|filter| ("RUST_LOG".to_owned(), filter))
            .into_iter()
            .collect(),
        ..LabOptions::default()
    })?;
    if let Err(error) = current::set(&place, &lab) {
        lab.down()?;
        return Err(error);
    }
    eprintln!("the lab is running: {}", lab.dir().display());
    eprintln!("  eval \"$(cargo xtask lab env)\"");
    eprintln!(
        "  cargo xtask lab exec {} -- virsh -c qemu:///system list",
        lab.nodes().join(" ")
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
        "NODE", "SERVICE", "STATE", "PID", "RESTARTS"
    );
    for node in lab.nodes() {
        for service in lab.status(node)? {
            let state = format!("{:?}", service.state).to_lowercase();
            let pid = lab
                .pid_of(&service.name)?
                .map_or("-".to_owned(), |pid| pid.to_string());
            println!(
                "{node:<8} {:<18} {state:<12} {pid:>8} {:>8}",
                service.name, service.restarts
            );
        }
    }
    lab.wait_ready(Duration::ZERO)
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
