//! `waifud restore`: a backup takes the place of what is there, as a whole or not at all.
//!
//! Everything is unpacked, verified and made ready beside the state first. Then a marker is written, the old files are
//! moved aside, the new ones moved in, and the marker removed. A waifud that finds the marker does not start, and the
//! same restore again goes on where it was cut short.

use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use waifud_control::env::{Entropy, SystemEntropy};
use waifud_types::Incarnation;

use super::{DATABASE, IMAGES, PKI, archive, owner};
use crate::config::Config;
use crate::serve::lock;

/// Present while files are being moved.
const MARKER: &str = "restore-under-way";
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
    let (revision, created_at, aside) = owner::as_owner_of(state, || {
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
        confirm(arguments, &manifest.created_at.to_string(), there)?;
        let aside = swap(state, &staged)?;
        Ok((manifest.revision, manifest.created_at, aside))
    })?;
    eprintln!("restored: revision {revision} of {created_at}");
    if let Some(aside) = aside {
        eprintln!("what was there before is in {}", aside.display());
    }
    eprintln!(
        "next: start waifud, look at `waifuctl node show NODE` for what is unclaimed, claim what you want \
         (`waifuctl claim NAME --node NODE`), then `waifuctl node confirm NODE`"
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
    eprint!("restore the backup of {created_at}? {what}. Type yes: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(answer.trim() == "yes", "nothing was changed");
    Ok(())
}

/// Moves the old files aside and the staged ones in. Every step may be repeated.
fn swap(state: &Path, staged: &Path) -> anyhow::Result<Option<PathBuf>> {
    let marker = state.join(MARKER);
    let aside = match fs::read_to_string(&marker) {
        Ok(text) => PathBuf::from(text),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let now = jiff::Timestamp::now().as_second();
            let aside = state.join(format!("before-restore-{now}"));
            let text = aside
                .to_str()
                .context("the state directory's name is no UTF-8")?;
            let mut file = File::create(&marker)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            sync(state)?;
            aside
        }
        Err(error) => return Err(error).context("the marker can't be read"),
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
    fs::remove_file(&marker)?;
    sync(state)?;
    let kept = fs::read_dir(&aside)?.next().is_some();
    if kept {
        Ok(Some(aside))
    } else {
        fs::remove_dir(&aside)?;
        Ok(None)
    }
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
mod tests {
    use super::*;

    #[test]
    fn images_of_a_backup_replace_damaged_files_and_are_no_damaged_ones_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let name = |text: &str| {
            let path = dir.path().join("named");
            fs::write(&path, text).unwrap();
            archive::digest(&path).unwrap().1
        };
        let (one, two) = (name("one"), name("two"));
        fs::write(from.join(&one), "one").unwrap();
        fs::write(to.join(&one), "on3").unwrap();
        fs::write(from.join(&two), "tw0").unwrap();
        fs::write(to.join(&two), "two").unwrap();
        move_images(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join(&one)).unwrap(), "one");
        assert_eq!(fs::read_to_string(to.join(&two)).unwrap(), "two");
    }
}
