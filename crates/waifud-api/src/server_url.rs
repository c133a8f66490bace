//! Where a waifud is, as people write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// waifud's port.
pub const DEFAULT_PORT: u16 = 7373;

/// An `https` URL without path, user or query. Without a scheme, `HOST` is `https://HOST:7373`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl {
    /// A name or an address; IPv6 without brackets.
    host: String,
    port: u16,
}

/// Why a text is no such URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerUrlError {
    /// A token would go over the wire for everybody to read.
    #[error("waifud is only reached by https")]
    NotHttps,
    /// A path, a query, a user.
    #[error("a server's URL ends after its host and port")]
    TooMuch,
    /// No URL.
    #[error("that is no server's URL; write https://HOST:PORT")]
    Malformed,
}

impl ServerUrl {
    /// The name or address; IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether it is this machine itself, which no proxy elsewhere can reach.
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
            return Err(ServerUrlError::TooMuch);
        }
        let host = url.host_str().ok_or(ServerUrlError::Malformed)?;
        let port = match url.port() {
            Some(port) => port,
            // `https://host` and `https://host:443` are the same, and mean what they say.
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

impl TryFrom<String> for ServerUrl {
    type Error = ServerUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ServerUrl> for String {
    fn from(url: ServerUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_written_as_people_write_them_and_shown_in_one_way() {
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
    fn what_would_leak_or_mislead_is_refused() {
        use ServerUrlError::{Malformed, NotHttps, TooMuch};
        for (bad, why) in [
            ("http://waifud.lan:7373", NotHttps),
            ("ftp://waifud.lan", NotHttps),
            ("https://waifud.lan/v1", TooMuch),
            ("https://me:secret@waifud.lan", TooMuch),
            ("https://waifud.lan?x", TooMuch),
            ("", Malformed),
            ("https://", Malformed),
            ("a b", Malformed),
        ] {
            assert_eq!(bad.parse::<ServerUrl>(), Err(why), "{bad}");
        }
    }
}
