//! `waifud restore`: replaces the state with a backup, completely or not at all.
//!
//! First, everything is unpacked next to the state, verified and prepared. Credentials that were revoked since the backup
//! are removed from the new database. Then a marker is written, the old files are moved aside, the new ones are moved in,
//! and the marker is removed. waifud does not start while the marker exists. Running the same restore again completes an
//! interrupted one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use waifud_control::env::{Entropy, SystemEntropy};
use waifud_store::credentials::{self, Credentials, Voided};
use waifud_types::{Epoch, Incarnation, Name};

use super::{DATABASE, IMAGES, PKI, archive, owner};
use crate::config::Config;
use crate::serve::lock;

/// A file that exists while files are being moved.
const MARKER: &str = "restore-under-way";
/// The prefix of the directory for the old files; a number follows.
const ASIDE: &str = "before-restore-";
/// The directory of the new files until they are moved.
const STAGED: &str = ".restore";

/// The arguments of `waifud restore`.
#[derive(Args, Debug)]
pub struct RestoreArguments {
    /// A file created by `waifud backup`
    file: PathBuf,
    /// Replace an existing database; the previous state is kept in a directory next to it
    #[arg(long)]
    replace: bool,
    /// Keep the API tokens in the backup, instead of deleting them. Tokens that were revoked since the backup are deleted
    /// if the replaced database is readable; otherwise check waifuctl token list afterwards
    #[arg(long)]
    keep_tokens: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Restores a backup. waifud must be stopped.
pub fn restore(config: &Config, arguments: &RestoreArguments) -> anyhow::Result<()> {
    let file = File::open(&arguments.file)
        .with_context(|| format!("cannot read {}", arguments.file.display()))?;
    let state = &config.state_dir;
    fs::create_dir_all(state).with_context(|| format!("cannot create {}", state.display()))?;
    let (manifest, voided, aside) = owner::as_owner_of(state, || {
        let _lock = lock(state)?;
        let there = state.join(DATABASE).exists();
        let interrupted = state.join(MARKER).exists();
        if there && !interrupted && !arguments.replace {
            bail!(
                "{} already contains a database; pass --replace to replace it",
                state.display()
            );
        }
        let staged = state.join(STAGED);
        remove_all(&staged)?;
        fs::create_dir(&staged).with_context(|| format!("cannot create {}", staged.display()))?;
        let prepared = stage(state, &staged, &file, arguments).and_then(|prepared| {
            confirm(arguments, &prepared.0.created_at.to_string(), there)?;
            Ok(prepared)
        });
        if prepared.is_err() {
            // It contains keys, and may be as large as all images.
            let _next_restore_removes_it = remove_all(&staged);
        }
        let (manifest, voided) = prepared?;
        let aside = swap(state, &staged)?;
        Ok((manifest, voided, aside))
    })?;
    eprintln!(
        "restored revision {} of {}",
        manifest.revision, manifest.created_at
    );
    for line in words(&voided) {
        eprintln!("{line}");
    }
    if let Some(aside) = aside {
        eprintln!("the previous state is in {}", aside.display());
    }
    eprintln!(
        "next steps: start waifud; list unmanaged instances with `waifuctl node show NODE`; adopt those that you want to \
         keep (`waifuctl adopt NAME --node NODE`); then run `waifuctl node confirm NODE`; a node that joined after the \
         backup is refused: join it again with `waifuctl node token create`, and there `waifud-agentd join \
         --token-file FILE`"
    );
    Ok(())
}

/// Unpacks and verifies the backup, and prepares its database.
fn stage(
    state: &Path,
    staged: &Path,
    file: &File,
    arguments: &RestoreArguments,
) -> anyhow::Result<(archive::Manifest, Voided)> {
    let manifest = archive::read(file, staged)
        .with_context(|| format!("cannot restore {}", arguments.file.display()))?;
    let mut fresh = [0; 4];
    SystemEntropy.fill(&mut fresh);
    let replaced = replaced_database(state)?;
    waifud_store::backup::prepare_restored(
        &staged.join(DATABASE),
        Incarnation(u32::from_le_bytes(fresh)),
        jiff::Timestamp::now(),
        replaced
            .as_ref()
            .map_or(Epoch(0), |replaced| replaced.floor),
    )?;
    let voided = credentials::delete_credentials(
        &staged.join(DATABASE),
        replaced.as_ref().map(|replaced| &replaced.credentials),
        arguments.keep_tokens,
    )?;
    Ok((manifest, voided))
}

/// Fails if a restore was interrupted while it moved files.
pub fn refuse_half_restored(state_dir: &Path) -> anyhow::Result<()> {
    ensure!(
        !state_dir.join(MARKER).exists(),
        "a restore in {} was interrupted; run the same `waifud restore` command again",
        state_dir.display()
    );
    Ok(())
}

/// Removes what a restore unpacked that was ended before it moved any file, for example by Ctrl-C at its question. It
/// contains keys.
///
/// # Errors
/// It cannot be removed.
pub fn remove_unpacked(state_dir: &Path) -> anyhow::Result<()> {
    remove_all(&state_dir.join(STAGED))
}

/// What a restore needs of the database that it replaces.
struct Replaced {
    credentials: Credentials,
    /// The lowest epoch that it may assign.
    floor: Epoch,
}

/// Reads the database that the restore replaces, if there is one and it is readable. After an interrupted restore, this is
/// the database that was moved aside.
fn replaced_database(state: &Path) -> anyhow::Result<Option<Replaced>> {
    let aside = read_marker(state)?.map(|aside| aside.join(DATABASE));
    let path = match aside.filter(|path| path.exists()) {
        Some(path) => path,
        None => state.join(DATABASE),
    };
    if !path.exists() {
        return Ok(None);
    }
    let read = credentials::read(&path).and_then(|credentials| {
        Ok(Replaced {
            credentials,
            floor: waifud_store::backup::floor_of(&path)?,
        })
    });
    match read {
        Ok(replaced) => Ok(Some(replaced)),
        Err(error) => {
            eprintln!(
                "warning: cannot read {} ({error}); credentials that were revoked since the backup are not known",
                path.display()
            );
            Ok(None)
        }
    }
}

/// One line for each kind of credential, with the result of the restore.
fn words(voided: &Voided) -> Vec<String> {
    fn names(list: &[Name]) -> Vec<&str> {
        list.iter().map(Name::as_str).collect()
    }
    let kinds = [
        (
            "deleted API tokens: {} (create new ones with: waifuctl token create NAME --role ROLE)",
            names(&voided.tokens.void),
        ),
        (
            "valid API tokens: {} (revoke one with: waifuctl token revoke NAME)",
            names(&voided.tokens.valid),
        ),
        (
            "deleted join tokens: {} (create new ones with: waifuctl node token create)",
            voided.join_tokens.iter().map(String::as_str).collect(),
        ),
        (
            "nodes without access, because they were removed since the backup: {}",
            names(&voided.nodes.void),
        ),
        (
            "nodes with access: {} (remove one with: waifuctl node remove NODE)",
            names(&voided.nodes.valid),
        ),
    ];
    kinds
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(line, names)| line.replace("{}", &names.join(", ")))
        .collect()
}

fn confirm(arguments: &RestoreArguments, created_at: &str, there: bool) -> anyhow::Result<()> {
    let what = if there {
        "The current state will be moved to another directory"
    } else {
        "The state directory contains no database"
    };
    let question = format!("{what}. Restore the backup of {created_at}?");
    crate::confirm::ask(&question, arguments.yes)
}

/// Moves the old files aside and the staged ones in. Every step can be repeated.
fn swap(state: &Path, staged: &Path) -> anyhow::Result<Option<PathBuf>> {
    let aside = match read_marker(state)? {
        Some(aside) => aside,
        None => write_marker(state)?,
    };
    fs::create_dir_all(&aside)?;
    // The files that SQLite keeps next to the database belong to it: an old log would damage a new database.
    for name in [DATABASE, "waifud.db-wal", "waifud.db-shm", PKI] {
        let (from, to) = (state.join(name), aside.join(name));
        if from.exists() && !to.exists() {
            fs::rename(&from, &to).with_context(|| format!("cannot move {}", from.display()))?;
        } else if from.exists() {
            // Moved in by the interrupted restore; this restore contains the same file.
            remove_all(&from)?;
        }
    }
    sync(state)?;
    for name in [PKI, DATABASE] {
        let from = staged.join(name);
        if from.exists() {
            fs::rename(&from, state.join(name))
                .with_context(|| format!("cannot move {}", from.display()))?;
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

/// The directory for the old files, as written in the marker of an interrupted restore. `None` if there is no marker, or
/// if the marker is incomplete. In that case, nothing was moved, because files are moved only after the marker is on the
/// disk.
fn read_marker(state: &Path) -> anyhow::Result<Option<PathBuf>> {
    let text = match fs::read_to_string(state.join(MARKER)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // waifud does not write markers that are not UTF-8.
        Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(None),
        Err(error) => {
            return Err(error).context("cannot read the marker of the interrupted restore");
        }
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

/// Writes the marker, completely or not at all, and returns the directory for the old files.
fn write_marker(state: &Path) -> anyhow::Result<PathBuf> {
    let now = jiff::Timestamp::now().as_second();
    let mut aside = state.join(format!("{ASIDE}{now}"));
    let mut more = 0;
    // Keep the files of an earlier restore in a separate directory.
    while aside.exists() {
        more += 1;
        aside = state.join(format!("{ASIDE}{now}-{more}"));
    }
    let text = aside
        .to_str()
        .context("the path of the state directory is not valid UTF-8")?;
    let marker = state.join(MARKER);
    waifud_kit::durable::replace(&marker, text.as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(aside)
}

/// Images are named by their digests. An image from the backup replaces an existing file, which may have been damaged
/// since. An image that was already damaged when the backup was created is skipped.
fn move_images(from: &Path, to: &Path) -> anyhow::Result<()> {
    move_images_by(from, to, |from, to| fs::rename(from, to))
}

/// `rename` fails with [`ErrorKind::CrossesDevices`] if the directory of images is on another filesystem than the state.
fn move_images_by(from: &Path, to: &Path, rename: Rename) -> anyhow::Result<()> {
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
            let place = to.join(&name);
            move_file(&entry.path(), &place, rename).with_context(|| {
                format!("cannot move image {} to {}", name.display(), to.display())
            })?;
        } else {
            eprintln!(
                "warning: skipping image {}, which is damaged in the backup",
                name.display()
            );
        }
    }
    sync(to)
}

type Rename = fn(&Path, &Path) -> io::Result<()>;

/// Moves a file, also to another filesystem: there, `to` exists only when it is complete and on the disk. An interrupted move
/// can be repeated.
fn move_file(from: &Path, to: &Path, rename: Rename) -> io::Result<()> {
    match rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {}
        other => return other,
    }
    // waifud removes files with this name at its next start, in case the restore is not repeated.
    let mut name = std::ffi::OsString::from(".incoming-");
    name.push(to.file_name().unwrap_or_default());
    let partial = to.with_file_name(name);
    copy(from, &partial)
        .and_then(|()| fs::rename(&partial, to))
        .inspect_err(|_| {
            // It takes space on a full disk.
            let _may_be_absent = fs::remove_file(&partial);
        })?;
    fs::remove_file(from)
}

/// Copies to a new file, which is on the disk when this returns.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut source = File::open(from)?;
    let mut copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    copy.set_permissions(source.metadata()?.permissions())?;
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> anyhow::Result<()> {
    waifud_kit::durable::sync_dir(dir).with_context(|| format!("cannot sync {}", dir.display()))
}

#[cfg(test)]
mod tests;
