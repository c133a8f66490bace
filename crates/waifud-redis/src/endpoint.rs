//! The address of Redis: `redis://HOST[:PORT]` or `rediss://HOST[:PORT]`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The port of Redis.
const PORT: u16 = 6379;

/// Host, port, and whether to use TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// A name or an address, without the brackets of IPv6.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// The text is not an address of Redis.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}; use redis://HOST:PORT, or rediss://HOST:PORT for TLS")]
pub struct InvalidRedisUrl(&'static str);

impl Endpoint {
    /// Whether the host is this machine, so that the traffic does not leave it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidRedisUrl;

    // Errors do not quote the text, which may have a password by mistake.
    fn from_str(text: &str) -> Result<Self, InvalidRedisUrl> {
        let (tls, rest) = match (
            text.strip_prefix("redis://"),
            text.strip_prefix("rediss://"),
        ) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => {
                return Err(InvalidRedisUrl(
                    "the URL does not begin with redis:// or rediss://",
                ));
            }
        };
        if rest.contains('@') {
            return Err(InvalidRedisUrl(
                "the URL contains credentials, which belong in username and password_file",
            ));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(InvalidRedisUrl("the URL has a path or options"));
        }
        let (host, port) = if let Some(rest) = rest.strip_prefix('[') {
            let (host, port) = rest
                .split_once(']')
                .ok_or(InvalidRedisUrl("the URL has an invalid address"))?;
            host.parse::<Ipv6Addr>()
                .map_err(|_| InvalidRedisUrl("the URL has an invalid address"))?;
            (
                host,
                port.strip_prefix(':').or((port.is_empty()).then_some("")),
            )
        } else {
            let (host, port) = rest.split_once(':').unwrap_or((rest, ""));
            (host, Some(port))
        };
        let port = match port {
            Some("") => PORT,
            Some(port) => port
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or(InvalidRedisUrl("the URL has an invalid port"))?,
            None => return Err(InvalidRedisUrl("the URL has an invalid port")),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(InvalidRedisUrl("the URL has no valid host"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            tls,
        })
    }
}

/// Refuses a prefix that is empty, too long, or special in a pattern of Redis.
///
/// # Errors
/// What is allowed.
pub fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(plain) {
        return Err("must be 1 to 64 letters, digits, or one of - _ . :");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_shown_as_host_and_port() {
        for (text, shown, tls, loopback) in [
            ("redis://127.0.0.1", "127.0.0.1:6379", false, true),
            ("redis://localhost:7/", "localhost:7", false, true),
            ("rediss://cache.lan:6380", "cache.lan:6380", true, false),
            ("redis://[::1]:7", "[::1]:7", false, true),
            ("rediss://[fd00::1]", "[fd00::1]:6379", true, false),
            ("redis://192.0.2.9", "192.0.2.9:6379", false, false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(
                (endpoint.tls, endpoint.is_loopback()),
                (tls, loopback),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused_without_quoting_them() {
        for (bad, why) in [
            ("http://hunter2", "does not begin"),
            ("redis://user:hunter2@host", "password_file"),
            ("redis://host/hunter2", "path"),
            ("redis://host?hunter2", "path"),
            ("redis://host:hunter2", "port"),
            ("redis://host:0", "port"),
            ("redis://[hunter2]", "address"),
            ("redis://[::1]hunter2", "port"),
            ("redis://", "host"),
            ("redis://hunter2 x", "host"),
        ] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("rediss://HOST"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_prefix_is_never_a_pattern() {
        assert_eq!(check_prefix("waifud:home-1"), Ok(()));
        for bad in ["", "a*", "a?", "[a]", "a b", &"a".repeat(65)] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
    }
}
