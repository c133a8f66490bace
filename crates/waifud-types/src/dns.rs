//! Names of instances for machines that are not guests: what nodes report, and the lines for resolvers.
//!
//! Nodes answer for the guests' domain and for the reverse zones of their addresses, and for nothing else. So other machines
//! reach them through the resolver of their network, which forwards only these zones.

use std::fmt::Write;
use std::net::SocketAddr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The domain of guests' names, unless a node's configuration sets another one.
pub const DOMAIN: &str = "waifu.internal";

/// The port of DNS (RFC 1035, section 4.2).
pub const PORT: u16 = 53;

/// The names that a node serves on its own addresses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DnsFacts {
    /// The domain of the names.
    pub domain: String,
    /// The addresses in the node's configuration.
    pub listen: Vec<DnsListener>,
}

/// An address at which a node serves names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DnsListener {
    /// The address and the port.
    #[schema(value_type = String)]
    pub address: SocketAddr,
    /// Why no names are served there; null if they are.
    pub error: Option<String>,
}

/// Whether a text is a domain name of letters, digits, `-` and `_`. A node's domain comes from the node, and must not add lines to
/// the configuration of a resolver.
pub fn is_domain(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(allowed);
    text.len() <= 253 && text.split('.').all(is_label)
}

/// The reverse zones of a network (RFC 1035, section 3.5), which end at whole octets. A network smaller than the smallest
/// zone has none.
pub fn reverse_zones(network: Ipv4Net) -> Vec<String> {
    let Some(prefix) = [8, 16, 24].into_iter().find(|p| network.prefix_len() <= *p) else {
        return Vec::new();
    };
    let zone = |part: Ipv4Net| {
        let octets = part.network().octets().into_iter();
        let named = octets.take(usize::from(prefix / 8)).rev();
        let labels: Vec<_> = named.map(|octet| octet.to_string()).collect();
        format!("{}.in-addr.arpa", labels.join("."))
    };
    let parts = network.subnets(prefix).into_iter().flatten();
    parts.map(zone).collect()
}

/// A program that resolves names for other machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolver {
    /// Pi-hole, whose resolver is dnsmasq.
    Pihole,
    /// Unbound.
    Unbound,
    /// dnsmasq.
    Dnsmasq,
    /// systemd-resolved.
    SystemdResolved,
}

impl Resolver {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Pihole,
        Self::Unbound,
        Self::Dnsmasq,
        Self::SystemdResolved,
    ];

    /// The lines of its configuration file that make it ask `servers` about `domain` and `reverse_zones`. Any of the servers
    /// may be off.
    pub fn lines(self, domain: &str, reverse_zones: &[String], servers: &[SocketAddr]) -> String {
        match self {
            Self::Pihole => {
                "# /etc/dnsmasq.d/10-waifud.conf; Pi-hole 6 reads it after: pihole-FTL --config misc.etc_dnsmasq_d true\n"
                    .to_owned()
                    + &dnsmasq(domain, reverse_zones, servers)
            }
            Self::Dnsmasq => {
                "# /etc/dnsmasq.d/waifud.conf\n".to_owned() + &dnsmasq(domain, reverse_zones, servers)
            }
            Self::Unbound => unbound(domain, reverse_zones, servers),
            Self::SystemdResolved => systemd_resolved(domain, reverse_zones, servers),
        }
    }
}

/// The domain and its reverse zones.
fn zones<'a>(
    domain: &'a str,
    reverse_zones: &'a [String],
) -> impl Iterator<Item = &'a str> + Clone {
    std::iter::once(domain).chain(reverse_zones.iter().map(String::as_str))
}

/// An address with its port unless that is the usual one.
fn address(server: &SocketAddr, separator: char) -> String {
    match server.port() {
        PORT => server.ip().to_string(),
        port => format!("{}{separator}{port}", server.ip()),
    }
}

/// `rebind-domain-ok`: answers with private addresses are expected (`stop-dns-rebind` would discard them).
fn dnsmasq(domain: &str, reverse_zones: &[String], servers: &[SocketAddr]) -> String {
    let mut text = format!("rebind-domain-ok=/{domain}/\n");
    for zone in zones(domain, reverse_zones) {
        for server in servers {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "server=/{zone}/{}", address(server, '#'));
        }
    }
    text
}

/// `private-domain`: as above (`private-address`). `domain-insecure`: the zones have no signatures. `local-zone`: unbound
/// answers for private reverse zones itself otherwise.
fn unbound(domain: &str, reverse_zones: &[String], servers: &[SocketAddr]) -> String {
    let mut text = format!(
        "# /etc/unbound/unbound.conf.d/waifud.conf\nserver:\n    private-domain: \"{domain}.\"\n"
    );
    let zones = zones(domain, reverse_zones);
    for zone in zones.clone() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    domain-insecure: \"{zone}.\"");
        let _ = writeln!(text, "    local-zone: \"{zone}.\" transparent");
    }
    for zone in zones {
        let _ = writeln!(text, "forward-zone:\n    name: \"{zone}.\"");
        for server in servers {
            let _ = writeln!(text, "    forward-addr: {}", address(server, '@'));
        }
    }
    text
}

/// A domain that begins with a tilde decides where names are resolved, and is not added to names without dots. All servers that are
/// configured globally are taken for equal, so nodes can stand only beside servers of links, as DHCP sets them.
fn systemd_resolved(domain: &str, reverse_zones: &[String], servers: &[SocketAddr]) -> String {
    let servers = servers.iter().map(|server| match server.port() {
        PORT => server.ip().to_string(),
        _ => server.to_string(),
    });
    let zones = zones(domain, reverse_zones).map(|zone| format!("~{zone}"));
    format!(
        "# /etc/systemd/resolved.conf.d/waifud.conf; other DNS servers must be those of links, not \"Global\" in: resolvectl status\n\
         [Resolve]\nDNS={}\nDomains={}\n",
        servers.collect::<Vec<_>>().join(" "),
        zones.collect::<Vec<_>>().join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_zones_cover_the_network_and_nothing_else() {
        let zones = |network: &str| reverse_zones(network.parse().unwrap());
        assert_eq!(zones("10.144.1.0/24"), ["1.144.10.in-addr.arpa"]);
        assert_eq!(zones("10.144.0.0/16"), ["144.10.in-addr.arpa"]);
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
        let half = ["2.144.10.in-addr.arpa", "3.144.10.in-addr.arpa"];
        assert_eq!(zones("10.144.2.0/23"), half);
        assert_eq!(zones("10.144.2.0/25"), [""; 0]);
        let range = zones("10.144.0.0/12");
        assert_eq!(range.len(), 16);
        assert_eq!(range[15], "159.10.in-addr.arpa");
    }

    #[test]
    fn a_domain_consists_of_labels() {
        for text in ["waifu.internal", "lan", "a_b.Home-2"] {
            assert!(is_domain(text), "{text}");
        }
        for text in [
            "",
            ".",
            "a..b",
            "a.b/\ndhcp-script=/x",
            "a b",
            "a/b",
            "a\"b",
        ] {
            assert!(!is_domain(text), "{text}");
        }
        assert!(!is_domain(&"a".repeat(64)) && !is_domain(&["abc"; 64].join(".")));
    }

    #[test]
    fn every_resolver_gets_every_zone_and_every_server() {
        let zones = ["144.10.in-addr.arpa", "145.10.in-addr.arpa"].map(str::to_owned);
        let servers = ["192.168.1.10:53", "192.168.1.11:5353"];
        let servers = servers.map(|text| text.parse().unwrap());
        let text = |resolver: Resolver| resolver.lines(DOMAIN, &zones, &servers);
        let dnsmasq = "rebind-domain-ok=/waifu.internal/\n\
             server=/waifu.internal/192.168.1.10\n\
             server=/waifu.internal/192.168.1.11#5353\n\
             server=/144.10.in-addr.arpa/192.168.1.10\n\
             server=/144.10.in-addr.arpa/192.168.1.11#5353\n\
             server=/145.10.in-addr.arpa/192.168.1.10\n\
             server=/145.10.in-addr.arpa/192.168.1.11#5353\n";
        for resolver in [Resolver::Pihole, Resolver::Dnsmasq] {
            let text = text(resolver);
            let (place, lines) = text.split_once('\n').unwrap();
            assert!(place.starts_with("# /etc/dnsmasq.d/"), "{place}");
            assert_eq!(lines, dnsmasq);
        }
        assert_eq!(
            text(Resolver::Unbound),
            r#"# /etc/unbound/unbound.conf.d/waifud.conf
server:
    private-domain: "waifu.internal."
    domain-insecure: "waifu.internal."
    local-zone: "waifu.internal." transparent
    domain-insecure: "144.10.in-addr.arpa."
    local-zone: "144.10.in-addr.arpa." transparent
    domain-insecure: "145.10.in-addr.arpa."
    local-zone: "145.10.in-addr.arpa." transparent
forward-zone:
    name: "waifu.internal."
    forward-addr: 192.168.1.10
    forward-addr: 192.168.1.11@5353
forward-zone:
    name: "144.10.in-addr.arpa."
    forward-addr: 192.168.1.10
    forward-addr: 192.168.1.11@5353
forward-zone:
    name: "145.10.in-addr.arpa."
    forward-addr: 192.168.1.10
    forward-addr: 192.168.1.11@5353
"#
        );
        assert_eq!(
            text(Resolver::SystemdResolved),
            "# /etc/systemd/resolved.conf.d/waifud.conf; other DNS servers must be those of links, not \"Global\" in: resolvectl \
             status\n[Resolve]\n\
             DNS=192.168.1.10 192.168.1.11:5353\n\
             Domains=~waifu.internal ~144.10.in-addr.arpa ~145.10.in-addr.arpa\n"
        );
    }
}
