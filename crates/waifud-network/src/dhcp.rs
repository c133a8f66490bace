//! The files of dnsmasq as text: its configuration, the guests' leases and their names.
//!
//! The configuration depends on the node. Leases and names depend on guests and are reloaded on a signal. Every guest has
//! exactly one lease, which waifud chooses and binds to its MAC address; dnsmasq never chooses an address.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use waifud_types::Name;
use waifud_types::dns::reverse_zones;

use crate::{NetworkState, Port, RemoteName, gateway_of};

/// The MTU that a client assumes without a DHCP option (Ethernet, RFC 894).
const ETHERNET_MTU: u16 = 1500;

/// How many queries of all guests may wait for upstream servers at the same time. dnsmasq refuses further ones of any
/// guest. With the rules' limit for each guest ([`crate::ruleset`]), eight guests that send too many leave slots for the
/// others. A query uses a few hundred octets while it waits.
pub(crate) const QUESTIONS_MAX: u32 = 10_000;

/// The parts of the configuration that do not come from the state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DhcpSettings {
    /// The files that it reads and writes.
    pub(crate) files: DhcpFiles,
    /// The host's list of name servers.
    pub(crate) resolv_conf: PathBuf,
    /// The user and group that it switches to once its sockets are open.
    pub(crate) user: Option<(String, String)>,
    /// How long a lease is valid.
    pub(crate) lease_time: Duration,
}

/// The files of dnsmasq besides its configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DhcpFiles {
    /// The guests' leases, by MAC address: [`leases`].
    pub(crate) leases: PathBuf,
    /// The guests' names: [`names`].
    pub(crate) names: PathBuf,
    /// The names of other nodes' guests: [`remote_names`].
    pub(crate) remote_names: PathBuf,
    /// The reverse zones of other nodes' guests: [`remote_zones`].
    pub(crate) remote_zones: PathBuf,
    /// dnsmasq's lease database.
    pub(crate) memory: PathBuf,
    /// Where it writes its process id.
    pub(crate) pid: PathBuf,
}

/// The configuration file.
///
/// Client ids are ignored, because a guest that changes its DHCP client during boot would get a second address. Pings are
/// not sent, because each offer would take 3 s. Names of guests are never forwarded to other servers. With `bind-dynamic`
/// and one interface, port 53 of the host's other addresses stays free.
pub(crate) fn configuration(state: &NetworkState, settings: &DhcpSettings) -> String {
    let NetworkState {
        bridge,
        subnet,
        gateway,
        domain,
        mtu,
        ..
    } = state;
    let DhcpSettings {
        files,
        resolv_conf,
        user,
        lease_time,
    } = settings;
    let homes = state.homes();
    let show = |path: &Path| path.display().to_string();
    let mut lines = vec![
        "# Written by waifud-agentd; changes are overwritten.".to_owned(),
        format!("pid-file={}", show(&files.pid)),
        format!("interface={bridge}"),
        "except-interface=lo".to_owned(),
        "bind-dynamic".to_owned(),
        "no-hosts".to_owned(),
        format!("addn-hosts={}", show(&files.names)),
        format!("addn-hosts={}", show(&files.remote_names)),
        format!("servers-file={}", show(&files.remote_zones)),
        format!("resolv-file={}", show(resolv_conf)),
        "domain-needed".to_owned(),
        format!("dns-forward-max={QUESTIONS_MAX}"),
        format!("domain={domain}"),
        format!("local=/{domain}/"),
        "expand-hosts".to_owned(),
        format!(
            "dhcp-range={},static,{},{}s",
            subnet.network(),
            subnet.netmask(),
            lease_time.as_secs()
        ),
        format!("dhcp-hostsfile={}", show(&files.leases)),
        format!("dhcp-leasefile={}", show(&files.memory)),
        format!(
            "dhcp-lease-max={}",
            addresses(*subnet) + homes.iter().copied().map(addresses).sum::<u64>()
        ),
        "dhcp-authoritative".to_owned(),
        "dhcp-ignore-clid".to_owned(),
        "no-ping".to_owned(),
        // Logging would write two to four lines for each query, and a guest can send any number of queries.
        "quiet-dhcp".to_owned(),
        format!("dhcp-option=option:router,{gateway}"),
        format!("dhcp-option=option:dns-server,{gateway}"),
        format!("dhcp-option=option:domain-search,{domain}"),
        // RFC 3442: a client that uses this option ignores the router above, so it contains the default route as well.
        format!(
            "dhcp-option=option:classless-static-route,169.254.169.254/32,{gateway},0.0.0.0/0,{gateway}"
        ),
    ];
    for home in homes {
        lines.extend(lines_of_home(bridge, home, lease_time));
    }
    lines.extend(
        reverse_zones(*subnet)
            .iter()
            .map(|zone| format!("local=/{zone}/")),
    );
    if *mtu != ETHERNET_MTU {
        lines.push(format!("dhcp-option=option:mtu,{mtu}"));
    }
    if let Some((user, group)) = user {
        lines.push(format!("user={user}"));
        lines.push(format!("group={group}"));
    }
    lines.join("\n") + "\n"
}

/// The range of guests that moved here and kept the address of another node's subnet, and the gateway there. The node has no
/// address of that subnet, hence `shared-network`. Options with a tag take precedence over those without.
fn lines_of_home(bridge: &str, home: Ipv4Net, lease_time: &Duration) -> [String; 4] {
    let (network, gateway) = (home.network(), gateway_of(home));
    let tag = format!("home-{network}").replace('.', "-");
    [
        format!("shared-network={bridge},{network}"),
        format!(
            "dhcp-range=set:{tag},{network},static,{},{}s",
            home.netmask(),
            lease_time.as_secs()
        ),
        format!("dhcp-option=tag:{tag},option:router,{gateway}"),
        format!(
            "dhcp-option=tag:{tag},option:classless-static-route,169.254.169.254/32,{gateway},0.0.0.0/0,{gateway}"
        ),
    ]
}

/// The number of addresses after the first one.
fn addresses(subnet: Ipv4Net) -> u64 {
    u64::from(u32::from(subnet.broadcast())) - u64::from(u32::from(subnet.network()))
}

/// The leases: one line `MAC,address,name` each. Only the first port of an instance has the name.
pub(crate) fn leases(state: &NetworkState) -> String {
    let mut named = elsewhere(state);
    let mut text = String::new();
    for port in &state.ports {
        // Writing to a String cannot fail.
        let _ = write!(text, "{},{}", port.mac, port.address);
        if named.insert(&port.name) {
            let _ = write!(text, ",{}", port.name);
        }
        text.push('\n');
    }
    text
}

/// The names, in the format of `/etc/hosts`. The first line identifies the `load`: once [`mark`] of it resolves, dnsmasq
/// has read this file.
pub(crate) fn names(state: &NetworkState, load: u64) -> String {
    let mut text = format!("0.0.0.0 {}\n", mark(load));
    for port in named(state) {
        let (name, domain) = (&port.name, &state.domain);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {name}.{domain} {name}", port.address);
    }
    text
}

/// The ports that are found by the name of their instance.
pub(crate) fn named(state: &NetworkState) -> impl Iterator<Item = &Port> {
    let elsewhere = elsewhere(state);
    let here = state.ports.iter();
    here.filter(move |port| !elsewhere.contains(&port.name))
}

/// The names that belong to guests of other nodes.
fn elsewhere(state: &NetworkState) -> HashSet<&Name> {
    state
        .remote_names
        .iter()
        .map(|remote| &remote.name)
        .collect()
}

/// The names of other nodes' guests, in the format of `/etc/hosts`.
pub(crate) fn remote_names(state: &NetworkState) -> String {
    let mut text = String::new();
    for RemoteName { name, address } in state.remote_names.iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address} {name}.{} {name}", state.domain);
    }
    text
}

/// The reverse zones of other nodes' subnets: addresses that no guest has are unknown there, and are not asked of other servers.
/// In a file that dnsmasq reads again, because other nodes come and go.
pub(crate) fn remote_zones(state: &NetworkState) -> String {
    let subnets = state.remote_subnets.iter().map(|remote| remote.subnet);
    let zones: BTreeSet<_> = subnets.flat_map(reverse_zones).collect();
    let own = reverse_zones(state.subnet);
    let mut text = String::new();
    for zone in zones.iter().filter(|zone| !own.contains(zone)) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "server=/{zone}/");
    }
    text
}

/// The name of a load. Names of guests contain no dots, so no guest can have it.
pub(crate) fn mark(load: u64) -> String {
    format!("load-{load}.waifud.invalid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::inet::{DNS_BURST, DNS_RATE};
    use crate::samples::{port, remote, remote_name, state};

    /// Query slots remain for others while eight guests flood dnsmasq, which gives up a query after ten seconds (`TIMEOUT` in
    /// its config.h). A test in `tests/linux/dns.rs` floods it.
    const _: () = assert!(8 * (DNS_BURST + 10 * DNS_RATE) < QUESTIONS_MAX);

    fn settings() -> DhcpSettings {
        DhcpSettings {
            files: DhcpFiles {
                leases: "/run/waifud/network/leases".into(),
                names: "/run/waifud/network/names".into(),
                remote_names: "/run/waifud/network/names.remote".into(),
                remote_zones: "/run/waifud/network/zones".into(),
                memory: "/var/lib/waifud/network/dnsmasq.leases".into(),
                pid: "/run/waifud/network/dnsmasq.pid".into(),
            },
            resolv_conf: "/etc/resolv.conf".into(),
            user: Some(("dnsmasq".to_owned(), "nogroup".to_owned())),
            lease_time: Duration::from_hours(12),
        }
    }

    #[test]
    fn the_configuration_matches_its_snapshot() {
        let mut state = state(2);
        state.mtu = 1420;
        insta::assert_snapshot!(configuration(&state, &settings()));
    }

    #[test]
    fn guests_change_leases_and_names_and_not_the_configuration() {
        assert_eq!(
            configuration(&state(0), &settings()),
            configuration(&state(9), &settings())
        );
        assert!(!configuration(&state(0), &settings()).contains("option:mtu"));
    }

    #[test]
    fn leases_and_names_have_one_line_per_port() {
        let mut state = state(2);
        let mut second = port(7);
        second.name = state.ports[0].name.clone();
        state.ports.push(second);
        insta::assert_snapshot!(leases(&state) + &names(&state, 3));
    }

    #[test]
    fn a_name_that_belongs_to_another_node_does_not_lead_to_a_port_of_this_one() {
        let mut state = state(2);
        state.remote_names = [remote_name("guest-0", 2, 7), remote_name("web", 2, 8)].into();
        let leases = leases(&state);
        assert!(!leases.contains("guest-0") && leases.contains("10.144.1.11"));
        assert!(leases.contains("guest-1"));
        let names = names(&state, 3);
        assert!(!names.contains("guest-0") && names.contains("10.144.1.12 guest-1"));
        assert_eq!(
            super::remote_names(&state),
            "10.144.2.7 guest-0.waifu.internal guest-0\n10.144.2.8 web.waifu.internal web\n"
        );
    }

    #[test]
    fn reverse_zones_of_other_nodes_are_listed_once_and_without_that_of_this_node() {
        let mut state = state(0);
        let with = |index: u8, subnet: &str| crate::RemoteSubnet {
            subnet: subnet.parse().unwrap(),
            ..remote(index)
        };
        state.remote_subnets = vec![
            with(2, "10.144.2.0/24"),
            with(3, "10.144.2.0/24"),
            with(4, "10.144.4.0/23"),
            with(5, "10.144.1.0/24"),
        ];
        assert_eq!(
            remote_zones(&state),
            "server=/2.144.10.in-addr.arpa/\nserver=/4.144.10.in-addr.arpa/\nserver=/5.144.10.in-addr.arpa/\n"
        );
    }
}
