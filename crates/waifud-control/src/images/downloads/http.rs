//! The HTTP client of downloads: few redirects, each checked; only allowed addresses; a timeout for silent servers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use super::limits::Limits;
use super::reach::{Reach, Trail, forbidden};
use super::source::check_url;
use super::source::url_host::Host;

/// The maximum number of redirects. Mirrors use one or two.
const REDIRECTS: usize = 5;
/// The timeout of a connection attempt.
pub(super) const CONNECT: Duration = Duration::from_secs(15);
/// A client for one attempt. `http_allowed` is set if the checksum is known, so that http is safe.
pub(super) fn client(
    url: &reqwest::Url,
    http_allowed: bool,
    limits: &Limits,
) -> Result<reqwest::Client, reqwest::Error> {
    // Another caller may have installed the same provider.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let (reach, trail) = (Arc::new(limits.reach.clone()), limits.trail.clone());
    record(&trail, url, &reach);
    let (policy_reach, policy_trail) = (Arc::clone(&reach), trail.clone());
    let policy = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS {
            return attempt.error(Refused(format!(
                "the URL redirects more than {REDIRECTS} times"
            )));
        }
        match check_url(attempt.url(), http_allowed, &policy_reach) {
            Ok(()) => {
                record(&policy_trail, attempt.url(), &policy_reach);
                attempt.follow()
            }
            Err(why) => attempt.error(Refused(format!(
                "the URL redirects to an address that is not allowed: {why}"
            ))),
        }
    });
    let mut builder = reqwest::Client::builder()
        .redirect(policy)
        .connect_timeout(CONNECT)
        .read_timeout(limits.settings.downloads.silence)
        .referer(false)
        .user_agent(concat!("waifud/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Resolver { reach, trail }));
    if !limits.settings.downloads.proxies {
        builder = builder.no_proxy();
    }
    builder.build()
}

fn record(trail: &Trail, url: &reqwest::Url, reach: &Reach) {
    if let Some(Host::Address(address)) = Host::of(url) {
        trail.record(address, reach);
    }
}

/// A refusal of this client inside reqwest's errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

/// The refusal that caused an error, if there is one.
pub(super) fn refusal(error: &reqwest::Error) -> Option<String> {
    waifud_kit::error::find::<Refused>(error).map(|refused| refused.0.clone())
}

/// The system resolver without forbidden addresses, since a name can resolve to any address.
struct Resolver {
    reach: Arc<Reach>,
    trail: Trail,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        // localhost in a URL was checked before, so this is the name of a proxy.
        let is_proxy = name.as_str() == "localhost";
        let (reach, trail) = (Arc::clone(&self.reach), self.trail.clone());
        let check = move |address: IpAddr| {
            if is_proxy && address.is_loopback() {
                return None;
            }
            let refused = forbidden(address, &reach);
            if refused.is_none() {
                trail.record(address, &reach);
            }
            refused
        };
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut why = None;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| {
                    let refused = check(address.ip());
                    why = why.or(refused);
                    refused.is_none()
                })
                .collect();
            match why {
                Some(why) if allowed.is_empty() => {
                    Err(Box::new(Refused(why.to_owned()))
                        as Box<dyn std::error::Error + Send + Sync>)
                }
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}
