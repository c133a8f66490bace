//! Kernel settings of interfaces. Global settings belong to the administrator and are never written.

use std::path::{Path, PathBuf};

use super::files;
use crate::NetworkError;

/// A setting below `/proc/sys/net`. Interfaces have no `/` in their names (the kernel's `dev_valid_name`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Setting(PathBuf);

impl Setting {
    /// `net.ipv4.conf.INTERFACE.forwarding`: whether packets that arrive on the interface are forwarded.
    pub(super) fn forwarding(interface: &str) -> Self {
        Self::of(&["ipv4", "conf", interface, "forwarding"])
    }

    /// `net.ipv4.ip_forward`, which is only read: whether the administrator enabled forwarding on the whole host.
    pub(super) fn forwarding_everywhere() -> Self {
        Self::of(&["ipv4", "ip_forward"])
    }

    /// `net.bridge.bridge-nf-call-iptables`, which is only read: whether bridged frames pass the IP chains.
    pub(super) fn bridged_frames_are_filtered() -> Self {
        Self::of(&["bridge", "bridge-nf-call-iptables"])
    }

    fn of(parts: &[&str]) -> Self {
        let mut path = PathBuf::from("/proc/sys/net");
        path.extend(parts);
        Self(path)
    }

    /// The value; `None` if the interface does not exist.
    pub(super) fn get(&self) -> Result<Option<String>, NetworkError> {
        Ok(files::read(&self.0)?.map(|text| text.trim().to_owned()))
    }

    pub(super) fn is(&self, value: &str) -> Result<bool, NetworkError> {
        Ok(self.get()?.as_deref() == Some(value))
    }

    /// Writes the value only if it differs, to avoid needless notifications.
    pub(super) fn ensure(&self, value: &str) -> Result<(), NetworkError> {
        if self.is(value)? {
            return Ok(());
        }
        let path: &Path = &self.0;
        std::fs::write(path, value).map_err(files::io("writing", path))
    }
}

/// The settings of the guests' bridge.
pub(super) fn of_bridge(bridge: &str) -> Vec<(Setting, &'static str)> {
    let conf = |key| Setting::of(&["ipv4", "conf", bridge, key]);
    vec![
        // The host has no IPv6 address that guests could reach.
        (Setting::of(&["ipv6", "conf", bridge, "disable_ipv6"]), "1"),
        (Setting::forwarding(bridge), "1"),
        // Isolated ports do not see each other, so the gateway answers ARP for all guests and routes between them.
        (conf("proxy_arp_pvlan"), "1"),
        // The same for guests of their subnet that are on other nodes, and for the gateway of the subnet that a guest came from.
        (conf("proxy_arp"), "1"),
        // Otherwise the kernel delays these answers by up to 0.8 s.
        (Setting::of(&["ipv4", "neigh", bridge, "proxy_delay"]), "0"),
        // In addition to the firewall: the route to a packet's source must use this bridge.
        (conf("rp_filter"), "1"),
        (conf("accept_source_route"), "0"),
        (conf("accept_redirects"), "0"),
        (conf("send_redirects"), "0"),
    ]
}

/// Disables forwarding where we enabled it, unless forwarding is now enabled for the whole host.
pub(super) fn switch_back<'a>(
    interfaces: impl Iterator<Item = &'a String>,
) -> Result<(), NetworkError> {
    if Setting::forwarding_everywhere().is("1")? {
        return Ok(());
    }
    switch(interfaces, "0")
}

/// Sets forwarding on the interfaces that still exist.
pub(super) fn switch<'a>(
    interfaces: impl Iterator<Item = &'a String>,
    value: &str,
) -> Result<(), NetworkError> {
    for interface in interfaces {
        let setting = Setting::forwarding(interface);
        if setting.get()?.is_some() {
            setting.ensure(value)?;
        }
    }
    Ok(())
}
