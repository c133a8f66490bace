//! The configuration file: TOML, every key optional, no key unknown.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::addresses::check_url;

/// Where the file is unless said otherwise. It may be absent.
pub const DEFAULT_PATH: &str = "/etc/waifud/waifud.toml";

/// What can be set.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The socket of people and their programs.
    pub socket: PathBuf,
    /// The group that may use it, when there is such a group.
    pub socket_group: String,
    /// Where HTTPS is served, for people's programs and for nodes. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// The URLs that nodes are told; where it listens, when empty.
    pub advertise: Vec<String>,
    /// The database, the images and the private CA.
    pub state_dir: PathBuf,
    /// Nodes' subnets are taken from here.
    pub guest_range: Ipv4Net,
    /// What is logged: a level, or `tracing`'s directives.
    pub log: String,
    /// A node that is silent for so long is unreachable.
    #[serde(deserialize_with = "duration")]
    pub unreachable_after: Duration,
    /// Where the catalog's images come from instead of their publishers; empty for none.
    pub catalog_mirror: String,
    /// Whether images may be downloaded from this machine itself.
    pub downloads_from_loopback: bool,
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
        }
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    let span: jiff::SignedDuration = text.parse().map_err(|_| {
        D::Error::custom(format!("{text:?} is not a time such as \"30s\" or \"2m\""))
    })?;
    Duration::try_from(span)
        .ok()
        .filter(|duration| *duration >= Duration::from_millis(100))
        .ok_or_else(|| D::Error::custom(format!("{text:?} is too short: 100ms at least")))
}

impl Config {
    /// Reads the file; the defaults when it is absent and was not asked for by name.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => anyhow::bail!(
                "the configuration {} can't be read: {error}",
                file.display()
            ),
        };
        Self::parse(&text).map_err(|why| {
            anyhow::anyhow!("the configuration {} can't be used: {why}", file.display())
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if config.guest_range.prefix_len() > 24 {
            return Err(format!(
                "guest_range {} is smaller than the /24 that each node gets",
                config.guest_range
            ));
        }
        for url in &config.advertise {
            check_url(url)?;
        }
        Ok(Self {
            guest_range: config.guest_range.trunc(),
            ..config
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_means_the_defaults() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_name() {
        let error = Config::parse("sokcet = '/tmp/x'").unwrap_err();
        assert!(error.contains("sokcet"), "{error}");
    }

    #[test]
    fn values_are_read_with_their_units() {
        let config =
            Config::parse("unreachable_after = '2m'\nguest_range = '10.200.0.0/16'").unwrap();
        assert_eq!(config.unreachable_after, Duration::from_mins(2));
        assert_eq!(config.guest_range.to_string(), "10.200.0.0/16");
        for bad in [
            "unreachable_after = 30",
            "unreachable_after = '0s'",
            "guest_range = '10.0.0.0/25'",
            "listen = ['localhost']",
            "advertise = ['waifud.lan']",
        ] {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/waifud.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/waifud.toml"));
    }

    /// What people read. Its example is complete, so every key is in it, with its default.
    #[test]
    fn the_page_on_configuration_shows_every_key_with_its_default() {
        let page = include_str!("../../../docs/reference/config.md");
        let section = page
            .split("\n## ")
            .find(|text| text.starts_with("waifud.toml\n"))
            .unwrap();
        let (_, example) = section.split_once("```toml\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        assert_eq!(Config::parse(example), Ok(Config::default()));
        // serde names all keys to whoever uses one that is none.
        let error = toml::from_str::<Config>("no-key = 1").unwrap_err();
        let (_, keys) = error.message().split_once("expected one of ").unwrap();
        let keys: Vec<&str> = keys.split(", ").map(|key| key.trim_matches('`')).collect();
        let set: toml::Table = example.parse().unwrap();
        for key in &keys {
            assert!(set.contains_key(*key), "the example lacks {key}");
        }
        let (_, table) = section.split_once("|---|---|---|---|\n").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|row| row.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), keys.len());
        for row in rows {
            let key = row[1].trim_matches('`');
            assert!(keys.contains(&key), "the table has {key}");
            // A default that is a value is the example's.
            if row[3].starts_with('`') {
                assert_eq!(row[3].trim_matches('`'), set[key].to_string(), "{key}");
            }
        }
    }
}
