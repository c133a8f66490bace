//! Formats observations of a guest for `waifuctl why`.

use std::fmt::Write;

use jiff::Timestamp;
use waifud_types::evidence::{GuestEvidence, ModuleResult, ModuleSeen, RequestSeen};
use waifud_types::spec::NicSpec;

use crate::text::{escape, today_or_dated};

/// Maximum number of requests per line; `--json` has all.
const SHOWN: usize = 6;
/// Documents that show the progress of a guest; others are shown only if they were refused.
const DOCUMENTS: [&str; 6] = [
    "meta_data.json",
    "network_data.json",
    "vendor_data.json",
    "vendor_data2.json",
    "user_data",
    "user-data",
];

/// The indented lines.
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

/// Summary of cloud-init's modules: number, failures, slowest, and the running one.
fn modules(all: &[ModuleSeen]) -> String {
    let mut out = String::new();
    let ended = all.iter().filter(|module| module.result.is_some()).count();
    if ended > 0 {
        let slowest = all.iter().max_by_key(|module| module.took_ms);
        let slowest = slowest
            .and_then(|module| Some((module, module.took_ms?)))
            .map_or_else(String::new, |(module, took)| {
                format!("; slowest: {} {}", escape(&module.name), seconds(took))
            });
        let _infallible = writeln!(out, "  cloud-init: {ended} modules have finished{slowest}");
    }
    for module in all {
        let what = match module.result {
            // The search for a missing datasource fails by design.
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
        let _infallible = writeln!(out, "  cloud-init: {} is running", escape(&module.name));
    }
    out
}

/// Formats one module.
pub fn module(module: &ModuleSeen) -> String {
    let how = match module.result {
        Some(ModuleResult::Success) => "ok",
        Some(ModuleResult::Warn) => "warned",
        Some(ModuleResult::Fail) => "failed",
        None => "running",
    };
    let took = module.took_ms.map_or_else(|| "-".to_owned(), seconds);
    format!("{:<48} {how:<8} {took:>8}", escape(&module.name))
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// A hint for a guest on a bridge that sends from an address that was not assigned; usually it was configured inside
/// the guest. On `default`, this is spoofing.
pub fn unassigned_address(evidence: &GuestEvidence, nics: &[NicSpec]) -> Option<&'static str> {
    let dropped = evidence.dropped.is_some_and(|dropped| dropped.spoofed > 0);
    let on_a_bridge = nics.iter().any(|nic| !is_ours(nic));
    (dropped && on_a_bridge).then_some(
        "  an address configured inside the guest must be assigned to the instance: \
         create --network NAME,address=CIDR, or --allow-address CIDR\n",
    )
}

/// A hint for a guest in systemd's emergency mode, which requires manual repair.
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
        // The last observation may be from the previous boot. The lease file has a resolution of one second.
        Some(at) if started.is_some_and(|start| at.as_second() < start.as_second()) => {
            format!(
                "no dhcp ack since the start (last one: {})",
                moment(at, now)
            )
        }
        Some(at) => format!("dhcp ack {}", moment(at, now)),
        None if nics.iter().any(is_ours) => "no dhcp ack since the start".to_owned(),
        None => "dhcp is provided by the network".to_owned(),
    }
}

fn dropped(evidence: &GuestEvidence) -> String {
    let Some(dropped) = evidence.dropped else {
        return "dropped packets: unknown".to_owned();
    };
    let mut out = format!("dropped by anti-spoof: {}", dropped.spoofed);
    if dropped.to_host > 0 {
        let _infallible = write!(out, ", sent to the host: {}", dropped.to_host);
    }
    out
}

fn requests(all: &[RequestSeen], now: Timestamp) -> String {
    let Some(last) = all.last() else {
        return "no metadata request since the start".to_owned();
    };
    let (mut shown, mut named) = (Vec::new(), Vec::new());
    for seen in all.iter().rev() {
        let name = name_of(&seen.path);
        let good = (200..300).contains(&seen.status);
        // The same document under several versions of the interface is shown once.
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

/// With seconds, to show the order.
fn moment(at: Timestamp, now: Timestamp) -> String {
    today_or_dated(at, now, "%H:%M:%S")
}

/// The last part of a path.
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
    fn the_hint_for_emergency_mode_names_rescue() {
        let hint_for = |line: &str| {
            let evidence = GuestEvidence {
                console: vec![line.to_owned()],
                ..GuestEvidence::default()
            };
            emergency(&evidence, "web")
        };
        let hint = hint_for("You are in emergency mode. After logging in, type").unwrap();
        assert!(hint.contains("waifuctl rescue web --force"));
        assert_eq!(hint_for("web login:"), None);
    }

    #[test]
    fn a_lease_of_the_previous_boot_is_not_shown_as_current() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let evidence = GuestEvidence {
            dhcp_acknowledged_at: Some(at(95)),
            ..GuestEvidence::default()
        };
        let text = |start| dhcp(&evidence, &[nic("default")], Some(at(start)), at(200));
        assert!(text(95).starts_with("dhcp ack "));
        assert!(text(120).starts_with("no dhcp ack since the start"));
    }

    #[test]
    fn requested_documents_and_refused_requests_are_shown_in_order() {
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
    fn missing_observations_are_named_and_text_of_the_guest_is_escaped() {
        let shown = |network| {
            lines(
                &GuestEvidence::default(),
                &[nic(network)],
                None,
                Timestamp::UNIX_EPOCH,
            )
        };
        assert!(shown("lan").starts_with("  dhcp is provided by the network · no metadata"));
        assert_eq!(
            shown("default"),
            "  no dhcp ack since the start · no metadata request since the start · dropped packets: unknown\n"
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
            text.contains("anti-spoof: 3, sent to the host: 4"),
            "{text}"
        );
    }

    #[test]
    fn modules_are_summarized_with_result_and_duration() {
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
            "  cloud-init: 3 modules have finished; slowest: modules-final/scripts-user 8.1s\n  \
             cloud-init: modules-final/scripts-user failed after 8.1s\n  \
             cloud-init: modules-final/phoneESC is running\n"
        );
        assert_eq!(modules(&[]), "");
    }

    #[test]
    fn an_unassigned_address_is_explained_only_on_a_bridge() {
        let dropped = |spoofed| GuestEvidence {
            dropped: Some(Dropped {
                spoofed,
                ..Dropped::default()
            }),
            ..GuestEvidence::default()
        };
        let hint = unassigned_address(&dropped(1), &[nic("default"), nic("lan")]);
        assert!(hint.unwrap().contains("--allow-address"));
        assert_eq!(unassigned_address(&dropped(1), &[nic("default")]), None);
        assert_eq!(unassigned_address(&dropped(0), &[nic("lan")]), None);
    }

    #[test]
    fn many_refusals_do_not_fill_the_screen() {
        let all: Vec<_> = (0..50).map(|n| seen(&format!("/{n}"), 404)).collect();
        let line = requests(&all, Timestamp::UNIX_EPOCH);
        assert!(line.contains("49 404, and 44 more"), "{line}");
    }
}
