//! Noticing that somebody else changed what is ours.
//!
//! Two sources: the kernel tells about links, addresses, routes and rules; everything else (firewall, settings,
//! dnsmasq) is looked at once a second, which costs a few reads of `/proc` and one netlink question. Nothing is
//! repaired here: the owner of the desired state is told, and calls `ensure`.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::broadcast;
use tokio::time::MissedTickBehavior;

use super::LinuxNetwork;
use super::netlink::socket_error;
use crate::{NetworkDrift, NetworkError};

/// How long rules may be gone before it is noticed. Meanwhile ports are isolated still, and nothing new is forwarded
/// that was not before.
const TICK: Duration = Duration::from_secs(1);

/// Everything is looked at this often even if the kernel told nothing, as its messages may be lost.
const TICKS_PER_FULL_CHECK: u32 = 15;

/// What a look at the machine found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    /// In words.
    pub(super) what: String,
    /// Whether it may mend itself in a moment, such as a tap that the hypervisor is about to attach.
    pub(super) may_pass: bool,
    /// The number of the `ensure` before it: the same drift after a repair is a new one.
    pub(super) since: u64,
}

/// Starts watching; ends when the network is dropped.
pub(super) fn start(network: Weak<LinuxNetwork>) -> Result<(), NetworkError> {
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
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reporter = Reporter::default();
        let mut links_changed = false;
        let mut listening_ended = false;
        for tick in 0_u32.. {
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
                || tick.is_multiple_of(TICKS_PER_FULL_CHECK);
            links_changed = false;
            // A look that fails tells nothing; the next one will.
            match network.find_drift(full).await {
                Ok(finding) => reporter.report(finding, &network.drift),
                Err(error) => tracing::debug!(%error, "looking for drift failed"),
            }
            network.checks.send_modify(|checks| *checks += 1);
        }
        listening.abort();
    });
    Ok(())
}

/// Tells each drift once, and again after a while if nobody mended it.
#[derive(Debug, Default)]
struct Reporter {
    last: Option<Finding>,
    repeats: u32,
}

impl Reporter {
    /// How many looks pass before the same drift is told again.
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
            // Nobody listening is fine.
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

    /// How many messages come of these looks.
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
    fn drift_is_told_once_and_again_after_a_while() {
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
    fn what_may_pass_is_told_when_it_stays() {
        let tap = finding(true);
        assert_eq!(reports(&[Some(&tap)]), 0);
        assert_eq!(reports(&[Some(&tap), None, Some(&tap), None]), 0);
        assert_eq!(reports(&[Some(&tap), Some(&tap)]), 1);
        assert_eq!(reports(&[Some(&tap); 5]), 1);
    }
}
