//! The HTTP client of downloads: few redirects, each looked at; no address that may not be asked; a deadline on silence.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;

use super::fetch::Limits;
use super::reach::{Reach, Trail, forbidden};
use super::source::may_ask;
use super::source::url_host::Host;

/// Mirrors redirect once or twice.
const REDIRECTS: usize = 5;
/// A connection is made within this, or not.
const CONNECT: Duration = Duration::from_secs(15);
/// A client for one attempt at a URL. `plain_is_fine`: the checksum is known, so that http on the way harms nothing.
pub(super) fn client(
    url: &reqwest::Url,
    plain_is_fine: bool,
    limits: &Limits,
) -> Result<reqwest::Client, reqwest::Error> {
    // Whoever came first has installed the same one.
    let _already = rustls::crypto::ring::default_provider().install_default();
    let (reach, trail) = (Arc::new(limits.reach.clone()), limits.trail.clone());
    note(&trail, url, &reach);
    let (policy_reach, policy_trail) = (Arc::clone(&reach), trail.clone());
    let policy = Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS {
            return attempt.error(Refused(format!("it redirects more than {REDIRECTS} times")));
        }
        match may_ask(attempt.url(), plain_is_fine, &policy_reach) {
            Ok(()) => {
                note(&policy_trail, attempt.url(), &policy_reach);
                attempt.follow()
            }
            Err(why) => attempt.error(Refused(format!("it redirects to where {why}"))),
        }
    });
    let mut builder = reqwest::Client::builder()
        .redirect(policy)
        .connect_timeout(CONNECT)
        .read_timeout(limits.silence)
        .referer(false)
        .user_agent(concat!("waifud/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Resolver { reach, trail }));
    if !limits.proxies {
        builder = builder.no_proxy();
    }
    builder.build()
}

fn note(trail: &Trail, url: &reqwest::Url, reach: &Reach) {
    if let Some(Host::Address(address)) = Host::of(url) {
        trail.note(address, reach);
    }
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
    reach: Arc<Reach>,
    trail: Trail,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        // A URL that says localhost was looked at already; this one is a proxy's.
        let fine_here = name.as_str() == "localhost";
        let (reach, trail) = (Arc::clone(&self.reach), self.trail.clone());
        let judge = move |address: IpAddr| {
            if fine_here && address.is_loopback() {
                return None;
            }
            let refused = forbidden(address, &reach);
            if refused.is_none() {
                trail.note(address, &reach);
            }
            refused
        };
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut why = None;
            let fine: Vec<SocketAddr> = found
                .filter(|address| {
                    let refused = judge(address.ip());
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
