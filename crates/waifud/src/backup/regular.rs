//! `waifud backup --to` and `--scheduled`: a new file in a directory, here or on another machine over SSH, which is read back; then
//! older ones are removed. With `--every`, again and again.
//!
//! Only files with the name of such a backup are ever removed, and only after the new one was read back. On the other machine,
//! a file gets its name after all of it has arrived, so an interrupted transfer leaves no incomplete backup.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use waifud_api::BackupState;
use waifud_kit::durable;

use super::{archive, owner, to_file};
use crate::backup_settings::{EVERY_MIN, Target};
use crate::config::Config;

/// After a failure, the next attempt is made this soon, if the next backup is not due earlier.
const RETRY: Duration = Duration::from_mins(1);
/// An unfinished file of a process that was killed is removed when it is this old.
const LEFT_OVER: Duration = Duration::from_hours(24);
/// The beginning and the end of the names of backups, around the time.
const PREFIX: &str = "waifud-";
const SUFFIX: &str = ".tar";
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// The backups to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Where they are written to.
    pub target: Target,
    /// The time between two; one only if it is `None`.
    pub every: Option<Duration>,
    /// How many are kept; all if it is `None`.
    pub keep: Option<u32>,
    /// Whether they include the image files.
    pub with_images: bool,
}

/// The pause of `--every`.
pub fn every(text: &str) -> Result<Duration, String> {
    let invalid = || format!("invalid time {text:?}: use for example 15m or 6h, at least 1m");
    let span: jiff::SignedDuration = text.parse().map_err(|_| invalid())?;
    Duration::try_from(span)
        .ok()
        .filter(|every| *every >= EVERY_MIN)
        .ok_or_else(invalid)
}

/// Makes backups until SIGTERM or SIGINT. A backup that has begun is completed.
pub fn repeat(config: &Config, plan: &Plan, pause: Duration) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // No other thread runs while the user is changed.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let next = match once(config, plan, Timestamp::now()) {
                Ok(()) => pause,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    pause.min(RETRY)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    })
}

/// Makes one backup, reads it back, and removes older ones. The outcome is recorded for `waifuctl doctor`.
pub fn once(config: &Config, plan: &Plan, now: Timestamp) -> Result<()> {
    let outcome = make(config, plan, now);
    let error = outcome.as_ref().err().map(|error| format!("{error:#}"));
    if let Err(error) = record(config, plan, now, error) {
        eprintln!("warning: waifuctl doctor does not see this backup: {error:#}");
    }
    outcome
}

fn make(config: &Config, plan: &Plan, now: Timestamp) -> Result<()> {
    let target = &plan.target;
    let name = format!("{PREFIX}{}{SUFFIX}", now.strftime(TIME));
    let made = match target {
        Target::Directory(dir) => {
            remove_left_overs(dir).and_then(|()| in_directory(config, plan, &dir.join(&name)))
        }
        Target::Ssh { host, dir } => over_ssh(config, plan, host, dir, &name),
    };
    let summary = made.with_context(|| format!("no backup was made in {target}"))?;
    eprintln!("{target}: {name}, {summary}, read back");
    let Some(keep) = plan.keep else {
        return Ok(());
    };
    let removed = remove_older(target, keep, &name)
        .with_context(|| format!("cannot remove older backups in {target}"))?;
    if removed > 0 {
        eprintln!("{target}: removed {removed} older backups");
    }
    Ok(())
}

/// Writes the outcome to the state directory, where waifud reads it.
fn record(config: &Config, plan: &Plan, now: Timestamp, error: Option<String>) -> Result<()> {
    owner::as_owner_of(&config.state_dir, || {
        let file = config.state_dir.join(BackupState::FILE);
        let before = fs::read(&file).ok();
        let before = before.and_then(|text| serde_json::from_slice::<BackupState>(&text).ok());
        let state = BackupState {
            target: plan.target.to_string(),
            last_at: match &error {
                None => Some(now),
                Some(_) => before.and_then(|before| before.last_at),
            },
            every_s: plan.every.map(|every| every.as_secs()),
            error,
        };
        let text = serde_json::to_vec_pretty(&state)?;
        durable::replace(&file, &text, 0o600)
            .with_context(|| format!("cannot write {}", file.display()))
    })
}

fn in_directory(config: &Config, plan: &Plan, file: &Path) -> Result<String> {
    let summary = to_file(config, file, plan.with_images)?;
    let read = File::open(file).context("cannot open it");
    if let Err(error) = read.and_then(archive::verify) {
        // It is not a backup, and must not count as one.
        let _may_be_gone = fs::remove_file(file);
        return Err(error.context("what was written could not be read back, and was removed"));
    }
    Ok(summary)
}

/// Removes unfinished files of processes that were killed.
fn remove_left_overs(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(super::PARTIAL.0) && name.ends_with(super::PARTIAL.1) {
            let changed = entry.metadata()?.modified()?;
            let age = SystemTime::now()
                .duration_since(changed)
                .unwrap_or_default();
            if age > LEFT_OVER {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn over_ssh(config: &Config, plan: &Plan, host: &str, dir: &str, name: &str) -> Result<String> {
    let local = tempfile::Builder::new()
        .prefix(".waifud-backup-")
        .tempdir()?;
    let file = local.path().join(name);
    let summary = to_file(config, &file, plan.with_images)?;
    // The other machine's shell. Names have no characters that are special in it.
    let partial = format!("{dir}/.{name}.partial");
    let write = format!(
        "umask 077 && cat > {partial} && sync {partial} && mv -n {partial} {dir}/{name} && sync {dir}"
    );
    let mut sending = ssh(host, &write).stdin(File::open(&file)?).spawn();
    let sent = ended(host, sending.as_mut());
    sent.context("cannot write it there")?;
    let mut reading = ssh(host, &format!("cat {dir}/{name}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let back = reading.as_mut().ok().and_then(|child| child.stdout.take());
    let verified = back.context("cannot run ssh").and_then(|mut back| {
        archive::verify(&mut back)?;
        // To its end, so that the other side can write it.
        std::io::copy(&mut back, &mut std::io::sink())?;
        Ok(())
    });
    let read = ended(host, reading.as_mut());
    if let Err(error) = verified.and(read) {
        let _best_effort = run(host, &format!("rm -f {dir}/{name}"));
        return Err(error.context("what was written could not be read back, and was removed"));
    }
    Ok(summary)
}

/// The command that runs a script on the other machine, without asking anything.
fn ssh(host: &str, script: &str) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]);
    command.args([
        "-o",
        "ServerAliveInterval=15",
        "-o",
        "ServerAliveCountMax=4",
    ]);
    command.args(["--", host, script]);
    command
}

/// Waits for the end of ssh, whose errors go to standard error.
fn ended(host: &str, child: Result<&mut Child, &mut std::io::Error>) -> Result<()> {
    let status = match child {
        Ok(child) => child.wait().context("cannot wait for ssh")?,
        Err(error) => bail!("cannot run ssh: {error}"),
    };
    ensure!(status.success(), "ssh {host} ended with {status}");
    Ok(())
}

/// Runs a script on the other machine and returns its output.
fn run(host: &str, script: &str) -> Result<String> {
    let mut child = ssh(host, script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut text = String::new();
    if let Some(out) = child.as_mut().ok().and_then(|child| child.stdout.take()) {
        out.take(16 << 20).read_to_string(&mut text)?;
    }
    ended(host, child.as_mut())?;
    Ok(text)
}

/// Removes all but the newest backups. Returns how many.
fn remove_older(target: &Target, keep: u32, newest: &str) -> Result<usize> {
    let names: Vec<String> = match target {
        Target::Directory(dir) => {
            let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
            let names: Result<Vec<_>> = names.collect();
            let names = names?.into_iter();
            names.filter_map(|name| name.into_string().ok()).collect()
        }
        Target::Ssh { host, dir } => {
            let list = run(host, &format!("ls -A {dir}"))?;
            list.lines().map(str::to_owned).collect()
        }
    };
    let old = to_remove(names, keep, newest);
    match target {
        Target::Directory(dir) => {
            for name in &old {
                fs::remove_file(dir.join(name))?;
            }
        }
        Target::Ssh { host, dir } => {
            // A command has a limited length.
            for some in old.chunks(100) {
                let files: Vec<String> = some.iter().map(|name| format!("{dir}/{name}")).collect();
                run(host, &format!("rm -f {}", files.join(" ")))?;
            }
        }
    }
    Ok(old.len())
}

/// The backups to remove, oldest first: all but the newest `keep`. Never the one that was just made, also if the clock was set
/// back, and no other file.
fn to_remove(names: Vec<String>, keep: u32, newest: &str) -> Vec<String> {
    let is_backup = |name: &String| {
        let time = name.strip_prefix(PREFIX);
        let time = time.and_then(|name| name.strip_suffix(SUFFIX));
        time.is_some_and(|time| {
            jiff::civil::DateTime::strptime(TIME, time)
                .is_ok_and(|parsed| parsed.strftime(TIME).to_string() == time)
        })
    };
    let mut others: Vec<String> = names.into_iter().filter(is_backup).collect();
    others.retain(|name| name != newest);
    others.sort();
    let kept = usize::try_from(keep)
        .unwrap_or(usize::MAX)
        .saturating_sub(1);
    others.truncate(others.len().saturating_sub(kept));
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_has_a_unit_and_is_at_least_a_minute() {
        assert_eq!(every("15m"), Ok(Duration::from_mins(15)));
        for bad in ["15", "1s", "-1h", "soon"] {
            assert!(every(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_older_backups_are_removed_and_never_the_new_one() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let new = "waifud-20261130T101500Z.tar";
        let all = [
            "waifud-20261130T100000Z.tar",
            "waifud-20261130T094500Z.tar",
            new,
            // Made before the clock was set back.
            "waifud-20270101T000000Z.tar",
            "waifud-2026-11-30.tar",
            "waifud-20261399T000000Z.tar",
            "waifud-20261130T094500Z.tar.gpg",
            ".waifud-20261130T093000Z.tar.partial",
            "photos.tar",
        ];
        let removed = |keep| to_remove(names(&all), keep, new);
        assert_eq!(removed(4), names(&[]) as Vec<String>);
        assert_eq!(removed(3), ["waifud-20261130T094500Z.tar"]);
        assert_eq!(removed(1).len(), 3);
        assert!(!removed(1).contains(&new.to_owned()));
    }
}
