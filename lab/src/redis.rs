//! Redis on waifud's machine, as docs/guides/redis.md sets it up: TLS with a CA of its own, a user for waifud, and one for
//! nodes, which can only read.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::options::MachineSpec;
use crate::{accounts, net, wait};

/// Limit of one command of openssl. They take milliseconds.
const LIMIT: Duration = Duration::from_mins(1);
/// The port, with TLS.
const PORT: u16 = 6380;
/// The socket by which the lab sees that it is ready. No user can log in there.
pub(crate) const SOCKET: &str = "/run/redis/redis.sock";
/// Starts it. This program of the package redis-tools is the server under its own name; the package redis-server adds only a
/// link with that name, and a service.
pub(crate) const SERVE: &str =
    "exec -a redis-server /usr/bin/redis-check-rdb /etc/redis/redis.conf";

/// The section of `waifud.toml`.
pub(crate) fn section(machine: &MachineSpec) -> String {
    format!(
        "[redis]\n\
         url = \"rediss://{}:{PORT}\"\n\
         ca_file = \"/etc/redis/ca.crt\"\n\
         username = \"waifud\"\n\
         password_file = \"/etc/waifud/redis-password\"\n\
         node_username = \"waifud-node\"\n\
         node_password_file = \"/etc/waifud/redis-node-password\"\n",
        net::address(machine.index)
    )
}

fn config() -> String {
    format!(
        "bind 0.0.0.0\nport 0\ntls-port {PORT}\nunixsocket {SOCKET}\ndir /var/lib/redis\nsave \"\"\n\
         tls-cert-file /etc/redis/redis.crt\ntls-key-file /etc/redis/redis.key\n\
         tls-ca-cert-file /etc/redis/ca.crt\ntls-auth-clients no\naclfile /etc/redis/users.acl\n\
         maxmemory 64mb\nmaxmemory-policy noeviction\n"
    )
}

/// Writes keys, users and configuration of `machine`, whose `/etc` is this directory.
pub(crate) fn write(its_etc: &Path, machine: &MachineSpec) -> Result<()> {
    let etc = its_etc.join("redis");
    fs::create_dir_all(&etc)?;
    let names = format!("subjectAltName=IP:{}\n", net::address(machine.index));
    fs::write(etc.join("redis.ext"), names)?;
    for arguments in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=Lab -addext \
         basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.crt",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=Redis -keyout redis.key -out redis.csr",
        "x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile redis.ext -out redis.crt",
    ] {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments.split_whitespace()).current_dir(&etc);
        wait::run(&mut openssl, LIMIT).context("cannot create the certificate of Redis")?;
    }
    let [writer, reader] = [password()?, password()?];
    let users = format!(
        "user default off\n\
         user waifud on >{writer} ~waifud:* resetchannels -@all +ping +scan +getrange +set +del\n\
         user waifud-node on >{reader} ~waifud:bundle:* resetchannels -@all +ping +getrange\n"
    );
    fs::write(etc.join("users.acl"), users)?;
    fs::write(etc.join("redis.conf"), config())?;
    for (path, password) in [
        ("waifud/redis-password", writer),
        ("waifud/redis-node-password", reader),
    ] {
        let path = its_etc.join(path);
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, Some(accounts::WAIFUD), Some(accounts::WAIFUD))?;
        fs::write(&path, password)?;
    }
    Ok(())
}

fn password() -> Result<String> {
    crate::options::uuid()
}
