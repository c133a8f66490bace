//! Joins a lab's node to its waifud as an administrator would: with a token and one command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::wait;

/// Limit of each command. They take milliseconds.
const LIMIT: Duration = Duration::from_mins(1);
/// Lifetime of the token.
const TOKEN: &str = "/run/waifud-agent/join-token";

/// Joins `node` to the waifud that runs on it.
pub(crate) fn join(lab: &Lab, node: &str) -> Result<()> {
    let args = ["waifuctl", "node", "token", "create", "--json"];
    let text =
        wait::run(&mut lab.command(node, args)?, LIMIT).context("cannot create a join token")?;
    let made: serde_json::Value = serde_json::from_str(&text)?;
    let token = made["token"]
        .as_str()
        .context("the output of waifuctl contains no token")?;
    let file = lab.path_outside_of(node, TOKEN);
    fs::write(&file, "")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    fs::write(&file, token)?;
    let args = ["waifud-agentd", "join", "--token-file", TOKEN];
    let joined = wait::run(&mut lab.command(node, args)?, LIMIT);
    fs::remove_file(&file)?;
    joined
        .with_context(|| format!("{node} could not join"))
        .map(drop)
}
