//! Kernel settings of one interface. The global ones are the administrator's: none is ever written here.

use std::path::{Path, PathBuf};

use super::files;
use crate::NetworkError;

/// A setting below `/proc/sys/net`. Interfaces have no `/` in their names (the kernel's `dev_valid_name`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Setting(PathBuf);

impl Setting {
    /// `net.ipv4.conf.INTERFACE.forwarding`: whether packets that come in here may go on elsewhere.
    pub(super) fn forwarding(interface: &str) -> Self {
        Self::of(&["ipv4", "conf", interface, "forwarding"])
    }

    /// `net.ipv4.ip_forward`. Only read: it tells whether somebody else wants forwarding on the whole host.
    pub(super) fn forwarding_everywhere() -> Self {
        Self::of(&["ipv4", "ip_forward"])
    }

    /// `net.bridge.bridge-nf-call-iptables`. Only read: it tells whether frames that a bridge switches are asked about in
    /// the chains for packets.
    pub(super) fn bridged_frames_are_filtered() -> Self {
        Self::of(&["bridge", "bridge-nf-call-iptables"])
    }

    fn of(parts: &[&str]) -> Self {
        let mut path = PathBuf::from("/proc/sys/net");
        path.extend(parts);
        Self(path)
    }

    /// `None` when there is no such interface.
    pub(super) fn get(&self) -> Result<Option<String>, NetworkError> {
        Ok(files::read(&self.0)?.map(|text| text.trim().to_owned()))
    }

    pub(super) fn is(&self, value: &str) -> Result<bool, NetworkError> {
        Ok(self.get()?.as_deref() == Some(value))
    }

    /// Writes only what differs, so that nobody who watches the setting is woken in vain.
    pub(super) fn ensure(&self, value: &str) -> Result<(), NetworkError> {
        if self.is(value)? {
            return Ok(());
        }
        let path: &Path = &self.0;
        std::fs::write(path, value).map_err(files::io("writing", path))
    }
}

/// What the guests' bridge needs.
pub(super) fn of_bridge(bridge: &str) -> Vec<(Setting, &'static str)> {
    let conf = |key| Setting::of(&["ipv4", "conf", bridge, key]);
    vec![
        // No address of the host is reached through guests' IPv6.
        (Setting::of(&["ipv6", "conf", bridge, "disable_ipv6"]), "1"),
        (Setting::forwarding(bridge), "1"),
        // Isolated ports see nothing of each other: the gateway answers ARP for the neighbours and routes between them.
        (conf("proxy_arp_pvlan"), "1"),
        // Such answers are delayed by up to 0.8 s otherwise.
        (Setting::of(&["ipv4", "neigh", bridge, "proxy_delay"]), "0"),
        // A second lock behind the firewall's: sources must be routed back to this bridge.
        (conf("rp_filter"), "1"),
        (conf("accept_source_route"), "0"),
        (conf("accept_redirects"), "0"),
        (conf("send_redirects"), "0"),
    ]
}
