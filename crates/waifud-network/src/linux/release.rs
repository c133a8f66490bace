//! Releases the lease of a deleted guest.
//!
//! dnsmasq keeps a lease until it expires, regardless of its configuration, and would not give the address to another guest
//! for hours. A DHCPRELEASE (RFC 2131, section 4.4.6) removes a lease without a restart of dnsmasq.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::UdpSocket;
use waifud_types::{MacAddr, Timestamp};

use super::files;
use crate::{NetworkError, NetworkState};

/// A lease in dnsmasq's database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Lease {
    pub(super) mac: MacAddr,
    pub(super) address: Ipv4Addr,
}

/// Reads dnsmasq's lease database: a lease is a line `EXPIRY MAC ADDRESS NAME CLIENT-ID`. Other lines (the server's own
/// id) are ignored.
pub(super) fn leases(memory: &str) -> Vec<Lease> {
    let lines = memory.lines().map(str::split_ascii_whitespace);
    lines
        .filter_map(|mut words| {
            Some(Lease {
                mac: words.nth(1)?.parse().ok()?,
                address: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// When each lease was last confirmed: its expiry minus the lease time, because a confirmation renews it for the full
/// time. Leases that never expire (expiry 0) are left out.
pub(super) fn acknowledged(memory: &str, lease_time: Duration) -> BTreeMap<MacAddr, Timestamp> {
    let lines = memory.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let expiry: i64 = words.next()?.parse().ok()?;
        let mac = words.next()?.parse().ok()?;
        let expiry = Timestamp::from_second(expiry).ok().filter(|_| expiry > 0)?;
        Some((mac, expiry.checked_sub(lease_time).ok()?))
    });
    lines.collect()
}

/// Leases that no port of the state has.
pub(super) fn stale(memory: &str, state: &NetworkState) -> Vec<Lease> {
    let is_known = |lease: &Lease| {
        let mut ports = state.ports.iter();
        ports.any(|port| (port.mac, port.address) == (lease.mac, lease.address))
    };
    let mut unknown = leases(memory);
    unknown.retain(|lease| !is_known(lease));
    unknown
}

/// Sends the releases to dnsmasq. They never leave the host, because the gateway's address is the host's own, but the
/// socket is bound to the bridge, because dnsmasq listens there.
pub(super) async fn send(leases: &[Lease], state: &NetworkState) -> Result<(), NetworkError> {
    let io = |source| NetworkError::Io {
        what: "releasing a lease".to_owned(),
        source,
    };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .await
        .map_err(io)?;
    socket
        .bind_device(Some(state.bridge.as_bytes()))
        .map_err(io)?;
    for lease in leases {
        let message = message(*lease, state.gateway);
        socket
            .send_to(&message, (state.gateway, 67))
            .await
            .map_err(io)?;
    }
    Ok(())
}

/// Removes stale leases from dnsmasq's database while dnsmasq is not running.
pub(super) fn prune(path: &std::path::Path, state: &NetworkState) -> Result<(), NetworkError> {
    let Some(memory) = files::read(path)? else {
        return Ok(());
    };
    if stale(&memory, state).is_empty() {
        return Ok(());
    }
    let mut kept = String::new();
    for line in memory.lines().filter(|line| stale(line, state).is_empty()) {
        kept.push_str(line);
        kept.push('\n');
    }
    files::replace(path, &kept)
}

/// A DHCPRELEASE (RFC 2131, section 2 and table 5).
fn message(lease: Lease, server: Ipv4Addr) -> Vec<u8> {
    const BOOTREQUEST: u8 = 1;
    const ETHERNET: u8 = 1;
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    const TYPE_RELEASE: [u8; 3] = [53, 1, 7];
    const SERVER_ID: [u8; 2] = [54, 4];
    const END: u8 = 255;

    let mut message = vec![BOOTREQUEST, ETHERNET, 6, 0];
    // xid, secs, flags
    message.resize(12, 0);
    message.extend(lease.address.octets());
    // yiaddr, siaddr, giaddr
    message.resize(28, 0);
    message.extend(lease.mac.bytes());
    // the rest of chaddr, sname, file
    message.resize(236, 0);
    message.extend(COOKIE);
    message.extend(TYPE_RELEASE);
    message.extend(SERVER_ID);
    message.extend(server.octets());
    message.push(END);
    // The minimum length of BOOTP messages (RFC 951); some servers drop shorter ones.
    message.resize(300, 0);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::state;

    const MEMORY: &str = "1795330800 52:54:00:00:00:01 10.144.1.11 guest-0 *\n\
                          1795330800 52:54:00:00:00:02 10.144.1.99 * *\n\
                          1795330800 52:54:00:00:00:77 10.144.1.12 old *\n\
                          duid 00:01:00:01\n";

    #[test]
    fn a_lease_is_stale_unless_mac_and_address_belong_together() {
        let addresses: Vec<_> = stale(MEMORY, &state(2))
            .iter()
            .map(|lease| lease.address.to_string())
            .collect();
        assert_eq!(addresses, ["10.144.1.99", "10.144.1.12"]);
    }

    #[test]
    fn a_lease_was_confirmed_its_lease_time_before_its_expiry() {
        let memory = format!("{MEMORY}0 52:54:00:00:00:03 10.144.1.13 * *\n");
        let at = acknowledged(&memory, Duration::from_hours(12));
        assert_eq!(at.len(), 3);
        let mac = "52:54:00:00:00:01".parse().unwrap();
        assert_eq!(at[&mac].as_second(), 1_795_330_800 - 12 * 3600);
    }

    #[test]
    fn pruning_keeps_known_leases_and_other_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        prune(&path, &state(2)).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, MEMORY).unwrap();
        prune(&path, &state(2)).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "1795330800 52:54:00:00:00:01 10.144.1.11 guest-0 *\nduid 00:01:00:01\n"
        );
    }

    #[test]
    fn a_release_has_the_layout_of_the_standard() {
        let lease = leases(MEMORY)[0];
        let message = message(lease, Ipv4Addr::new(10, 144, 1, 1));
        assert_eq!(message.len(), 300);
        assert_eq!(message[12..16], [10, 144, 1, 11]);
        assert_eq!(message[28..34], [0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(
            message[236..249],
            [99, 130, 83, 99, 53, 1, 7, 54, 4, 10, 144, 1, 1]
        );
        assert_eq!(message[249], 255);
    }
}
