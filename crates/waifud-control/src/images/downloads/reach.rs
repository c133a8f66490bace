//! Which addresses images may be downloaded from, and for which errors contain no details. Pure.
//!
//! waifud can reach services that its users cannot: on its own machine, in the guests' networks and in private networks.
//! Addresses of waifud's machine and of guests are refused. Mirrors in private networks are allowed, but details about
//! their answers are only in waifud's log.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::{IpNet, Ipv4Net};

pub(super) const LOOPBACK: &str = "the URL resolves to waifud's own machine; set downloads_from_loopback in waifud.toml to allow this";

/// The facts that decide about addresses in one attempt.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Whether this machine's own services are allowed; http from them is treated as secure.
    pub loopback: bool,
    /// The addresses of the machine's interfaces.
    pub own: Vec<IpAddr>,
    /// The range of the guests' subnets.
    pub guests: Option<Ipv4Net>,
    /// Private networks, for which errors contain no details.
    pub private: Vec<IpNet>,
}

/// Whether an attempt has contacted, or was about to contact, a private address.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail(Arc<AtomicBool>);

impl Trail {
    pub(super) fn record(&self, address: IpAddr, reach: &Reach) {
        if is_private(address, reach) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_private(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The private networks of RFC 1918, RFC 6598 and RFC 4193.
pub(super) fn private_networks() -> Vec<IpNet> {
    [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
    ]
    .iter()
    .filter_map(|text| text.parse().ok())
    .collect()
}

/// Whether an address, or an embedded one, is in a private network.
pub(super) fn is_private(address: IpAddr, reach: &Reach) -> bool {
    with_embedded(address).any(|address| reach.private.iter().any(|net| net.contains(&address)))
}

/// Why an address is forbidden. The metadata services of clouds are always forbidden.
pub fn forbidden(address: IpAddr, reach: &Reach) -> Option<&'static str> {
    if let IpAddr::V6(v6) = address
        && v6.segments().starts_with(&[0x64, 0xff9b, 1])
    {
        // RFC 8215: the position of the embedded IPv4 address is a local choice.
        return Some("the URL resolves to a NAT64 address of the local network (64:ff9b:1::/48)");
    }
    with_embedded(address).find_map(|address| forbidden_itself(address, reach))
}

fn forbidden_itself(address: IpAddr, reach: &Reach) -> Option<&'static str> {
    if let (IpAddr::V4(v4), Some(guests)) = (address, reach.guests)
        && guests.contains(&v4)
    {
        return Some("the URL resolves to an address in the guests' network");
    }
    if address.is_loopback() || reach.own.contains(&address) {
        return (!reach.loopback).then_some(LOOPBACK);
    }
    let (link_local, metadata, nowhere) = match address {
        IpAddr::V4(v4) => (
            v4.is_link_local(),
            // Alibaba, Azure and Oracle; other clouds use link-local addresses.
            [[100, 100, 100, 200], [168, 63, 129, 16], [192, 0, 0, 192]].contains(&v4.octets()),
            v4.is_broadcast() || v4.is_multicast() || v4.octets()[0] == 0,
        ),
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            // Amazon.
            v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
            v6.is_unspecified() || v6.is_multicast(),
        ),
    };
    if link_local || metadata {
        Some("the URL resolves to a metadata service or another link-local address")
    } else if nowhere {
        Some("the URL resolves to an address that cannot belong to a server")
    } else {
        None
    }
}

/// The address itself, and the IPv4 address that a translator or tunnel would extract from it.
fn with_embedded(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let address = address.to_canonical();
    let inner = match address {
        IpAddr::V6(v6) => embedded(v6).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    std::iter::once(address).chain(inner)
}

/// NAT64 (RFC 6052), 6to4 (RFC 3056), Teredo (RFC 4380), ISATAP (RFC 5214) and IPv4-compatible addresses (RFC 4291).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let octets = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(octets(high, low)),
        [0x2001, 0, _, _, _, _, high, low] => Some(octets(!high, !low)),
        // `::` and `::1` contain no IPv4 address.
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => Some(octets(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Reach {
        Reach {
            loopback: false,
            own: vec![
                "192.168.1.2".parse().unwrap(),
                "2001:db8::2".parse().unwrap(),
            ],
            guests: Some("10.144.0.0/12".parse().unwrap()),
            private: private_networks(),
        }
    }

    fn refused(address: &str, reach: &Reach) -> bool {
        forbidden(address.parse().unwrap(), reach).is_some()
    }

    #[test]
    fn addresses_of_waifud_and_of_guests_are_refused_in_every_form() {
        for bad in [
            "192.168.1.2",
            "::ffff:192.168.1.2",
            "2001:db8::2",
            "10.144.1.1",
            "10.159.255.254",
            "64:ff9b::10.144.1.1",
            "64:ff9b::192.168.1.2",
            "64:ff9b::127.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::5",
            "2002:a90:101::1",
            "2002:7f00:1::",
            "2001:0:1:2:3:4:5601:5601",
            "::127.0.0.1",
            "::169.254.169.254",
            "fe80::5efe:10.144.1.1",
            "2001:db8::5efe:10.144.1.1",
            "168.63.129.16",
            "192.0.0.192",
        ] {
            assert!(refused(bad, &home()), "{bad}");
        }
        for fine in [
            "192.168.1.4",
            "10.1.2.3",
            "10.160.0.1",
            "1.1.1.1",
            "2606:4700::1111",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ] {
            assert!(!refused(fine, &home()), "{fine}");
        }
    }

    #[test]
    fn the_loopback_setting_allows_only_this_machine() {
        let open = Reach {
            loopback: true,
            ..home()
        };
        for fine in ["127.0.0.1", "::1", "192.168.1.2", "2001:db8::2"] {
            assert!(!refused(fine, &open), "{fine}");
        }
        for bad in ["10.144.1.1", "169.254.169.254", "64:ff9b::10.144.1.1"] {
            assert!(refused(bad, &open), "{bad}");
        }
    }

    #[test]
    fn private_addresses_are_recognized_in_every_form() {
        let reach = home();
        let private = |text: &str| is_private(text.parse().unwrap(), &reach);
        for yes in ["192.168.1.4", "10.1.2.3", "64:ff9b::10.1.2.3", "fd00::1"] {
            assert!(private(yes), "{yes}");
        }
        for no in ["1.1.1.1", "2606:4700::1111", "172.32.0.1"] {
            assert!(!private(no), "{no}");
        }
        let trail = Trail::default();
        trail.record("1.1.1.1".parse().unwrap(), &reach);
        assert!(!trail.is_private());
        trail.record("10.1.2.3".parse().unwrap(), &reach);
        trail.record("1.1.1.1".parse().unwrap(), &reach);
        assert!(trail.is_private(), "one contact is enough");
    }
}
