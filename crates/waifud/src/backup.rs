//! `waifud backup` and `waifud restore`: everything that waifud knows, in one file.
//!
//! ```text
//!  FILE (tar, 0600): manifest.json   what is in it, with sizes and digests
//!                    waifud.db       the database as of one instant
//!                    pki/…           the private CA, so that nodes need not join again
//!                    images/…        image files, with --with-images only: nodes have their own copies
//! ```
//!
//! A backup is made while waifud runs, by whoever may read its state. A restore needs waifud stopped, and puts what was
//! there aside. It begins another life of the database: what happened after the backup is not in it, so nodes keep
//! everything that they have, show what the database does not know as unmanaged, and destroy nothing before an
//! operator has confirmed.

mod archive;
mod owner;
mod restore;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use waifud_control::env::{Disk, SystemDisk};
use waifud_types::ByteSize;
use waifud_types::disk_space::FULL_BELOW;

use crate::config::Config;

pub use restore::{RestoreArguments, refuse_half_restored, restore};

/// The database's file in the state directory and in a backup.
pub const DATABASE: &str = "waifud.db";
/// Directories of the state that a backup holds as they are.
pub const PKI: &str = "pki";
/// The image store.
pub const IMAGES: &str = "images";

/// `waifud backup`.
#[derive(Args, Debug)]
pub struct BackupArguments {
    /// The file to write; it must not exist. It holds user-data and keys: keep it as you keep those
    file: PathBuf,
    /// Also the image files, which may be many gigabytes. Nodes run on without them; new nodes and new instances of
    /// templates that nobody can download again need them
    #[arg(long)]
    with_images: bool,
}

/// Writes a backup. waifud may be running.
pub fn backup(config: &Config, arguments: &BackupArguments) -> anyhow::Result<()> {
    let database = config.state_dir.join(DATABASE);
    ensure!(
        database.exists(),
        "there is no database in {}; is state_dir right?",
        config.state_dir.display()
    );
    // Opened as the caller, whose directory it is; everything else is done as the state's owner.
    let dir = directory_of(&arguments.file)?;
    let taken = || {
        format!(
            "{} exists; name another file, or remove it first",
            arguments.file.display()
        )
    };
    ensure!(arguments.file.symlink_metadata().is_err(), taken());
    // A new file under a name that nobody can know before (O_EXCL, 0600): the directory may be others', and a link that
    // they put there is not followed. It goes when this fails.
    let out = tempfile::Builder::new()
        .prefix(".waifud-backup-")
        .suffix(".partial")
        .tempfile_in(dir)
        .with_context(|| format!("{} can't be written to", dir.display()))?;
    let written = write(config, arguments, out.as_file()).and_then(|summary| {
        out.as_file().sync_all()?;
        Ok(summary)
    });
    let finished = written.map_err(|error| {
        let places = [out.path(), config.state_dir.as_path()];
        where_room_lacks(error, &places)
    });
    let summary = finished?;
    out.persist_noclobber(&arguments.file)
        .map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => anyhow::anyhow!(taken()),
            _ => anyhow::Error::new(error.error)
                .context(format!("{} can't be named so", arguments.file.display())),
        })?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("{} can't be synced", dir.display()))?;
    eprintln!("{}: {summary}", arguments.file.display());
    Ok(())
}

fn write(config: &Config, arguments: &BackupArguments, out: &File) -> anyhow::Result<String> {
    let state = &config.state_dir;
    owner::as_owner_of(state, || {
        let place = place_for_copy(state);
        let work = tempfile::Builder::new()
            .prefix(".backup-")
            .tempdir_in(&place)
            .with_context(|| format!("{} can't be written to", place.display()))?;
        let copy = work.path().join(DATABASE);
        let snapshot = waifud_store::backup::snapshot(&state.join(DATABASE), &copy)?;
        let mut files = vec![(DATABASE.to_owned(), copy)];
        files.extend(archive::files_below(state, PKI)?);
        if arguments.with_images {
            files.extend(archive::files_below(state, IMAGES)?);
        }
        let manifest = archive::write(out, &files, snapshot)?;
        Ok(format!(
            "revision {}, {} files, {}",
            manifest.revision,
            manifest.files.len(),
            waifud_types::ByteSize(manifest.files.iter().map(|f| f.size_bytes).sum())
        ))
    })
}

/// Where the database is copied to first: beside itself, or where temporary files go when there is no room for a second
/// one. A full disk is when people want a backup.
fn place_for_copy(state: &Path) -> PathBuf {
    let size = |name: &str| std::fs::metadata(state.join(name)).map_or(0, |facts| facts.len());
    let needed = size(DATABASE).saturating_add(size("waifud.db-wal"));
    let fits = SystemDisk
        .disk_space(state)
        .is_ok_and(|room| room.free.bytes() > needed.saturating_add(FULL_BELOW.bytes()));
    if fits {
        state.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// Adds which filesystem is full to the error, when one of these is.
fn where_room_lacks(error: anyhow::Error, paths: &[&Path]) -> anyhow::Error {
    for path in paths {
        let dir = path.parent().filter(|_| !path.is_dir()).unwrap_or(path);
        if let Ok(room) = SystemDisk.disk_space(dir)
            && room.free < ByteSize::mib(1)
        {
            return error.context(format!(
                "{} of {} is free in {}: make room there, or write the backup elsewhere",
                room.free,
                room.size,
                dir.display()
            ));
        }
    }
    error
}

fn directory_of(file: &Path) -> anyhow::Result<&Path> {
    file.file_name()
        .with_context(|| format!("{} names no file", file.display()))?;
    Ok(match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    })
}

#[cfg(test)]
mod tests;
