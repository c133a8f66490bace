//! The configuration: a TOML file in which all keys are optional, and unknown keys are errors.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde::Deserialize;

/// The default path of the configuration file.
pub const DEFAULT_PATH: &str = "/etc/waifud/metadatad.toml";

/// The configuration.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The unix socket for the node's agent.
    pub socket: PathBuf,
    /// The directory of keys, bundles and assignments. Created with mode 0700 if it is missing.
    pub state_dir: PathBuf,
    /// The UDP address for the tunnel's sealed packets; loopback only.
    pub wireguard_listen: SocketAddr,
    /// The log level (`error`, `warn`, `info`, `debug`, `trace`), or `tracing` directives.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/waifud-metadata/control.sock".into(),
            state_dir: "/var/lib/waifud-metadata".into(),
            wireguard_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 51821)),
            log: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads the file. A missing file means the defaults; a file that cannot be read or parsed is an error.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(waifud_kit::config::load(path)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use waifud_kit::testing::temp_path;

    fn read(text: &str) -> Result<Config> {
        let (_directory, path) = temp_path("metadatad.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn a_missing_or_empty_file_means_defaults() {
        let missing = Config::read(Path::new("/nonexistent/metadatad.toml")).unwrap();
        assert_eq!(missing, Config::default());
        assert_eq!(read("").unwrap(), Config::default());
    }

    #[test]
    fn configured_keys_are_used_and_others_have_their_default() {
        let config = read("wireguard_listen = \"127.0.0.1:7\"\nlog = \"debug\"\n").unwrap();
        assert_eq!(config.wireguard_listen.port(), 7);
        assert_eq!(config.log, "debug");
        assert_eq!(config.socket, Config::default().socket);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_name() {
        let texts = [
            ("sokcet = \"/x\"\n", "sokcet"),
            ("wireguard_listen = 7\n", "wireguard_listen"),
        ];
        waifud_kit::config_page::refused(read, &texts);
    }

    /// The documentation. Its example is complete: it contains every key with its default.
    #[test]
    fn the_page_on_configuration_shows_every_key_with_its_default() {
        let page = include_str!("../../../docs/reference/config.md");
        let example = waifud_kit::config_page::documented::<Config>(page, "metadatad.toml");
        assert_eq!(read(&example).unwrap(), Config::default());
    }
}
