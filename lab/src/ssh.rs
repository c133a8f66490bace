//! SSH from a node to its guests: a key, and the command line of a client that never asks.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::wait;

/// Creates a key without a passphrase at `private`, and its public key beside it, with the extension `pub`.
///
/// # Errors
/// ssh-keygen cannot be run, or fails.
pub fn make_key(private: &Path, comment: &str) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
        .arg(private);
    wait::run(&mut command, Duration::from_secs(20))?;
    Ok(())
}

/// The ssh client's arguments up to the destination. Paths are those in the node.
///
/// With a file of known hosts, new host keys are added to it and changed ones refused. Without one, every host key is
/// accepted, for guests that use the same address one after another.
#[must_use]
pub fn client(key: &str, known_hosts: Option<&str>) -> Vec<String> {
    let (checking, file) = match known_hosts {
        Some(file) => ("accept-new", file),
        None => ("no", "/dev/null"),
    };
    let mut words = ["ssh", "-q", "-i", key].map(str::to_owned).to_vec();
    for option in [
        "BatchMode=yes",
        "ConnectTimeout=5",
        &format!("StrictHostKeyChecking={checking}"),
        &format!("UserKnownHostsFile={file}"),
    ] {
        words.extend(["-o".to_owned(), option.to_owned()]);
    }
    words
}
