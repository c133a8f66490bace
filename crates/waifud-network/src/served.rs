//! The files of the dnsmasq that serves guests' names at an address of the host, as text.
//!
//! It answers for the guests' domain and the reverse zones of their subnets. It has no other servers to ask, so it refuses
//! all other queries, and no machine can use it as its resolver.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use waifud_types::dns::reverse_zones;

use crate::dhcp::{mark, named};
use crate::{NetworkState, RemoteName};

/// The files that it reads and writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ServedFiles {
    /// Names of this node's and other nodes' guests: [`names`]. Read again on a signal.
    pub(crate) names: PathBuf,
    /// Their reverse zones: [`zones`]. Read again on a signal.
    pub(crate) zones: PathBuf,
    /// Where it writes its process id.
    pub(crate) pid: PathBuf,
}

/// The configuration file. With `bind-dynamic`, the address may disappear and return.
pub(crate) fn configuration(
    listen: SocketAddrV4,
    domain: &str,
    files: &ServedFiles,
    user: Option<&(String, String)>,
) -> String {
    let mut lines = vec![
        "# Written by waifud-agentd; changes are overwritten.".to_owned(),
        format!("pid-file={}", files.pid.display()),
        format!("listen-address={}", listen.ip()),
        format!("port={}", listen.port()),
        "bind-dynamic".to_owned(),
        "no-hosts".to_owned(),
        "no-resolv".to_owned(),
        format!("addn-hosts={}", files.names.display()),
        format!("local=/{domain}/"),
        format!("servers-file={}", files.zones.display()),
    ];
    if let Some((user, group)) = user {
        lines.push(format!("user={user}"));
        lines.push(format!("group={group}"));
    }
    lines.join("\n") + "\n"
}

/// The names of all guests in the format of `/etc/hosts`, with the domain only: names without dots belong to the network of
/// the machine that asks. The first line identifies the `load`, see [`mark`].
pub(crate) fn names(state: &NetworkState, load: u64) -> String {
    let mut text = format!("0.0.0.0 {}\n", mark(load));
    let here = named(state).map(|port| (port.address, &port.name));
    let elsewhere = state.remote_names.iter();
    let elsewhere = elsewhere.map(|RemoteName { name, address }| (*address, name));
    for (address, name) in here.chain(elsewhere) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{address} {name}.{}", state.domain);
    }
    text
}

/// The load that a text of [`names`] belongs to.
pub(crate) fn load_of(names: &str) -> Option<u64> {
    let (_, mark) = names.lines().next()?.split_once(' ')?;
    let (number, _) = mark.strip_prefix("load-")?.split_once('.')?;
    number.parse().ok()
}

/// The reverse zones of all guests' subnets: addresses there that no guest has are unknown.
pub(crate) fn zones(state: &NetworkState) -> String {
    let subnets = state.remote_subnets.iter().map(|remote| remote.subnet);
    let subnets = subnets.chain([state.subnet]);
    let zones: BTreeSet<_> = subnets.flat_map(reverse_zones).collect();
    let mut text = String::new();
    for zone in zones {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "server=/{zone}/");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{remote, remote_name, state};

    #[test]
    fn names_have_the_domain_and_belong_to_one_node() {
        let mut state = state(2);
        state.remote_names = [remote_name("guest-0", 2, 7)].into();
        state.remote_subnets = vec![remote(2)];
        let names = names(&state, 3);
        assert_eq!(
            names,
            "0.0.0.0 load-3.waifud.invalid\n10.144.1.12 guest-1.waifu.internal\n10.144.2.7 guest-0.waifu.internal\n"
        );
        assert_eq!(load_of(&names), Some(3));
        assert_eq!(load_of(""), None);
        assert_eq!(
            zones(&state),
            "server=/1.144.10.in-addr.arpa/\nserver=/2.144.10.in-addr.arpa/\n"
        );
    }

    #[test]
    fn the_configuration_has_no_other_servers() {
        let files = ServedFiles {
            names: "/run/names".into(),
            zones: "/run/zones".into(),
            pid: "/run/pid".into(),
        };
        let user = ("dnsmasq".to_owned(), "nogroup".to_owned());
        let listen = "192.168.1.10:5353".parse().unwrap();
        insta::assert_snapshot!(configuration(listen, "waifu.internal", &files, Some(&user)));
    }
}
