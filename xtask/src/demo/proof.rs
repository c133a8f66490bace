//! The demo's user-data, and the verification over SSH that the guest's cloud-init applied it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use waifud_lab::{Lab, ssh, wait};

/// The demo's cloud-config. Only one type of host key and no locale, because an emulated guest generates them slowly.
pub const USER_DATA: &str = "#cloud-config
locale: false
ssh_genkeytypes: [ed25519]
write_files:
  - path: /etc/waifud-demo
    content: written by user-data
runcmd:
  - [sh, -c, 'echo ran as $(id -un) on $(hostname) > /var/lib/waifud-demo']
";

/// Limit until SSH answers: the guest may be ready before its sshd has started.
const SSH_LIMIT: Duration = Duration::from_secs(90);

/// Limit of a command over SSH. An emulated guest on a busy machine needed more than 30 s for one.
const COMMAND_LIMIT: Duration = Duration::from_mins(2);

/// The SSH key of this run.
pub struct Key {
    /// The path in the node.
    pub private_inside: PathBuf,
    /// The path of the public key on the machine.
    pub public_outside: PathBuf,
    /// The public key.
    public: String,
}

/// The guest's own report.
pub struct Proven {
    pub datasource: String,
    pub cloud_init: String,
}

/// Creates a key in the lab's directory.
pub fn make_key(lab: &Lab) -> Result<Key> {
    let private_inside = PathBuf::from("/etc/waifud/demo-key");
    let private = lab.path_outside(&private_inside);
    ssh::make_key(&private, "waifud-demo")?;
    let public_outside = private.with_extension("pub");
    let public = std::fs::read_to_string(&public_outside)
        .context("cannot read the public key that ssh-keygen created")?;
    Ok(Key {
        private_inside,
        public_outside,
        public,
    })
}

/// Logs in and checks the results of user-data and metadata.
pub fn ask_guest(lab: &Lab, key: &Key, address: &str, name: &str) -> Result<Proven> {
    let guest = Guest { lab, key, address };
    let hostname = wait::until("the guest's SSH", SSH_LIMIT, || {
        Ok(guest.run(&["hostname"]).ok())
    })?;
    ensure!(
        hostname.trim() == name,
        "the guest's host name is {hostname:?}"
    );
    let written = guest.run(&["cat", "/etc/waifud-demo"])?;
    ensure!(
        written.trim() == "written by user-data",
        "write_files wrote {written:?}"
    );
    let ran = guest.run(&["cat", "/var/lib/waifud-demo"])?;
    ensure!(
        ran.trim() == format!("ran as root on {name}"),
        "runcmd wrote {ran:?}"
    );
    let keys = guest.run(&["cat", ".ssh/authorized_keys"])?;
    let key_body = key
        .public
        .split_whitespace()
        .nth(1)
        .context("the public key has no body")?;
    ensure!(
        keys.contains(key_body),
        "the SSH key of the metadata is not in the guest"
    );

    let result: Value = serde_json::from_str(&guest.run(&["cat", "/run/cloud-init/result.json"])?)
        .context("result.json is not valid JSON")?;
    let errors = result
        .pointer("/v1/errors")
        .and_then(Value::as_array)
        .context("result.json has no errors list")?;
    ensure!(
        errors.is_empty(),
        "cloud-init finished with errors: {errors:?}"
    );
    let datasource = result
        .pointer("/v1/datasource")
        .and_then(Value::as_str)
        .context("no datasource")?;
    ensure!(
        datasource.contains("OpenStack"),
        "cloud-init found {datasource} instead of OpenStack"
    );
    let status = guest.run(&["cloud-init", "status"])?;
    let cloud_init = status
        .trim()
        .strip_prefix("status: ")
        .context("cannot parse the output of cloud-init status")?;
    ensure!(cloud_init == "done", "cloud-init status is {cloud_init:?}");
    // For example "DataSourceOpenStackLocal [net,ver=2]": the class of the datasource, and how it was reached.
    let class = datasource.split_whitespace().next().unwrap_or(datasource);
    Ok(Proven {
        datasource: class.to_owned(),
        cloud_init: cloud_init.to_owned(),
    })
}

/// A guest that is reached from its node.
struct Guest<'a> {
    lab: &'a Lab,
    key: &'a Key,
    address: &'a str,
}

impl Guest<'_> {
    fn run(&self, remote: &[&str]) -> Result<String> {
        let node = self
            .lab
            .nodes()
            .first()
            .copied()
            .unwrap_or("alder")
            .to_owned();
        let identity = self.key.private_inside.to_string_lossy().into_owned();
        let user = format!("debian@{}", self.address);
        let mut argv = ssh::client(&identity, Some("/etc/waifud/demo-known-hosts"));
        argv.extend([user, "--".to_owned()]);
        argv.extend(remote.iter().map(|word| (*word).to_owned()));
        wait::run(&mut self.lab.command(&node, argv)?, COMMAND_LIMIT)
    }
}
