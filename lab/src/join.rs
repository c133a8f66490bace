//! Joins a lab's node to its waifud as an administrator would: with a token and one command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Limit of each command. They take milliseconds.
const LIMIT: Duration = Duration::from_mins(1);
/// The file with the token inside the node. It exists only while the node joins.
pub(crate) const TOKEN: &str = "/run/waifud-agent/join-token";

/// Joins a node. `waifud` creates a command on waifud's machine and `node` one on the node; they may be the same. `file` is
/// the path outside of the node's [`TOKEN`].
pub(crate) fn join(
    waifud: impl Fn(&[&str]) -> Result<Command>,
    node: impl Fn(&[&str]) -> Result<Command>,
    file: &Path,
) -> Result<()> {
    let args = ["waifuctl", "node", "token", "create", "--json"];
    let text = wait::run(&mut waifud(&args)?, LIMIT).context("cannot create a join token")?;
    let made: serde_json::Value = serde_json::from_str(&text)?;
    let token = made["token"]
        .as_str()
        .context("the output of waifuctl contains no token")?;
    fs::write(file, "")?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    fs::write(file, token)?;
    let args = ["waifud-agentd", "join", "--token-file", TOKEN];
    let joined = wait::run(&mut node(&args)?, LIMIT);
    fs::remove_file(file)?;
    joined.context("the node could not join").map(drop)
}
