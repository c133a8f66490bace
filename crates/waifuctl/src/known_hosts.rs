//! Host keys of instances, one private file per instance below `$XDG_STATE_HOME/waifud` (`~/.local/state/waifud`).
//! `~/.ssh/known_hosts` is not used.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use waifud_api::Instance;
use waifud_api::stream::LOG_LINES_MAX;
use waifud_kit::durable::Replacement;

use crate::context::Context;
use crate::failure::Failure;
use crate::host_keys::{self, Scanner};

/// The host keys of an instance for ssh.
#[derive(Debug)]
pub struct KnownHosts {
    /// The `known_hosts` file.
    pub path: PathBuf,
    /// The host name in the file, derived from the unique id.
    pub alias: String,
    /// Whether the file contains keys; otherwise ssh accepts the first one.
    pub pinned: bool,
}

/// Reads the keys from the instance's console and stores them. Without any, previously stored keys are used.
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
            format!("the console of {} does not show SSH host keys", instance.name),
        )
        .hint(format!(
            "it may still be booting: waifuctl wait {} --for ready; for a guest that does not print them, --accept-new-key \
             trusts the first key that the guest presents",
            instance.name
        )));
    }
    if !pinned {
        // ssh adds the key to the file, which must be private from the beginning.
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
            Failure::input("no-home", "cannot find a directory for host keys")
                .hint("set HOME or XDG_STATE_HOME")
        })
}

fn broken(path: &Path, error: &std::io::Error) -> Failure {
    Failure::input(
        "known-hosts-unusable",
        format!("cannot read or write {}", path.display()),
    )
    .cause(error)
}

/// Reads the keys of a host name.
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

/// Replaces the file atomically. The draft is named after the process, since several can write at the same time.
fn write(path: &Path, alias: &str, keys: &[String]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let text: String = keys
        .iter()
        .flat_map(|key| [alias, " ", key.as_str(), "\n"])
        .collect();
    let draft = path.with_extension(std::process::id().to_string());
    Replacement::of(path).draft(draft).write(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";

    #[test]
    fn keys_round_trip_through_their_private_file() {
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
