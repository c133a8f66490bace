//! Access to a lab's waifud over HTTPS from outside its namespaces: URL, CA certificate and token.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::accounts::Caller;
use crate::{Lab, relay, wait};

const LIMIT: Duration = Duration::from_mins(1);
/// The certificate of waifud's CA inside the node, in a directory that only waifud may enter.
const CA_INSIDE: &str = "/var/lib/waifud/pki/ca.crt";
/// In the lab's directory.
const CA: &str = "waifud-ca.crt";
const TOKEN: &str = "waifud-token";

/// The access data of a client outside the lab.
#[derive(Clone)]
pub struct Https {
    /// For example `https://127.0.0.1:40123`.
    pub url: String,
    /// Path of the certificate of waifud's CA.
    pub ca: PathBuf,
    /// An admin's token.
    pub token: String,
}

/// Creates a token and the files. Called once, by the creator of the lab.
pub(crate) fn make(lab: &Lab, node: &str) -> Result<()> {
    let ca = fs::read(lab.path_outside_of(node, CA_INSIDE))
        .context("cannot read the certificate of waifud's CA")?;
    let file = lab.dir().join(CA);
    fs::write(&file, ca)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;

    let words = [
        "waifuctl", "token", "create", "lab", "--role", "admin", "--json",
    ];
    let text =
        wait::run(&mut lab.command(node, words)?, LIMIT).context("cannot create an API token")?;
    let made: serde_json::Value = serde_json::from_str(&text)?;
    let token = made["secret"]
        .as_str()
        .context("the output of waifuctl contains no secret")?;
    let new = lab.dir().join("waifud-token.new");
    fs::write(&new, "")?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::write(&new, token)?;
    if let Some(gid) = Caller::look().gid {
        // The user who called sudo may call `lab env` without it.
        chown(&new, None, Some(gid))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o640))?;
    }
    fs::rename(new, lab.dir().join(TOKEN)).context("cannot store the token")
}

/// The data that [`make`] stored; `None` before that, and in labs without waifud.
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
