//! waifud's own addresses: the names in its certificate, and the URLs that nodes use.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Checks a URL in `advertise`: `https://HOST[:PORT]`, without a path.
pub fn check_url(text: &str) -> Result<(), String> {
    host(text).map(drop).ok_or_else(|| {
        format!("invalid URL {text:?}; use a URL without a path, for example \"https://waifud.lan:7373\"")
    })
}

/// The host of a URL in `advertise`, without brackets.
fn host(url: &str) -> Option<String> {
    let authority = url.strip_prefix("https://")?.trim_end_matches('/');
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return Some(address.ip().to_string());
    }
    let bare = authority.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let (name, port) = authority.split_once(':').unwrap_or((authority, "443"));
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (port.parse::<u16>().is_ok() && name.len() <= 253 && name.split('.').all(label))
        .then(|| name.to_ascii_lowercase())
}

/// The URLs that nodes use: those in `advertise`, or else the addresses on which waifud listens. An unspecified address
/// (`0.0.0.0`, `[::]`) is replaced by each address in `own`.
pub fn urls(advertise: &[String], bound: &[SocketAddr], own: &[IpAddr]) -> Vec<String> {
    if !advertise.is_empty() {
        return advertise
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
    }
    let mut urls = Vec::new();
    for at in expand(bound, own) {
        let url = format!("https://{at}");
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

/// The names in waifud's certificate, sorted and without duplicates.
pub fn names(
    advertise: &[String],
    bound: &[SocketAddr],
    own: &[IpAddr],
    host_name: Option<&str>,
) -> Vec<String> {
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"]
        .map(str::to_owned)
        .into_iter()
        .collect();
    names.extend(advertise.iter().filter_map(|url| host(url)));
    names.extend(expand(bound, own).iter().map(|at| at.ip().to_string()));
    // A host name that is not a valid DNS name cannot be in a certificate.
    names.extend(host_name.and_then(|name| host(&format!("https://{name}"))));
    names.into_iter().collect()
}

fn expand(bound: &[SocketAddr], own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for at in bound {
        if at.ip().is_unspecified() {
            let same = own.iter().filter(|ip| at.is_ipv6() || ip.is_ipv4());
            all.extend(same.map(|ip| SocketAddr::new(*ip, at.port())));
        } else {
            all.push(*at);
        }
    }
    all
}

/// The addresses of this machine that other machines can use: not loopback, and not link-local (which includes
/// 169.254.169.254).
pub fn own() -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            let four = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        })
        .collect();
    found.sort_by_key(|ip| (ip.is_ipv6(), *ip));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn urls_are_those_in_advertise_or_else_the_listen_addresses() {
        let own = ["192.0.2.7".parse().unwrap()];
        let all = [at("0.0.0.0:7373"), at("127.0.0.1:7373")];
        assert_eq!(
            urls(&[], &all, &own),
            ["https://192.0.2.7:7373", "https://127.0.0.1:7373"]
        );
        let configured = ["https://waifud.lan:7373/".to_owned()];
        assert_eq!(urls(&configured, &all, &own), ["https://waifud.lan:7373"]);
        assert_eq!(
            urls(&[], &[at("[2001:db8::1]:1")], &own),
            ["https://[2001:db8::1]:1"]
        );
    }

    #[test]
    fn the_certificate_contains_every_name_that_a_client_may_use() {
        let configured = ["https://[2001:db8::1]:7373", "https://Waifud.lan"].map(str::to_owned);
        let own = ["192.0.2.7".parse().unwrap()];
        let names = names(&configured, &[at("0.0.0.0:1")], &own, Some("alder"));
        for name in [
            "localhost",
            "127.0.0.1",
            "::1",
            "2001:db8::1",
            "waifud.lan",
            "192.0.2.7",
            "alder",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} of {names:?}");
        }
    }

    #[test]
    fn invalid_advertise_urls_are_refused() {
        for good in [
            "https://a",
            "https://a.b-c:1/",
            "https://192.0.2.1:7373",
            "https://[::1]:2",
            "https://[2001:db8::1]",
        ] {
            check_url(good).unwrap();
        }
        for bad in [
            "",
            "a:1",
            "http://a",
            "https://",
            "https://a/b",
            "https://a:b",
            "https://a b",
            "https://u@a",
            "https://a:70000",
            "https://-_",
        ] {
            assert!(check_url(bad).unwrap_err().contains("waifud.lan"), "{bad}");
        }
    }
}
