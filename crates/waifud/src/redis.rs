//! The section `[redis]` of the configuration file: a Redis that caches encrypted bundles.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use waifud_control::RedisConfig;
use waifud_redis::{Endpoint, Redis, RedisAccess, check_ca, check_prefix};
use waifud_types::Secret;

use crate::duration::duration;

/// The largest file of CA certificates: every node gets it.
const CA_MAX: u64 = 64 << 10;
/// The largest password file.
const PASSWORD_MAX: u64 = 4 << 10;

/// The settings.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// `redis://HOST:PORT`, or `rediss://HOST:PORT` for TLS; empty for no Redis.
    pub url: String,
    /// The CA certificates, in PEM, one of which has issued Redis' certificate.
    pub ca_file: PathBuf,
    /// The user that waifud writes with; empty for the user `default`.
    pub username: String,
    /// A file with its password; empty for none.
    pub password_file: PathBuf,
    /// The user that nodes read with; it must not be able to write.
    pub node_username: String,
    /// A file with its password.
    pub node_password_file: PathBuf,
    /// The beginning of all keys.
    pub prefix: String,
    /// How often Redis is compared with the database at least.
    #[serde(deserialize_with = "duration")]
    pub check_every: Duration,
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca_file: PathBuf::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            node_username: String::new(),
            node_password_file: PathBuf::new(),
            prefix: "waifud".to_owned(),
            check_every: Duration::from_secs(10),
        }
    }
}

impl RedisSettings {
    /// Refuses settings that contradict each other.
    pub fn check(&self) -> Result<(), String> {
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        if self.url.is_empty() {
            return if *self == Self::default() {
                Ok(())
            } else {
                Err("redis.url is missing; without Redis, remove the section [redis]".to_owned())
            };
        }
        let endpoint: Endpoint = self
            .url
            .parse()
            .map_err(|error| format!("redis.url: {error}"))?;
        check_prefix(&self.prefix).map_err(|error| format!("redis.prefix: {error}"))?;
        if endpoint.tls && !is_set(&self.ca_file) {
            return Err(
                "redis.ca_file is missing: rediss:// needs the CA of Redis' certificate".to_owned(),
            );
        }
        if !endpoint.tls && is_set(&self.ca_file) {
            return Err("redis.ca_file is only used with rediss://".to_owned());
        }
        let users = [
            ("", &self.username, &self.password_file),
            ("node_", &self.node_username, &self.node_password_file),
        ];
        for (who, user, password) in users {
            if !user.is_empty() && !is_set(password) {
                return Err(format!(
                    "redis.{who}password_file is missing: {who}username needs a password"
                ));
            }
        }
        let (own, nodes) = (
            is_set(&self.password_file),
            is_set(&self.node_password_file),
        );
        if own && (!nodes || self.node_username.is_empty()) {
            return Err(
                "redis.node_username and node_password_file are missing: nodes need a user that can only read"
                    .to_owned(),
            );
        }
        if !self.username.is_empty() && self.username == self.node_username {
            return Err(
                "redis.node_username is the same as username: nodes need a user that can only read"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Reads the files. `None` without Redis.
    pub fn open(&self) -> Result<Option<RedisConfig>> {
        if self.url.is_empty() {
            return Ok(None);
        }
        let ca = if self.ca_file.as_os_str().is_empty() {
            None
        } else {
            Some(read_ca(&self.ca_file).context("redis.ca_file")?)
        };
        let access = |username: &str, password: Option<Secret<String>>| RedisAccess {
            url: self.url.clone(),
            ca: ca.clone(),
            username: (!username.is_empty()).then(|| username.to_owned()),
            password,
            prefix: self.prefix.clone(),
        };
        let own = read_password(&self.password_file).context("redis.password_file")?;
        let nodes = read_password(&self.node_password_file).context("redis.node_password_file")?;
        Ok(Some(RedisConfig {
            connector: Arc::new(Redis),
            own: access(&self.username, own),
            nodes: access(&self.node_username, nodes),
            check_every: self.check_every,
        }))
    }
}

fn read(path: &Path, max: u64) -> Result<String> {
    let name = path.display();
    let facts = fs::metadata(path).with_context(|| format!("cannot read {name}"))?;
    ensure!(facts.is_file(), "{name} is not a file");
    ensure!(facts.len() <= max, "{name} is larger than {max} bytes");
    // The error of invalid UTF-8 does not quote the text.
    fs::read_to_string(path).with_context(|| format!("cannot read {name}"))
}

fn read_ca(path: &Path) -> Result<String> {
    let text = read(path, CA_MAX).context(
        "the file must contain the CA certificate that has signed Redis' certificate, and nothing else",
    )?;
    check_ca(&text).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
    Ok(text)
}

fn read_password(path: &Path) -> Result<Option<Secret<String>>> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let name = path.display();
    let text = read(path, PASSWORD_MAX)?;
    let of_others = fs::metadata(path)?.permissions().mode() & 0o007;
    ensure!(
        of_others == 0,
        "every user can read {name}: run chmod o= {name}"
    );
    let password = text.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "{name} is empty");
    ensure!(!password.contains('\n'), "{name} has more than one line");
    Ok(Some(Secret::new(password.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisSettings, String> {
        let settings: RedisSettings = toml::from_str(text).map_err(|error| error.to_string())?;
        settings.check().map(|()| settings)
    }

    const COMPLETE: &str = "url = 'rediss://cache.lan'\nca_file = '/ca'\nusername = 'w'\n\
         password_file = '/w'\nnode_username = 'n'\nnode_password_file = '/n'\n";

    #[test]
    fn complete_settings_and_a_redis_without_users_are_accepted() {
        parse("").unwrap();
        parse(COMPLETE).unwrap();
        parse("url = 'redis://127.0.0.1'").unwrap();
    }

    #[test]
    fn incomplete_settings_are_refused_with_what_is_missing() {
        for (from, to, why) in [
            ("url = 'rediss://cache.lan'", "", "redis.url is missing"),
            ("rediss://cache.lan", "http://cache.lan", "redis.url: "),
            ("rediss:", "redis:", "ca_file is only used with rediss"),
            ("ca_file = '/ca'", "", "redis.ca_file is missing"),
            ("password_file = '/w'", "", "redis.password_file is missing"),
            (
                "node_password_file = '/n'",
                "",
                "node_password_file is missing",
            ),
            ("node_username = 'n'", "", "redis.node_username"),
            ("'n'", "'w'", "is the same as username"),
            (
                "username = 'w'",
                "username = 'w'\nprefix = 'a*'",
                "redis.prefix: ",
            ),
            ("username = 'w'", "user = 'w'", "user"),
        ] {
            let text = COMPLETE.replacen(from, to, 1);
            let error = parse(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn passwords_are_read_without_the_end_of_the_line_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let good = read_password(&file("good", "hunter2\n", 0o640)).unwrap();
        assert_eq!(good.unwrap().expose(), "hunter2");
        for (path, why) in [
            (file("open", "hunter2\n", 0o644), "chmod o="),
            (file("empty", "\n", 0o600), "is empty"),
            (
                file("lines", "hunter2\nhunter3\n", 0o600),
                "more than one line",
            ),
            (file("long", &"hunter2 ".repeat(1000), 0o600), "larger than"),
            (dir.path().join("missing"), "cannot read"),
            (dir.path().to_owned(), "not a file"),
        ] {
            let error = format!("{:#}", read_password(&path).unwrap_err());
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("hunter"), "{error}");
        }
        let error = format!("{:#}", read_ca(&file("ca", "hunter2", 0o644)).unwrap_err());
        assert!(
            error.contains("no CA certificate") && !error.contains("hunter"),
            "{error}"
        );
    }

    #[test]
    fn what_is_opened_shows_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "hunter2").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let settings = RedisSettings {
            url: "redis://127.0.0.1".to_owned(),
            password_file: path.clone(),
            node_username: "n".to_owned(),
            node_password_file: path,
            ..RedisSettings::default()
        };
        let opened = settings.open().unwrap().unwrap();
        assert_eq!(opened.nodes.username.as_deref(), Some("n"));
        assert_eq!(opened.own.password.as_ref().unwrap().expose(), "hunter2");
        assert!(!format!("{opened:?}").contains("hunter2"));
    }
}
