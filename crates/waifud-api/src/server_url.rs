//! The address of a waifud server, as users write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Default port of waifud.
pub const DEFAULT_PORT: u16 = 7373;

/// An `https` URL without path, user or query. Without a scheme, `HOST` is `https://HOST:7373`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl {
    /// Hostname or IP address; IPv6 without brackets.
    host: String,
    port: u16,
}

/// Why a text is not a server URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerUrlError {
    /// Over http, the token would be readable on the network.
    #[error("invalid server URL: the scheme must be https")]
    NotHttps,
    /// The URL has a path, a query, a fragment or a user.
    #[error("invalid server URL: only a host and a port are allowed")]
    ExtraParts,
    /// The text is not a URL.
    #[error("invalid server URL: write https://HOST:PORT")]
    Malformed,
}

impl ServerUrl {
    /// The hostname or IP address; IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the URL refers to this machine, which a proxy elsewhere cannot reach.
    pub fn is_loopback(&self) -> bool {
        let host = self.host.trim_end_matches('.').to_ascii_lowercase();
        let is_local = host == "localhost" || host.ends_with(".localhost");
        is_local
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for ServerUrl {
    type Err = ServerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let bare = !text.contains("://");
        let url = if bare {
            format!("https://{text}")
        } else {
            text.to_owned()
        };
        let url = reqwest::Url::parse(&url).map_err(|_| ServerUrlError::Malformed)?;
        if url.scheme() != "https" {
            return Err(ServerUrlError::NotHttps);
        }
        let rest = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
        if rest || !url.username().is_empty() || url.password().is_some() {
            return Err(ServerUrlError::ExtraParts);
        }
        let host = url.host_str().ok_or(ServerUrlError::Malformed)?;
        let port = match url.port() {
            Some(port) => port,
            // `https://host` and `https://host:443` are equal and keep their port.
            None if bare && !text.ends_with(":443") => DEFAULT_PORT,
            None => 443,
        };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
        })
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

waifud_types::string_conversions!(ServerUrl);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_url_can_be_abbreviated_and_is_printed_in_full() {
        for (written, shown) in [
            ("waifud.lan", "https://waifud.lan:7373"),
            ("waifud.lan:80", "https://waifud.lan:80"),
            ("waifud.lan:443", "https://waifud.lan:443"),
            ("https://waifud.lan", "https://waifud.lan:443"),
            ("https://192.0.2.1:7373/", "https://192.0.2.1:7373"),
            ("[2001:db8::1]:7373", "https://[2001:db8::1]:7373"),
        ] {
            let url: ServerUrl = written.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
    }

    #[test]
    fn a_url_that_could_leak_a_token_or_mislead_is_refused() {
        use ServerUrlError::{ExtraParts, Malformed, NotHttps};
        for (bad, why) in [
            ("http://waifud.lan:7373", NotHttps),
            ("ftp://waifud.lan", NotHttps),
            ("https://waifud.lan/v1", ExtraParts),
            ("https://me:secret@waifud.lan", ExtraParts),
            ("https://waifud.lan?x", ExtraParts),
            ("", Malformed),
            ("https://", Malformed),
            ("a b", Malformed),
        ] {
            assert_eq!(bad.parse::<ServerUrl>(), Err(why), "{bad}");
        }
    }
}
