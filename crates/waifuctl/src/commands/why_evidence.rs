//! What a guest was seen to do, in the few lines that `waifuctl why` has for it.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use waifud_types::evidence::{GuestEvidence, ModuleResult, ModuleSeen, RequestSeen};
use waifud_types::spec::NicSpec;

use crate::text::escape;

/// Requests that a line has room for; `--json` has them all.
const SHOWN: usize = 6;
/// The documents that tell how far a guest got; others are shown only when they were refused.
const DOCUMENTS: [&str; 6] = [
    "meta_data.json",
    "network_data.json",
    "vendor_data.json",
    "vendor_data2.json",
    "user_data",
    "user-data",
];

/// The lines, indented.
pub fn lines(
    evidence: &GuestEvidence,
    nics: &[NicSpec],
    started: Option<Timestamp>,
    now: Timestamp,
) -> String {
    let mut out = format!(
        "  {} · {} · {}\n",
        dhcp(evidence, nics, started, now),
        requests(&evidence.requests, now),
        dropped(evidence)
    );
    out.push_str(&modules(&evidence.modules));
    for line in &evidence.console {
        let _infallible = writeln!(out, "  console: \"{}\"", escape(line));
    }
    out
}

/// cloud-init's modules: how many, which failed, which took longest, which is at work.
fn modules(all: &[ModuleSeen]) -> String {
    let mut out = String::new();
    let ended = all.iter().filter(|module| module.result.is_some()).count();
    if ended > 0 {
        let slowest = all.iter().max_by_key(|module| module.took_ms);
        let slowest = slowest
            .and_then(|module| Some((module, module.took_ms?)))
            .map_or_else(String::new, |(module, took)| {
                format!("; the slowest: {} {}", escape(&module.name), seconds(took))
            });
        let _infallible = writeln!(out, "  cloud-init: {ended} modules have ended{slowest}");
    }
    for module in all {
        let what = match module.result {
            // A search for a datasource that is not there fails by design.
            Some(ModuleResult::Fail) if !module.name.contains("/search-") => "failed",
            Some(ModuleResult::Warn) => "warned",
            _ => continue,
        };
        let after = module
            .took_ms
            .map_or_else(String::new, |took| format!(" after {}", seconds(took)));
        let _infallible = writeln!(out, "  cloud-init: {} {what}{after}", escape(&module.name));
    }
    let last = all.last().filter(|module| module.result.is_none());
    if let Some(module) = last {
        let _infallible = writeln!(out, "  cloud-init: {} is at work", escape(&module.name));
    }
    out
}

/// One module as a line of its own.
pub fn module(module: &ModuleSeen) -> String {
    let how = match module.result {
        Some(ModuleResult::Success) => "ok",
        Some(ModuleResult::Warn) => "warned",
        Some(ModuleResult::Fail) => "failed",
        None => "at work",
    };
    let took = module.took_ms.map_or_else(|| "-".to_owned(), seconds);
    format!("{:<48} {how:<8} {took:>8}", escape(&module.name))
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// What to do where a guest on a bridge of the host's own speaks from an address that nobody gave it: on `default` that is a
/// guest's own mischief, there it is mostly an address that was set inside the guest.
pub fn mute_address(evidence: &GuestEvidence, nics: &[NicSpec]) -> Option<&'static str> {
    let dropped = evidence.dropped.is_some_and(|dropped| dropped.spoofed > 0);
    let on_a_bridge = nics.iter().any(|nic| !is_ours(nic));
    (dropped && on_a_bridge).then_some(
        "  an address that is set inside the guest has to be given with the instance: \
         create --network NAME,address=CIDR, or --allow-address CIDR\n",
    )
}

/// What to do about a guest that stopped in systemd's emergency mode: nothing in it goes on by itself.
pub fn emergency(evidence: &GuestEvidence, name: &str) -> Option<String> {
    let stopped = |line: &String| line.to_lowercase().contains("emergency mode");
    evidence.console.iter().any(stopped).then(|| {
        format!(
            "  hint: the guest is in emergency mode: log in with waifuctl console {name}, or repair its disk with waifuctl \
             rescue {name} --force\n"
        )
    })
}

fn is_ours(nic: &NicSpec) -> bool {
    nic.network.as_str() == "default"
}

fn dhcp(
    evidence: &GuestEvidence,
    nics: &[NicSpec],
    started: Option<Timestamp>,
    now: Timestamp,
) -> String {
    match evidence.dhcp_acknowledged_at {
        // What was seen last may be of the boot before. The lease file knows whole seconds only.
        Some(at) if started.is_some_and(|start| at.as_second() < start.as_second()) => {
            format!("no dhcp ack since its start (the last {})", moment(at, now))
        }
        Some(at) => format!("dhcp ack {}", moment(at, now)),
        None if nics.iter().any(is_ours) => "no dhcp ack since its start".to_owned(),
        None => "dhcp is its network's own".to_owned(),
    }
}

fn dropped(evidence: &GuestEvidence) -> String {
    let Some(dropped) = evidence.dropped else {
        return "dropped packets: unknown".to_owned();
    };
    let mut out = format!("dropped by anti-spoof: {}", dropped.spoofed);
    if dropped.to_host > 0 {
        let _infallible = write!(out, ", on their way to the host: {}", dropped.to_host);
    }
    out
}

fn requests(all: &[RequestSeen], now: Timestamp) -> String {
    let Some(last) = all.last() else {
        return "no metadata request since its start".to_owned();
    };
    let (mut shown, mut named) = (Vec::new(), Vec::new());
    for seen in all.iter().rev() {
        let name = name_of(&seen.path);
        let good = (200..300).contains(&seen.status);
        // The same document under several versions of the interface is one.
        if (DOCUMENTS.contains(&name) || !good) && !named.contains(&(name, seen.status)) {
            named.push((name, seen.status));
            if shown.len() < SHOWN {
                shown.push(format!("{} {}", escape(name), seen.status));
            }
        }
    }
    if shown.is_empty() {
        shown.push(format!("{} {}", escape(&last.path), last.status));
    }
    shown.reverse();
    if named.len() > SHOWN {
        shown.push(format!("and {} more", named.len() - SHOWN));
    }
    format!("{} {}", shown.join(", "), moment(last.at, now))
}

/// To the second: who came before whom is the point.
fn moment(at: Timestamp, now: Timestamp) -> String {
    let zone = TimeZone::system();
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone));
    let format = if at.date() == now.date() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    at.strftime(format).to_string()
}

/// The last part of a path that says something.
fn name_of(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.is_empty() { "/" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waifud_types::evidence::Dropped;

    fn seen(path: &str, status: u16) -> RequestSeen {
        RequestSeen {
            path: path.to_owned(),
            status,
            count: 1,
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn nic(network: &str) -> NicSpec {
        serde_json::from_value(serde_json::json!({
            "name": "eth0", "network": network, "mac": "52:54:00:00:00:01",
            "address": null, "allow_addresses": [],
        }))
        .unwrap()
    }

    #[test]
    fn emergency_mode_points_to_rescue() {
        let said = |line: &str| {
            let evidence = GuestEvidence {
                console: vec![line.to_owned()],
                ..GuestEvidence::default()
            };
            emergency(&evidence, "web")
        };
        let hint = said("You are in emergency mode. After logging in, type").unwrap();
        assert!(hint.contains("waifuctl rescue web --force"));
        assert_eq!(said("web login:"), None);
    }

    #[test]
    fn a_lease_of_the_boot_before_is_not_taken_for_one_of_this() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let evidence = GuestEvidence {
            dhcp_acknowledged_at: Some(at(95)),
            ..GuestEvidence::default()
        };
        let said = |start| dhcp(&evidence, &[nic("default")], Some(at(start)), at(200));
        assert!(said(95).starts_with("dhcp ack "));
        assert!(said(120).starts_with("no dhcp ack since its start"));
    }

    #[test]
    fn documents_and_refusals_are_shown_in_their_order() {
        let all = [
            seen("/openstack", 200),
            seen("/openstack/2018-08-27/meta_data.json", 200),
            seen("/openstack/latest/meta_data.json", 200),
            seen("/openstack/2018-08-27/vendor_data2.json", 404),
            seen("/openstack/latest/user_data", 200),
        ];
        let line = requests(&all, Timestamp::UNIX_EPOCH);
        assert!(
            line.starts_with("meta_data.json 200, vendor_data2.json 404, user_data 200 "),
            "{line}"
        );
    }

    #[test]
    fn nothing_seen_is_said_as_such_and_a_guests_text_is_escaped() {
        let told = |network| {
            lines(
                &GuestEvidence::default(),
                &[nic(network)],
                None,
                Timestamp::UNIX_EPOCH,
            )
        };
        assert!(told("lan").starts_with("  dhcp is its network's own · no metadata"));
        assert_eq!(
            told("default"),
            "  no dhcp ack since its start · no metadata request since its start · dropped packets: unknown\n"
        );
        let evil = GuestEvidence {
            requests: vec![seen("/a/\u{1b}]0;x\u{7}", 404)],
            console: vec!["\u{202e}evil\u{9b}2J".to_owned()],
            dropped: Some(Dropped {
                spoofed: 3,
                to_host: 4,
            }),
            ..GuestEvidence::default()
        };
        let text = lines(&evil, &[nic("default")], None, Timestamp::UNIX_EPOCH);
        assert!(
            !text.chars().any(|c| c.is_control() && c != '\n') && !text.contains('\u{202e}'),
            "{text:?}"
        );
        assert!(
            text.contains("anti-spoof: 3, on their way to the host: 4"),
            "{text}"
        );
    }

    #[test]
    fn modules_are_told_in_a_few_lines_with_result_and_duration() {
        let module = |name: &str, result, took_ms| ModuleSeen {
            name: name.to_owned(),
            at: Timestamp::UNIX_EPOCH,
            result,
            took_ms,
        };
        let all = [
            module("init-local/search-None", Some(ModuleResult::Fail), Some(1)),
            module(
                "modules-config/runcmd",
                Some(ModuleResult::Success),
                Some(40),
            ),
            module(
                "modules-final/scripts-user",
                Some(ModuleResult::Fail),
                Some(8_190),
            ),
            module("modules-final/phone\u{1b}[2J", None, None),
        ];
        assert_eq!(
            modules(&all).replace(&escape("\u{1b}[2J"), "ESC"),
            "  cloud-init: 3 modules have ended; the slowest: modules-final/scripts-user 8.1s\n  \
             cloud-init: modules-final/scripts-user failed after 8.1s\n  \
             cloud-init: modules-final/phoneESC is at work\n"
        );
        assert_eq!(modules(&[]), "");
    }

    #[test]
    fn an_address_that_nobody_gave_is_explained_on_a_bridge_only() {
        let dropped = |spoofed| GuestEvidence {
            dropped: Some(Dropped {
                spoofed,
                ..Dropped::default()
            }),
            ..GuestEvidence::default()
        };
        let said = mute_address(&dropped(1), &[nic("default"), nic("lan")]);
        assert!(said.unwrap().contains("--allow-address"));
        assert_eq!(mute_address(&dropped(1), &[nic("default")]), None);
        assert_eq!(mute_address(&dropped(0), &[nic("lan")]), None);
    }

    #[test]
    fn many_refusals_do_not_fill_the_screen() {
        let all: Vec<_> = (0..50).map(|n| seen(&format!("/{n}"), 404)).collect();
        let line = requests(&all, Timestamp::UNIX_EPOCH);
        assert!(line.contains("49 404, and 44 more"), "{line}");
    }
}
