//! `waifud restore`: a backup takes the place of what is there, as a whole or not at all.
//!
//! Everything is unpacked, verified and made ready beside the state first; what would let in again those who were shut out
//! since the backup is made worthless in it. Then a marker is written, the old files are
//! moved aside, the new ones moved in, and the marker removed. A waifud that finds the marker does not start, and the
//! same restore again goes on where it was cut short.

use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use waifud_control::env::{Entropy, SystemEntropy};
use waifud_store::credentials::{self, Credentials, Voided};
use waifud_types::{Incarnation, Name};

use super::{DATABASE, IMAGES, PKI, archive, owner};
use crate::config::Config;
use crate::serve::lock;

/// Present while files are being moved.
const MARKER: &str = "restore-under-way";
/// What the directory of the old files is called, before a number.
const ASIDE: &str = "before-restore-";
/// Where the new files are until they are moved.
const STAGED: &str = ".restore";

/// `waifud restore`.
#[derive(Args, Debug)]
pub struct RestoreArguments {
    /// A file that `waifud backup` wrote
    file: PathBuf,
    /// Put what is there aside instead of refusing
    #[arg(long)]
    replace: bool,
    /// Let the backup's API tokens work again, instead of making them worthless. Those that were revoked since are known
    /// only where the database is that knows of it; elsewhere look at waifuctl token list afterwards
    #[arg(long)]
    keep_tokens: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Restores a backup. waifud must be stopped.
pub fn restore(config: &Config, arguments: &RestoreArguments) -> anyhow::Result<()> {
    let file = File::open(&arguments.file)
        .with_context(|| format!("{} can't be read", arguments.file.display()))?;
    let state = &config.state_dir;
    fs::create_dir_all(state).with_context(|| format!("making {} failed", state.display()))?;
    let (manifest, voided, aside) = owner::as_owner_of(state, || {
        let _lock = lock(state)?;
        let there = state.join(DATABASE).exists();
        let interrupted = state.join(MARKER).exists();
        if there && !interrupted && !arguments.replace {
            bail!(
                "{} has a database; --replace puts it aside",
                state.display()
            );
        }
        let staged = state.join(STAGED);
        remove_all(&staged)?;
        fs::create_dir(&staged).with_context(|| format!("{} can't be made", staged.display()))?;
        let manifest = archive::read(&file, &staged)
            .with_context(|| format!("{} can't be used", arguments.file.display()))?;
        let mut fresh = [0; 4];
        SystemEntropy.fill(&mut fresh);
        waifud_store::backup::begin_again(
            &staged.join(DATABASE),
            Incarnation(u32::from_le_bytes(fresh)),
        )?;
        let voided = credentials::void(
            &staged.join(DATABASE),
            credentials_of_today(state)?.as_ref(),
            arguments.keep_tokens,
        )?;
        confirm(arguments, &manifest.created_at.to_string(), there)?;
        let aside = swap(state, &staged)?;
        Ok((manifest, voided, aside))
    })?;
    eprintln!(
        "restored: revision {} of {}",
        manifest.revision, manifest.created_at
    );
    for line in words(&voided) {
        eprintln!("{line}");
    }
    if let Some(aside) = aside {
        eprintln!("what was there before is in {}", aside.display());
    }
    eprintln!(
        "next: start waifud, look at `waifuctl node show NODE` for what is unmanaged, adopt what you want \
         (`waifuctl adopt NAME --node NODE`), then `waifuctl node confirm NODE`"
    );
    Ok(())
}

/// Refuses to go on over files that a restore has half moved.
pub fn refuse_half_restored(state_dir: &Path) -> anyhow::Result<()> {
    ensure!(
        !state_dir.join(MARKER).exists(),
        "a restore in {} was cut short; run the same `waifud restore` again",
        state_dir.display()
    );
    Ok(())
}

/// What lets somebody in by the database that is there, if any; not by one that a restore which was cut short moved in.
fn credentials_of_today(state: &Path) -> anyhow::Result<Option<Credentials>> {
    let aside = read_marker(state)?.map(|aside| aside.join(DATABASE));
    let path = match aside.filter(|path| path.exists()) {
        Some(path) => path,
        None => state.join(DATABASE),
    };
    if !path.exists() {
        return Ok(None);
    }
    match credentials::read(&path) {
        Ok(credentials) => Ok(Some(credentials)),
        Err(error) => {
            eprintln!(
                "warning: {} can't be read ({error}); which tokens and nodes it no longer lets in is not known",
                path.display()
            );
            Ok(None)
        }
    }
}

/// What became of the credentials in the backup, a line each.
fn words(voided: &Voided) -> Vec<String> {
    let list = |names: &[Name]| {
        let names: Vec<_> = names.iter().map(Name::as_str).collect();
        names.join(", ")
    };
    let mut lines = Vec::new();
    if !voided.tokens.is_empty() {
        lines.push(format!(
            "API tokens that work no more: {} (waifuctl token create NAME --role ROLE makes new ones)",
            list(&voided.tokens)
        ));
    }
    if !voided.tokens_kept.is_empty() {
        lines.push(format!(
            "API tokens that work again: {} (waifuctl token revoke NAME ends one)",
            list(&voided.tokens_kept)
        ));
    }
    if !voided.join_tokens.is_empty() {
        lines.push(format!(
            "join tokens that work no more: {} (waifuctl node token create makes new ones)",
            voided.join_tokens.join(", ")
        ));
    }
    if !voided.nodes.is_empty() {
        lines.push(format!(
            "nodes that were removed since the backup, and are not let in: {}",
            list(&voided.nodes)
        ));
    }
    if !voided.nodes_kept.is_empty() {
        lines.push(format!(
            "nodes that are let in: {} (waifuctl node remove NODE for one that should not be)",
            list(&voided.nodes_kept)
        ));
    }
    lines
}

fn confirm(arguments: &RestoreArguments, created_at: &str, there: bool) -> anyhow::Result<()> {
    if arguments.yes {
        return Ok(());
    }
    ensure!(
        std::io::stdin().is_terminal(),
        "this needs a yes: run it on a terminal, or with --yes"
    );
    let what = if there {
        "what waifud knows now is put aside"
    } else {
        "nothing is there yet"
    };
    eprint!("restore the backup of {created_at}? {what}. [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let answer = answer.trim();
    let is_yes = ["y", "yes"]
        .iter()
        .any(|yes| answer.eq_ignore_ascii_case(yes));
    ensure!(is_yes, "nothing was changed");
    Ok(())
}

/// Moves the old files aside and the staged ones in. Every step may be repeated.
fn swap(state: &Path, staged: &Path) -> anyhow::Result<Option<PathBuf>> {
    let aside = match read_marker(state)? {
        Some(aside) => aside,
        None => write_marker(state)?,
    };
    fs::create_dir_all(&aside)?;
    // SQLite's files beside the database belong to it: new ones with an old log would be damaged.
    for name in [DATABASE, "waifud.db-wal", "waifud.db-shm", PKI] {
        let (from, to) = (state.join(name), aside.join(name));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to).with_context(|| format!("{} can't be moved", from.display()))?;
        } else if from.exists() {
            // Moved in by the restore that was cut short; this one brings the same.
            remove_all(&from)?;
        }
    }
    sync(state)?;
    for name in [PKI, DATABASE] {
        let from = staged.join(name);
        if from.exists() {
            fs::rename(&from, state.join(name))
                .with_context(|| format!("{} can't be moved", from.display()))?;
        }
    }
    move_images(&staged.join(IMAGES), &state.join(IMAGES))?;
    remove_all(staged)?;
    sync(state)?;
    fs::remove_file(state.join(MARKER))?;
    sync(state)?;
    let kept = fs::read_dir(&aside)?.next().is_some();
    if kept {
        Ok(Some(aside))
    } else {
        fs::remove_dir(&aside)?;
        Ok(None)
    }
}

/// Where the old files go, by the marker of a restore that was cut short. None when there is no marker, or none that was
/// written in full: nothing was moved then, as that begins only after the marker is on the disk.
fn read_marker(state: &Path) -> anyhow::Result<Option<PathBuf>> {
    let text = match fs::read_to_string(state.join(MARKER)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // Bytes that are no text are none of ours.
        Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(error).context("the marker can't be read"),
    };
    let aside = PathBuf::from(text);
    let number = aside
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix(ASIDE));
    let ours = aside.parent() == Some(state)
        && number.is_some_and(|number| {
            !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || c == '-')
        });
    Ok(ours.then_some(aside))
}

/// Writes the marker, in full or not at all, and returns where the old files go.
fn write_marker(state: &Path) -> anyhow::Result<PathBuf> {
    let now = jiff::Timestamp::now().as_second();
    let mut aside = state.join(format!("{ASIDE}{now}"));
    let mut more = 0;
    // What an earlier restore put aside is not mixed with this, nor lost.
    while aside.exists() {
        more += 1;
        aside = state.join(format!("{ASIDE}{now}-{more}"));
    }
    let text = aside
        .to_str()
        .context("the state directory's name is no UTF-8")?;
    let beside = state.join(format!("{MARKER}.new"));
    let mut file =
        File::create(&beside).with_context(|| format!("{} can't be written", beside.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, state.join(MARKER))?;
    sync(state)?;
    Ok(aside)
}

/// Images are named by their digests. One from the backup takes the place of a file that is there, which may have been
/// damaged since; a file that was damaged when the backup was made is left out.
fn move_images(from: &Path, to: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let (_, digest) = archive::digest(&entry.path())?;
        if name.to_str() == Some(digest.as_str()) {
            fs::rename(entry.path(), to.join(name))?;
        } else {
            eprintln!(
                "image {} in the backup is damaged: it is left out",
                name.display()
            );
        }
    }
    sync(to)
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> anyhow::Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("{} can't be synced", dir.display()))
}

#[cfg(test)]
mod tests;
