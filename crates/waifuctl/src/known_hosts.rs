//! The host keys of each instance in a file of its own, below `$XDG_STATE_HOME/waifud` (`~/.local/state/waifud`), for its
//! owner alone. `~/.ssh/known_hosts` is left alone.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use waifud_api::Instance;
use waifud_api::stream::LOG_LINES_MAX;

use crate::context::Context;
use crate::failure::Failure;
use crate::host_keys::{self, Scanner};

/// Where ssh finds an instance's host keys.
#[derive(Debug)]
pub struct KnownHosts {
    /// The file.
    pub path: PathBuf,
    /// The name in it: made of the id, which is never given twice.
    pub alias: String,
    /// Whether keys are in it; without, ssh believes the first one.
    pub pinned: bool,
}

/// Reads the keys off the instance's console and keeps them. Without any, those that were kept earlier count.
pub async fn learn(
    context: &Context,
    instance: &Instance,
    accept_new: bool,
) -> Result<KnownHosts, Failure> {
    let alias = format!("waifud-{}", instance.id);
    let path = directory()?.join(instance.id.to_string());
    let before = read(&path, &alias).map_err(|e| broken(&path, &e))?;
    let keys = shown(context, instance).await?;
    let pinned = if keys.is_empty() {
        !before.is_empty()
    } else {
        if keys != before {
            if !before.is_empty() {
                context.printer.note(&format!(
                    "note: the host keys of {} have changed; using the ones from its console",
                    instance.name
                ));
            }
            write(&path, &alias, &keys).map_err(|e| broken(&path, &e))?;
        }
        true
    };
    if !pinned && !accept_new {
        return Err(Failure::input(
            "no-host-key",
            format!("the console of {} shows no SSH host keys", instance.name),
        )
        .hint(
            "it may still be booting: waifuctl wait NAME --for ready; for a guest that never prints them, --accept-new-key \
             trusts the first key that answers",
        ));
    }
    if !pinned {
        // ssh adds to it, and must not make a file that others can read.
        write(&path, &alias, &[]).map_err(|e| broken(&path, &e))?;
    }
    Ok(KnownHosts {
        path,
        alias,
        pinned,
    })
}

async fn shown(context: &Context, instance: &Instance) -> Result<Vec<String>, Failure> {
    let id = instance.id.to_string();
    let log = match context
        .client
        .log(&id, "console", LOG_LINES_MAX, false)
        .await
    {
        Ok(log) => log,
        Err(error) if error.problem().is_some_and(|p| p.code == "no-log") => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut log = Box::pin(log);
    let mut scanner = Scanner::default();
    while let Some(bytes) = log.next().await {
        scanner.feed(&bytes?);
    }
    Ok(scanner.finish())
}

fn directory() -> Result<PathBuf, Failure> {
    let dir = |key| {
        std::env::var_os(key)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    dir("XDG_STATE_HOME")
        .or_else(|| dir("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("waifud").join("known_hosts"))
        .ok_or_else(|| {
            Failure::input("no-home", "there is no directory to keep host keys in")
                .hint("set HOME or XDG_STATE_HOME")
        })
}

fn broken(path: &Path, error: &std::io::Error) -> Failure {
    Failure::input(
        "known-hosts-unusable",
        format!("{} can't be read or written", path.display()),
    )
    .cause(error)
}

/// The keys under that name, as they stand there.
fn read(path: &Path, alias: &str) -> std::io::Result<Vec<String>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let keys = text.lines().filter_map(|line| {
        let (name, key) = line.split_once(' ')?;
        (name == alias).then(|| host_keys::key(key))?
    });
    Ok(keys.collect())
}

/// Whole or not at all.
fn write(path: &Path, alias: &str, keys: &[String]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let draft = path.with_extension(std::process::id().to_string());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    let text: String = keys
        .iter()
        .flat_map(|key| [alias, " ", key.as_str(), "\n"])
        .collect();
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _may_be_absent = std::fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

    #[test]
    fn keys_survive_their_file_which_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waifud/known_hosts/0198");
        assert!(read(&path, "waifud-0198").unwrap().is_empty());
        write(&path, "waifud-0198", &[]).unwrap();
        write(&path, "waifud-0198", &[KEY.to_owned()]).unwrap();
        assert_eq!(read(&path, "waifud-0198").unwrap(), [KEY]);
        assert!(read(&path, "waifud-other").unwrap().is_empty());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }
}
