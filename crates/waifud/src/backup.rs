//! `waifud backup` and `waifud restore`: the state of waifud in one file.
//!
//! ```text
//!  FILE (tar, 0600): manifest.json   the list of files, with sizes and digests
//!                    waifud.db       a consistent snapshot of the database
//!                    pki/…           the private CA, so that nodes do not need to join again
//!                    images/…        image files, only with --with-images: nodes have their own copies
//! ```
//!
//! Any user who can read the state can make a backup, while waifud is running. A restore requires that waifud is stopped,
//! and keeps the previous state. The restored database gets a new incarnation, because it does not contain the changes
//! since the backup. Nodes therefore keep everything that they have, report objects that are not in the database as
//! unmanaged, and destroy nothing until an administrator has confirmed the node.

mod archive;
mod owner;
mod regular;
mod restore;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use waifud_control::env::{Disk, SystemDisk};
use waifud_types::ByteSize;
use waifud_types::disk_space::FULL_BELOW;

use crate::backup_settings::Target;
use crate::config::{Config, DEFAULT_PATH};

use self::regular::Plan;

pub use restore::{RestoreArguments, refuse_half_restored, remove_unpacked, restore};

/// The name of the database file in the state directory and in a backup.
pub const DATABASE: &str = "waifud.db";
/// The directory of the private CA.
pub const PKI: &str = "pki";
/// The directory of the image store.
pub const IMAGES: &str = "images";

/// The beginning and the end of the name of an unfinished backup.
const PARTIAL: (&str, &str) = (".waifud-backup-", ".partial");

/// The arguments of `waifud backup`.
#[derive(Args, Debug)]
pub struct BackupArguments {
    /// The file to create; it must not exist. It contains user-data and keys: protect it accordingly
    #[arg(required_unless_present_any = ["to", "scheduled"], conflicts_with = "to")]
    file: Option<PathBuf>,
    /// Create a file with the present time in its name in this directory, here or over SSH, and read it back
    #[arg(long, value_name = "DIR|[USER@]HOST:DIR")]
    to: Option<Target>,
    /// Make another backup after this time, for example 15m, until the command is stopped
    #[arg(long, value_name = "TIME", requires = "to", conflicts_with = "file", value_parser = regular::every)]
    every: Option<Duration>,
    /// Keep this many of the backups that --to has made there, and remove older ones [default: all]
    #[arg(long, value_name = "N", requires = "to", conflicts_with = "file", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Include the image files, which may be many gigabytes. Nodes have copies of the images that they use. New nodes
    /// and new instances need them for templates that cannot be downloaded again
    #[arg(long)]
    with_images: bool,
    /// Make the backups of section [backup] in the configuration file, as waifud-backup.service does
    #[arg(long, conflicts_with_all = ["file", "to", "every", "keep", "with_images"])]
    scheduled: bool,
}

/// Creates a backup, or one after the other. waifud may be running. `file` is the configuration file, if it was given.
pub fn backup(
    config: &Config,
    file: Option<&Path>,
    arguments: &BackupArguments,
) -> anyhow::Result<()> {
    if let Some(file) = &arguments.file {
        let summary = to_file(config, file, arguments.with_images)?;
        eprintln!("{}: {summary}", file.display());
        return Ok(());
    }
    let plan = match &arguments.to {
        Some(target) => Plan {
            target: target.clone(),
            every: arguments.every,
            keep: arguments.keep,
            with_images: arguments.with_images,
        },
        None => scheduled(config, file)?,
    };
    match plan.every {
        None => regular::once(config, &plan, jiff::Timestamp::now()),
        Some(pause) => regular::repeat(config, &plan, pause),
    }
}

/// The backups of the configuration file.
fn scheduled(config: &Config, file: Option<&Path>) -> anyhow::Result<Plan> {
    let settings = &config.backup;
    let target = settings.target().map_err(anyhow::Error::msg)?;
    let file = file.unwrap_or_else(|| Path::new(DEFAULT_PATH));
    let target = target.with_context(|| {
        format!(
            "there are no regular backups: set `to` in section [backup] of {}, for example to = \
             \"backup@birch.lan:/srv/backup\", and run systemctl restart waifud-backup",
            file.display()
        )
    })?;
    Ok(Plan {
        target,
        every: Some(settings.every),
        keep: (settings.keep > 0).then_some(settings.keep),
        with_images: settings.with_images,
    })
}

/// Creates a backup in this file, and returns what it has.
fn to_file(config: &Config, file: &Path, with_images: bool) -> anyhow::Result<String> {
    let database = config.state_dir.join(DATABASE);
    ensure!(
        database.exists(),
        "no database in {}; check state_dir in the configuration",
        config.state_dir.display()
    );
    // The file is opened as the calling user, who may write to the directory; the rest is done as the state's owner.
    let dir = directory_of(file)?;
    let taken = || {
        format!(
            "{} exists; choose another file, or remove it first",
            file.display()
        )
    };
    ensure!(file.symlink_metadata().is_err(), taken());
    // A new file with an unpredictable name (O_EXCL, 0600), because other users may be able to write to the directory:
    // links that they create there are not followed. The file is removed on failure.
    let out = tempfile::Builder::new()
        .prefix(PARTIAL.0)
        .suffix(PARTIAL.1)
        .tempfile_in(dir)
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    let written = write(config, with_images, out.as_file()).and_then(|summary| {
        out.as_file().sync_all()?;
        Ok(summary)
    });
    let finished = written.map_err(|error| {
        let places = [out.path(), config.state_dir.as_path()];
        where_room_lacks(error, &places)
    });
    let summary = finished?;
    out.persist_noclobber(file)
        .map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => anyhow::anyhow!(taken()),
            _ => anyhow::Error::new(error.error)
                .context(format!("cannot rename the backup to {}", file.display())),
        })?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot sync {}", dir.display()))?;
    Ok(summary)
}

fn write(config: &Config, with_images: bool, out: &File) -> anyhow::Result<String> {
    let state = &config.state_dir;
    owner::as_owner_of(state, || {
        let place = place_for_copy(state);
        let work = tempfile::Builder::new()
            .prefix(".backup-")
            .tempdir_in(&place)
            .with_context(|| format!("cannot write to {}", place.display()))?;
        let copy = work.path().join(DATABASE);
        let snapshot = waifud_store::backup::snapshot(&state.join(DATABASE), &copy)?;
        let mut files = vec![(DATABASE.to_owned(), copy)];
        files.extend(archive::files_below(state, PKI)?);
        if with_images {
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

/// The directory for the snapshot of the database: the state directory, or the directory for temporary files if the
/// state directory has too little free space. Users often need a backup just when the disk is full.
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

/// If one of the filesystems of `paths` is full, adds this to the error.
fn where_room_lacks(error: anyhow::Error, paths: &[&Path]) -> anyhow::Error {
    for path in paths {
        let dir = path.parent().filter(|_| !path.is_dir()).unwrap_or(path);
        if let Ok(room) = SystemDisk.disk_space(dir)
            && room.free < ByteSize::mib(1)
        {
            return error.context(format!(
                "{} of {} is free in {}: free some space there, or write the backup to another filesystem",
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
        .with_context(|| format!("{} is not the path of a file", file.display()))?;
    Ok(match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    })
}

#[cfg(test)]
mod tests;
