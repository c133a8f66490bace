//! Where files and tools are on this host, and the settings that the host's administrator makes.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

/// The settings of [`LinuxNetwork`](super::LinuxNetwork).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinuxNetworkConfig {
    /// For files that need not survive a reboot: dnsmasq's configuration and pid file, and our record. dnsmasq's user
    /// must be able to enter this directory and all of its parents.
    pub run_dir: PathBuf,
    /// For files that survive a reboot: dnsmasq's lease database.
    pub state_dir: PathBuf,
    /// The path of dnsmasq.
    pub dnsmasq: PathBuf,
    /// The path of nft.
    pub nft: PathBuf,
    /// The directory of the iptables programs, for firewalls that use iptables.
    pub iptables: PathBuf,
    /// The file with the DNS servers that answer for names other than guests'.
    pub resolv_conf: PathBuf,
    /// How long a lease is valid. A guest renews it at half that time.
    pub lease_time: Duration,
    /// Between two checks of everything. Legacy iptables, whose changes the kernel does not announce, is checked only then.
    pub full_check: Duration,
    /// Destinations that have a route back to guests, for example other nodes' subnets over a fabric. Guests keep their
    /// own address towards them. All other destinations see the host's address.
    pub routed: Vec<Ipv4Net>,
    /// Interfaces that lead guests to the outside. If empty, the interfaces of the default routes are used.
    pub uplinks: Vec<String>,
    /// The host's addresses at which other machines resolve guests' names.
    pub dns_listen: Vec<SocketAddrV4>,
}

impl LinuxNetworkConfig {
    /// Debian's paths of the tools, leases of 12 hours, and uplinks from the default routes.
    pub fn new(run_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            state_dir: state_dir.into(),
            dnsmasq: "/usr/sbin/dnsmasq".into(),
            nft: "/usr/sbin/nft".into(),
            iptables: "/usr/sbin".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            lease_time: Duration::from_hours(12),
            full_check: Duration::from_secs(15),
            routed: Vec::new(),
            uplinks: Vec::new(),
            dns_listen: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_iptables_is_checked_as_often_as_the_guide_promises() {
        let guide = include_str!("../../../../docs/guides/docker-and-firewalls.md");
        let promise = "changes of legacy iptables; the agent checks these rules every 15 seconds";
        assert!(guide.contains(promise));
        let config = LinuxNetworkConfig::new("/run", "/var");
        assert_eq!(config.full_check, Duration::from_secs(15));
    }
}
