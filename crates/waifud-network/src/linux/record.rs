//! The record of our changes to this machine, which survives our restarts: used to adopt what still runs, and to undo it.
//!
//! A record is valid only for the boot and the network namespace that it was written in, so it contains both.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::files;
use crate::NetworkError;

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where this was written: boot and namespace.
    place: String,
    /// The bridge that we created.
    pub(super) bridge: Option<BridgeRecord>,
    /// Interfaces whose forwarding was off before us.
    pub(super) switched: Vec<String>,
    /// Bridges of the host on which we answer ARP for 169.254.169.254.
    #[serde(default)]
    pub(super) answering: Vec<String>,
    /// The dnsmasq that we started.
    pub(super) dnsmasq: Option<DnsmasqRecord>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct BridgeRecord {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) gateway: Ipv4Addr,
    pub(super) subnet: Ipv4Net,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct DnsmasqRecord {
    pub(super) pid: i32,
    /// Ticks since boot (proc(5), field 22 of `stat`), which distinguish it from a later process with the same id.
    pub(super) start_time: u64,
    /// The index of the bridge that its DHCP socket is bound to.
    pub(super) bridge_index: u32,
    /// The number of the last load of leases that it has read.
    pub(super) load: u64,
}

/// The record's file.
#[derive(Debug)]
pub(super) struct RecordFile {
    path: PathBuf,
    place: String,
}

impl RecordFile {
    pub(super) fn new(path: PathBuf) -> Self {
        // If these cannot be read, no record is valid.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
        let place = format!("{} {}", boot.trim(), namespace.display());
        Self { path, place }
    }

    /// The record; empty if the file is missing, damaged, or from another boot or namespace.
    pub(super) fn load(&self) -> Result<Record, NetworkError> {
        let record = files::read(&self.path)?
            .and_then(|text| serde_json::from_str::<Record>(&text).ok())
            .filter(|record| record.place == self.place)
            .unwrap_or_default();
        Ok(record)
    }

    pub(super) fn save(&self, record: &Record) -> Result<(), NetworkError> {
        let mut record = record.clone();
        record.place.clone_from(&self.place);
        let text = serde_json::to_string_pretty(&record).map_err(|error| NetworkError::Io {
            what: format!("writing {}", self.path.display()),
            source: error.into(),
        })?;
        files::replace(&self.path, &text)
    }

    pub(super) fn remove(&self) -> Result<(), NetworkError> {
        files::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_valid_only_in_its_boot_and_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let file = RecordFile::new(dir.path().join("record.json"));
        assert_eq!(file.load().unwrap(), Record::default());
        let record = Record {
            switched: vec!["eth0".to_owned()],
            ..Record::default()
        };
        file.save(&record).unwrap();
        assert_eq!(file.load().unwrap().switched, ["eth0"]);
        let elsewhere = RecordFile {
            path: file.path.clone(),
            place: "another boot".to_owned(),
        };
        assert_eq!(elsewhere.load().unwrap(), Record::default());
        std::fs::write(&file.path, "{").unwrap();
        assert_eq!(file.load().unwrap(), Record::default());
    }
}
