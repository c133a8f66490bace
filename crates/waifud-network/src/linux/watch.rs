//! Detects changes of the guests' network by other programs.
//!
//! The kernel notifies of changed links, addresses, routes and routing rules. Everything else (firewall, settings,
//! dnsmasq) is checked once a second, with a few reads of `/proc` and one netlink request. Nothing is repaired here: the
//! owner of the desired state is notified and calls `ensure`.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior};

use super::LinuxNetwork;
use super::netlink::socket_error;
use crate::{NetworkDrift, NetworkError};

/// How long deleted rules may go unnoticed. Meanwhile ports stay isolated, and no further interface forwards packets.
const TICK: Duration = Duration::from_secs(1);

/// The result of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    /// The difference, as text.
    pub(super) what: String,
    /// Whether it may be temporary, for example a tap that the hypervisor is about to attach.
    pub(super) may_pass: bool,
    /// The number of the last `ensure`: the same drift after a repair is reported again.
    pub(super) since: u64,
}

/// Starts watching; ends when the network is dropped.
///
/// Everything is checked after each `full_check`, even without a notification, because the kernel's messages may be lost.
pub(super) fn start(network: Weak<LinuxNetwork>, full_check: Duration) -> Result<(), NetworkError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
    ];
    let (connection, _handle, mut messages) = new_multicast_connection(&groups)
        .map_err(socket_error("listening for changes of links"))?;
    let listening = tokio::spawn(connection);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(TICK.min(full_check));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reporter = Reporter::default();
        let mut links_changed = false;
        let mut listening_ended = false;
        let mut checked_fully: Option<Instant> = None;
        loop {
            loop {
                tokio::select! {
                    _ = ticks.tick() => break,
                    message = messages.next(), if !listening_ended => match message {
                        Some(_) => links_changed = true,
                        None => listening_ended = true,
                    },
                }
            }
            let Some(network) = network.upgrade() else {
                break;
            };
            let full = links_changed
                || listening_ended
                || reporter.is_pending()
                || checked_fully.is_none_or(|at| at.elapsed() >= full_check);
            if full {
                checked_fully = Some(Instant::now());
            }
            links_changed = false;
            // A check that fails has no result; it is repeated at the next tick.
            match network.find_drift(full).await {
                Ok(finding) => reporter.report(finding, &network.drift),
                Err(error) => tracing::debug!(%error, "the check for drift failed"),
            }
            network.checks.send_modify(|checks| *checks += 1);
        }
        listening.abort();
    });
    Ok(())
}

/// Reports each drift once, and again after a while if it was not repaired.
#[derive(Debug, Default)]
struct Reporter {
    last: Option<Finding>,
    repeats: u32,
}

impl Reporter {
    /// After how many checks the same drift is reported again.
    const REPORT_AGAIN: u32 = 30;

    fn is_pending(&self) -> bool {
        self.last.is_some()
    }

    fn report(&mut self, finding: Option<Finding>, drift: &broadcast::Sender<NetworkDrift>) {
        let seen_before = finding.is_some() && self.last == finding;
        let due = match &finding {
            None => false,
            Some(finding) if !seen_before => !finding.may_pass,
            Some(finding) if finding.may_pass && self.repeats == 0 => true,
            Some(_) => self.repeats.is_multiple_of(Self::REPORT_AGAIN),
        };
        if !seen_before {
            self.repeats = 0;
        }
        if seen_before || due {
            self.repeats += 1;
        }
        if let Some(finding) = &finding
            && due
        {
            tracing::warn!(what = finding.what, "the guests' network was changed");
            // There may be no subscriber.
            let _ = drift.send(NetworkDrift {
                what: finding.what.clone(),
            });
        }
        self.last = finding;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many reports these findings cause.
    fn reports(findings: &[Option<&Finding>]) -> usize {
        let drift = broadcast::Sender::new(100);
        let receiver = drift.subscribe();
        let mut reporter = Reporter::default();
        for finding in findings {
            reporter.report(finding.cloned(), &drift);
        }
        receiver.len()
    }

    fn finding(may_pass: bool) -> Finding {
        Finding {
            what: "x".to_owned(),
            may_pass,
            since: 1,
        }
    }

    #[test]
    fn drift_is_reported_once_and_again_after_a_while() {
        let gone = finding(false);
        assert_eq!(reports(&[Some(&gone)]), 1);
        assert_eq!(reports(&[Some(&gone); 5]), 1);
        assert_eq!(reports(&[Some(&gone); 40]), 2);
        assert_eq!(reports(&[Some(&gone), None, Some(&gone)]), 2);
        assert_eq!(reports(&[None; 5]), 0);
        let again = Finding {
            since: 2,
            ..gone.clone()
        };
        assert_eq!(reports(&[Some(&gone), Some(&again)]), 2);
    }

    #[test]
    fn temporary_drift_is_reported_when_it_persists() {
        let tap = finding(true);
        assert_eq!(reports(&[Some(&tap)]), 0);
        assert_eq!(reports(&[Some(&tap), None, Some(&tap), None]), 0);
        assert_eq!(reports(&[Some(&tap), Some(&tap)]), 1);
        assert_eq!(reports(&[Some(&tap); 5]), 1);
    }
}
