//! What we did to this machine, remembered across our own restarts: to take over what still runs, and to undo it.
//!
//! The record is only as good as the network namespace it was written in, so it names that too: after a reboot, or in
//! a namespace that was made anew, it counts for nothing.

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
    /// The bridge that we made.
    pub(super) bridge: Option<BridgeRecord>,
    /// Interfaces whose forwarding was off before us.
    pub(super) switched: Vec<String>,
    /// Bridges of the host's own on which we answer ARP for 169.254.169.254.
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
    /// Ticks since boot (proc(5), field 22 of `stat`): tells it from a later process with the same id.
    pub(super) start_time: u64,
    /// The index of the bridge that its DHCP socket is bound to.
    pub(super) bridge_index: u32,
    /// The last load of leases that it is known to have read.
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
        // Where these can't be read, the place is unknown and no record is ever believed.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
        let place = format!("{} {}", boot.trim(), namespace.display());
        Self { path, place }
    }

    /// What was recorded here; nothing when the file is absent, damaged or from another place.
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
    fn a_record_is_believed_only_where_it_was_written() {
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
