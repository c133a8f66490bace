//! The names that this node serves to machines that are not guests (`dns.listen`): its facts and its condition.

use waifud_network::{DnsAddress, DnsTrouble};
use waifud_types::status::Condition;
use waifud_types::{DnsFacts, DnsListener, Timestamp};

use crate::condition::condition;
use crate::shared::Shared;

/// The facts; `None` if the node serves no names.
pub(crate) fn facts(domain: &str, served: &[DnsAddress]) -> Option<DnsFacts> {
    let listen = served.iter().map(|one| DnsListener {
        address: one.address.into(),
        error: one.trouble.as_ref().map(|trouble| reason(one, trouble).1),
    });
    (!served.is_empty()).then(|| DnsFacts {
        domain: domain.to_owned(),
        listen: listen.collect(),
    })
}

/// Set while names do not resolve at a configured address.
pub(crate) fn trouble(served: &[DnsAddress], now: Timestamp) -> Option<Condition> {
    let troubles = served.iter();
    let troubles = troubles.filter_map(|one| Some(reason(one, one.trouble.as_ref()?)));
    let (reasons, messages): (Vec<_>, Vec<_>) = troubles.unzip();
    let reason = reasons.first()?;
    Some(condition("dns", false, reason, messages.join("; "), now))
}

/// Whether the node serves names at other addresses than it has reported.
pub(crate) async fn has_changed(shared: &Shared) -> bool {
    let Some(reported) = shared.reports.last_facts() else {
        return false;
    };
    let served = shared.guest_network.dns().await;
    facts(&shared.settings.domain, &served) != reported.dns
}

/// A reason for programs, and a sentence with the next step.
fn reason(served: &DnsAddress, trouble: &DnsTrouble) -> (&'static str, String) {
    let (ip, port) = (served.address.ip(), served.address.port());
    match trouble {
        DnsTrouble::NoAddress => (
            "no-address",
            format!(
                "guests' names are not served at {ip}, because this node does not have the address; add it, or change `listen` in \
                 section [dns] of agentd.toml"
            ),
        ),
        DnsTrouble::PortTaken => (
            "port-taken",
            format!(
                "guests' names are not served at {ip}, because another program has port {port} there; stop it, or set another \
                 address or `port` in section [dns] of agentd.toml"
            ),
        ),
        DnsTrouble::Failed(error) => (
            "failed",
            format!("guests' names are not served at {ip}: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_names_are_a_condition_with_a_next_step() {
        let now = Timestamp::UNIX_EPOCH;
        let served = |trouble| DnsAddress {
            address: "192.168.1.10:53".parse().unwrap(),
            trouble,
        };
        assert!(facts("waifu.internal", &[]).is_none() && trouble(&[], now).is_none());
        let fine = [served(None)];
        let reported = facts("waifu.internal", &fine).unwrap();
        assert_eq!(reported.listen[0].error, None);
        assert!(trouble(&fine, now).is_none());

        for (one, reason, words) in [
            (
                DnsTrouble::NoAddress,
                "no-address",
                "add it, or change `listen`",
            ),
            (
                DnsTrouble::PortTaken,
                "port-taken",
                "another program has port 53",
            ),
            (
                DnsTrouble::Failed("no".to_owned()),
                "failed",
                "at 192.168.1.10: no",
            ),
        ] {
            let all = [served(None), served(Some(one))];
            let condition = trouble(&all, now).unwrap();
            assert_eq!(condition.reason, reason);
            assert!(
                !condition.ok && condition.message.contains(words),
                "{condition:?}"
            );
            let reported = facts("waifu.internal", &all).unwrap();
            assert_eq!(reported.listen[0].error, None);
            assert_eq!(reported.listen[1].error, Some(condition.message));
        }
    }
}
