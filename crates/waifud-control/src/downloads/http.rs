//! The HTTP client of downloads: few redirects, each looked at; no address that may not be asked; a deadline on silence.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use super::source::{Reach, forbidden, may_ask};

/// Mirrors redirect once or twice.
const REDIRECTS: usize = 5;
/// A connection is made within this, or not.
const CONNECT: Duration = Duration::from_secs(15);
/// A server that says nothing for so long has gone.
const SILENCE: Duration = Duration::from_mins(1);

/// A client for one attempt. `plain_is_fine`: the checksum is known, so that http on the way harms nothing.
pub(super) fn client(
    plain_is_fine: bool,
    reach: Reach,
    proxies: bool,
) -> Result<reqwest::Client, reqwest::Error> {
    // Whoever came first has installed the same one.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let policy = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS {
            return attempt.error(Refused(format!("it redirects more than {REDIRECTS} times")));
        }
        match may_ask(attempt.url(), plain_is_fine, reach) {
            Ok(()) => attempt.follow(),
            Err(why) => attempt.error(Refused(format!("it redirects to where {why}"))),
        }
    });
    let mut builder = reqwest::Client::builder()
        .redirect(policy)
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .referer(false)
        .user_agent(concat!("waifud/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(std::sync::Arc::new(Resolver { reach }));
    if !proxies {
        builder = builder.no_proxy();
    }
    builder.build()
}

/// A refusal of ours, inside of reqwest's errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// Our refusal, if that is what is behind an error.
pub(super) fn refusal(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Some(refused.0.clone());
        }
        next = cause.source();
    }
    None
}

/// The machine's own resolver, without the addresses that may not be asked: a name can lead anywhere.
struct Resolver {
    reach: Reach,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        // A URL that says localhost was looked at already; this one is a proxy's.
        let reach = Reach {
            loopback: self.reach.loopback || name.as_str() == "localhost",
        };
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut why = None;
            let fine: Vec<SocketAddr> = found
                .filter(|address| {
                    let refused = forbidden(address.ip(), reach);
                    why = why.or(refused);
                    refused.is_none()
                })
                .collect();
            match why {
                Some(why) if fine.is_empty() => {
                    Err(Box::new(Refused(why.to_owned()))
                        as Box<dyn std::error::Error + Send + Sync>)
                }
                _ => Ok(Box::new(fine.into_iter()) as Addrs),
            }
        })
    }
}
