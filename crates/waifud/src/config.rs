//! The configuration file: TOML. Every key is optional; unknown keys are errors.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::addresses::check_url;
use crate::backup_settings::BackupSettings;
use crate::duration::duration;
use crate::redis::RedisSettings;

/// The default path. The file may be absent.
pub const DEFAULT_PATH: &str = "/etc/waifud/waifud.toml";

/// The contents of waifud.toml.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The unix socket for local clients.
    pub socket: PathBuf,
    /// The group that may use the socket, if the group exists.
    pub socket_group: String,
    /// The addresses for HTTPS, for clients and nodes. Port 0 selects a free port.
    pub listen: Vec<SocketAddr>,
    /// The URLs at which nodes reach waifud; if empty, the addresses in `listen`.
    pub advertise: Vec<String>,
    /// The directory for the database, the images and the private CA.
    pub state_dir: PathBuf,
    /// The range from which each node gets a subnet.
    pub guest_range: Ipv4Net,
    /// A log level, or directives of `tracing`.
    pub log: String,
    /// A node is unreachable if it has not reported for this long.
    #[serde(deserialize_with = "duration")]
    pub unreachable_after: Duration,
    /// A mirror for the images of the catalog, used instead of their publishers; empty for none.
    pub catalog_mirror: String,
    /// Whether images may be downloaded from this machine.
    pub downloads_from_loopback: bool,
    /// The root of this installation. `waifuctl node add` packs waifud's files below it for new nodes.
    pub installation: PathBuf,
    /// A Redis that caches encrypted bundles.
    pub redis: RedisSettings,
    /// Regular backups.
    pub backup: BackupSettings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/waifud/waifud.sock".into(),
            socket_group: "waifud-admin".to_owned(),
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 7373))],
            advertise: Vec::new(),
            state_dir: "/var/lib/waifud".into(),
            guest_range: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 144, 0, 0), 12),
            log: "info".to_owned(),
            unreachable_after: Duration::from_secs(30),
            catalog_mirror: String::new(),
            downloads_from_loopback: false,
            installation: PathBuf::from("/"),
            redis: RedisSettings::default(),
            backup: BackupSettings::default(),
        }
    }
}

impl Config {
    /// Reads the file. Returns the defaults if it is absent and `path` is `None`.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        let config: Self = match waifud_kit::config::load(file)? {
            Some(config) => config,
            None if path.is_none() => return Ok(Self::default()),
            None => anyhow::bail!("the configuration file {} does not exist", file.display()),
        };
        config
            .checked()
            .map_err(|why| anyhow::anyhow!("invalid configuration file {}: {why}", file.display()))
    }

    fn checked(self) -> Result<Self, String> {
        let config = self;
        if config.guest_range.prefix_len() > 24 {
            return Err(format!(
                "guest_range {} is too small: each node needs a /24",
                config.guest_range
            ));
        }
        for url in &config.advertise {
            check_url(url).map_err(|why| format!("advertise: {why}"))?;
        }
        config.redis.check()?;
        config.backup.check()?;
        Ok(Self {
            guest_range: config.guest_range.trunc(),
            ..config
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        waifud_kit::config::parse::<Config>(Path::new("waifud.toml"), text)
            .map_err(|error| error.to_string())
            .and_then(Config::checked)
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(parse(""), Ok(Config::default()));
    }

    #[test]
    fn the_error_about_an_unknown_key_names_it() {
        let error = parse("sokcet = '/tmp/x'").unwrap_err();
        assert!(error.contains("sokcet"), "{error}");
    }

    #[test]
    fn values_are_parsed_with_their_units() {
        let config = parse("unreachable_after = '2m'\nguest_range = '10.200.0.0/16'").unwrap();
        assert_eq!(config.unreachable_after, Duration::from_mins(2));
        assert_eq!(config.guest_range.to_string(), "10.200.0.0/16");
        for (bad, key, why) in [
            ("unreachable_after = 30", "unreachable_after", "string"),
            ("unreachable_after = '0s'", "unreachable_after", "too short"),
            ("unreachable_after = 'soon'", "unreachable_after", "2m"),
            ("guest_range = '10.0.0.0/25'", "guest_range", "/24"),
            ("listen = ['localhost']", "listen", "socket address"),
            ("advertise = ['waifud.lan']", "advertise", "https://"),
            ("[backup]\nkeep = 3", "backup.to", "missing"),
            ("[backup]\nto = 'birch:-rf'", "backup.to", "SSH"),
            (
                "[backup]\nto = '/srv/backup'\nevery = '1s'",
                "backup.every",
                "1m",
            ),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(key) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_file_given_with_config_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/waifud.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/waifud.toml"));
    }

    /// The example on the page is complete: it contains every key with its default.
    #[test]
    fn the_reference_page_lists_every_key_with_its_default() {
        let page = include_str!("../../../docs/reference/config.md");
        let example = waifud_kit::config_page::documented::<Config>(page, "waifud.toml");
        assert_eq!(parse(&example), Ok(Config::default()));
    }
}
