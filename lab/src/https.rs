//! The way to a lab's waifud over HTTPS from outside of its namespaces: an address, whom to trust, and a token.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::accounts::Machine;
use crate::{Lab, relay, wait};

const LIMIT: Duration = Duration::from_mins(1);
/// Inside: the certificate of waifud's CA, in a directory that only waifud may enter.
const CA_INSIDE: &str = "/var/lib/waifud/pki/ca.crt";
/// In the lab's directory.
const CA: &str = "waifud-ca.crt";
const TOKEN: &str = "waifud-token";

/// What a client outside needs.
#[derive(Clone)]
pub struct Https {
    /// Such as `https://127.0.0.1:40123`.
    pub url: String,
    /// A file: the certificate of waifud's CA.
    pub ca: PathBuf,
    /// An admin's token.
    pub token: String,
}

/// Makes a token and the files; called once, by who made the lab.
pub(crate) fn make(lab: &Lab, node: &str) -> Result<()> {
    let ca = fs::read(lab.path_outside_of(node, CA_INSIDE)).context("waifud has no CA yet")?;
    let file = lab.dir().join(CA);
    fs::write(&file, ca)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;

    let words = [
        "waifuctl", "token", "create", "lab", "--role", "admin", "--json",
    ];
    let text = wait::run(&mut lab.command(node, words)?, LIMIT).context("no token for people")?;
    let made: serde_json::Value = serde_json::from_str(&text)?;
    let token = made["secret"].as_str().context("waifuctl gave no secret")?;
    let new = lab.dir().join("waifud-token.new");
    fs::write(&new, "")?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::write(&new, token)?;
    if let Some(gid) = Machine::look().caller_gid {
        // The person who called sudo may ask for `lab env` without it.
        chown(&new, None, Some(gid))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o640))?;
    }
    fs::rename(new, lab.dir().join(TOKEN)).context("cannot keep the token")
}

/// What [`make`] made; `None` before, and in labs without waifud.
pub(crate) fn read(dir: &Path) -> Result<Option<Https>> {
    let Some(port) = relay::port(dir)? else {
        return Ok(None);
    };
    let file = dir.join(TOKEN);
    if !file.exists() {
        return Ok(None);
    }
    let token =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Some(Https {
        url: format!("https://127.0.0.1:{port}"),
        ca: dir.join(CA),
        token,
    }))
}
