//! Repeated ensure, restarts, changes by others, and removal.

use std::future::Future;
use std::net::Ipv4Addr;

use tokio::sync::broadcast;
use waifud_network::{GuestNetwork, NetworkDrift, NetworkError, conformance};

use crate::frames::{self, IPV4, ethernet, ipv4};
use crate::lab::{GATEWAY, GATEWAY_MAC, Guest, Lab, on_a_node, port, with_a_guest, with_metadata};
use crate::namespace::Namespace;
use crate::wire::PATIENCE;

pub async fn drifts(drift: &mut broadcast::Receiver<NetworkDrift>, words: &str) {
    let seen = async {
        loop {
            let what = drift.recv().await.unwrap().what;
            if what.contains(words) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, seen).await;
    in_time.unwrap_or_else(|_| panic!("drift {words:?} was not reported"));
}

/// The gateway answers the guest.
fn is_served(guest: &Guest) {
    let ping = frames::echo(b"are you there");
    let ping = ipv4(guest.address(), GATEWAY, 1, &ping);
    guest.wire.seen();
    guest
        .wire
        .send(&ethernet(GATEWAY_MAC, guest.mac(), IPV4, &ping));
    guest.wire.until("an echo reply", |frame| {
        frame[..6] == guest.mac() && frame[23] == 1 && frame[34] == 0
    });
}

/// The part of the host's configuration that removal must restore.
pub fn host(lab: &Lab) -> String {
    let mut text = String::new();
    for arguments in ["rule", "-o addr", "neigh show proxy"] {
        text.push_str(&lab.node.ip(arguments));
    }
    // Carriers change a moment after their cause.
    let routes = lab.node.ip("route show table all");
    text.push_str(&routes.replace("linkdown ", ""));
    for link in lab.node.ip("-o link").lines() {
        let mut words = link.split_ascii_whitespace();
        while let Some(word) = words.next() {
            match word {
                "state" => drop(words.next()),
                _ if word.starts_with('<') => {}
                _ => text.push_str(word),
            }
        }
    }
    text.push_str(&lab.node.tool("nft", &["-s", "list", "ruleset"]));
    for interface in ["all", "default", "lo", "up0", "wgw0"] {
        for key in [
            "forwarding",
            "rp_filter",
            "send_redirects",
            "proxy_arp_pvlan",
        ] {
            text.push_str(&lab.node.sysctl(&format!("ipv4/conf/{interface}/{key}")));
        }
    }
    text.push_str(&lab.node.sysctl("ipv4/ip_forward"));
    text
}

/// A node with the network in place, and what reports changes of it from then on.
fn with_drift<F: Future<Output = ()>>(
    guests: u8,
    test: impl FnOnce(Lab, broadcast::Receiver<NetworkDrift>) -> F + Send,
) {
    on_a_node(guests, |lab| async move {
        let drift = lab.network.drift();
        lab.ensure().await;
        test(lab, drift).await;
    });
}

#[test]
fn the_linux_network_passes_the_conformance_tests() {
    on_a_node(3, |lab| async move {
        conformance::all(lab.network.as_ref(), &lab.state).await;
    });
}

#[test]
fn ensuring_again_changes_nothing() {
    with_metadata(2, |lab, guest| async move {
        let _alive = &guest;
        let (rules, pid, there) = (lab.ruleset(), lab.dnsmasq_pid(), host(&lab));
        for _ in 0..2 {
            lab.ensure().await;
            // Everything that is loaded again gets new handles.
            assert_eq!(lab.ruleset(), rules);
            assert_eq!(lab.dnsmasq_pid(), pid);
            assert_eq!(host(&lab), there);
        }
    });
}

#[test]
fn a_restarted_adapter_adopts_everything_and_stops_nothing() {
    with_a_guest(2, |lab, guest| async move {
        // The second ensure compares with the rules that the first one loaded.
        lab.ensure().await;
        let (rules, pid) = (lab.ruleset(), lab.dnsmasq_pid());
        let heir = lab.restarted();
        let Lab { network, .. } = &lab;
        assert_eq!(std::sync::Arc::strong_count(network), 1);
        heir.ensure(&lab.state).await.unwrap();
        assert_eq!(lab.ruleset(), rules);
        assert_eq!(lab.dnsmasq_pid(), pid);
        assert_eq!(lab.dnsmasqs().len(), 1);
        is_served(&guest);
    });
}

#[test]
fn dnsmasq_runs_as_a_separate_daemon_without_privileges() {
    on_a_node(1, |lab| async move {
        lab.ensure().await;
        let pid = nix::unistd::Pid::from_raw(lab.dnsmasq_pid());
        assert_ne!(
            nix::unistd::getsid(Some(pid)).unwrap(),
            nix::unistd::getsid(None).unwrap()
        );
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let uid = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap();
        assert!(!uid.split_ascii_whitespace().any(|id| id == "0"), "{uid}");
    });
}

#[test]
fn a_dnsmasq_without_a_record_is_found_and_replaced() {
    on_a_node(1, |lab| async move {
        lab.ensure().await;
        let before = lab.dnsmasq_pid();
        std::fs::remove_file(lab.run_dir().join("record.json")).unwrap();
        lab.restarted().ensure(&lab.state).await.unwrap();
        assert_ne!(lab.dnsmasq_pid(), before);
        assert_eq!(lab.dnsmasqs(), [lab.dnsmasq_pid()]);
    });
}

#[test]
fn counters_survive_a_change_of_ports() {
    with_a_guest(1, |mut lab, guest| async move {
        let forged = ethernet(GATEWAY_MAC, [2; 6], IPV4, b"forged");
        for _ in 0..3 {
            guest.wire.send(&forged);
        }
        is_served(&guest);
        assert_eq!(lab.counters(&guest.port.tap).await.spoofed, 3);
        lab.state.ports.push(port(7));
        lab.ensure().await;
        assert_eq!(lab.counters(&guest.port.tap).await.spoofed, 3);
        assert_eq!(lab.counters(&port(7).tap).await.spoofed, 0);
    });
}

#[test]
fn incremental_changes_lead_to_the_same_rules_as_a_complete_load() {
    on_a_node(3, |mut lab| async move {
        let listed = |lab: &Lab| {
            let list = |family| {
                let arguments = ["-s", "list", "table", family, "waifud"];
                lab.node.tool("nft", &arguments)
            };
            list("bridge") + &list("inet")
        };
        lab.ensure().await;
        let chain = lab.node.tool("nft", &["-a", "list", "chains", "bridge"]);
        for step in [7, 8, 9] {
            lab.state.ports.remove(0);
            lab.state.ports.push(port(step));
            lab.ensure().await;
            let stepwise = listed(&lab);
            // Chains that are loaded again have other handles.
            let same = lab.node.tool("nft", &["-a", "list", "chains", "bridge"]);
            assert_eq!(same, chain);
            // Another node loads the same state from the beginning.
            let other = Namespace::new();
            let rules = std::fs::read_to_string(lab.run_dir().join("rules.nft")).unwrap();
            let file = lab.run_dir().join("copy.nft");
            std::fs::write(&file, rules).unwrap();
            other.tool("nft", &["-f", file.to_str().unwrap()]);
            let at_once = ["bridge", "inet"]
                .map(|family| other.tool("nft", &["-s", "list", "table", family, "waifud"]));
            assert_eq!(stepwise, at_once.concat());
        }
        let guest = lab.attach(2).await;
        is_served(&guest);
    });
}

#[test]
fn flushed_rules_are_detected_and_loaded_again() {
    with_drift(1, |lab, mut drift| async move {
        let guest = lab.attach(0).await;
        lab.node.tool("nft", &["flush", "ruleset"]);
        drifts(&mut drift, "firewall").await;
        assert_eq!(lab.network.counters(&guest.port.tap).await.unwrap(), None);
        lab.ensure().await;
        assert!(
            lab.network
                .counters(&guest.port.tap)
                .await
                .unwrap()
                .is_some()
        );
        is_served(&guest);
    });
}

#[test]
fn a_removed_rule_is_detected_and_rules_of_others_are_ignored() {
    with_drift(1, |lab, mut drift| async move {
        lab.ensure().await;
        let pid = lab.dnsmasq_pid();
        lab.node.tool("nft", &["add", "table", "ip", "foreign"]);
        let rules = lab.ruleset();
        lab.ensure().await;
        assert_eq!(lab.ruleset(), rules);
        lab.node
            .tool("nft", &["flush", "chain", "inet", "waifud", "to_host"]);
        drifts(&mut drift, "firewall").await;
        lab.ensure().await;
        let chain = lab
            .node
            .tool("nft", &["list", "chain", "inet", "waifud", "to_host"]);
        assert!(chain.contains("dport 53"), "{chain}");
        lab.node.tool("nft", &["list", "table", "ip", "foreign"]);
        assert_eq!(lab.dnsmasq_pid(), pid);
    });
}

#[test]
fn a_deleted_bridge_is_detected_and_gets_its_ports_back() {
    with_drift(2, |lab, mut drift| async move {
        let guest = lab.attach(0).await;
        is_served(&guest);
        lab.node.ip("link del waifu0");
        drifts(&mut drift, "waifu0").await;
        lab.ensure().await;
        is_served(&guest);
        let port = lab.node.ip(&format!("-d link show {}", guest.port.tap));
        assert!(port.contains("isolated on"), "{port}");
        assert_eq!(lab.dnsmasqs().len(), 1);
    });
}

#[test]
fn changes_of_the_bridge_and_the_routes_are_detected_and_reverted() {
    on_a_node(1, |lab| async move {
        lab.connect_metadata().await;
        let mut drift = lab.network.drift();
        lab.ensure().await;
        let guest = lab.attach(0).await;
        let there = host(&lab);
        for (change, words) in [
            ("link set waifu0 down", "is down"),
            ("link set waifu0 address 02:00:00:00:00:09", "was changed"),
            ("addr flush dev waifu0", "lost its address"),
            ("rule del priority 1690", "routes to metadata"),
            ("route flush table 1690", "routes to metadata"),
            ("link set wf-77777700 nomaster", "is not a port"),
        ] {
            lab.node.ip(change);
            drifts(&mut drift, words).await;
            lab.ensure().await;
            assert_eq!(host(&lab), there, "after {change}");
            is_served(&guest);
        }
        std::fs::write("/proc/sys/net/ipv4/conf/up0/forwarding", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/waifu0/forwarding", "0").unwrap();
        // There are no notifications about these; they are checked with the rest.
        lab.node.ip("link set lo down");
        lab.node.ip("link set lo up");
        drifts(&mut drift, "setting of waifu0").await;
        lab.ensure().await;
        assert_eq!(host(&lab), there);
    });
}

#[test]
fn a_metadata_interface_that_appears_later_is_detected() {
    with_drift(1, |lab, mut drift| async move {
        lab.connect_metadata().await;
        drifts(&mut drift, "routes to metadata").await;
        lab.ensure().await;
        let table = lab.node.ip("route show table 1690");
        assert!(table.contains("169.254.169.254 dev wgw0"), "{table}");
    });
}

#[test]
fn a_killed_dnsmasq_is_detected_and_started_again() {
    with_drift(1, |lab, mut drift| async move {
        let before = lab.dnsmasq_pid();
        lab.kill_dnsmasq();
        drifts(&mut drift, "dnsmasq").await;
        lab.ensure().await;
        assert_ne!(lab.dnsmasq_pid(), before);
        assert_eq!(lab.dnsmasqs(), [lab.dnsmasq_pid()]);
    });
}

#[test]
fn unrelated_changes_are_not_drift() {
    with_drift(1, |lab, mut drift| async move {
        let guest = lab.attach(0).await;
        let mut checks = lab.network.checks();
        // Links are created and deleted, and rules of others change: there are several checks, and no drift.
        for round in 0..3 {
            lab.node.ip(&format!("link add d{round} type bridge"));
            lab.node
                .tool("nft", &["add", "table", "ip", &format!("t{round}")]);
            // A check may have begun before the change.
            let enough = *checks.borrow() + 2;
            let checked = checks.wait_for(|checks| *checks >= enough);
            tokio::time::timeout(PATIENCE, checked)
                .await
                .unwrap()
                .unwrap();
        }
        let reported = drift.try_recv();
        assert!(reported.is_err(), "{reported:?}");
        is_served(&guest);
        // Drift would have been reported by now.
        lab.kill_dnsmasq();
        drifts(&mut drift, "dnsmasq").await;
    });
}

#[test]
fn removal_leaves_nothing() {
    on_a_node(2, |lab| async move {
        lab.connect_metadata().await;
        let before = host(&lab);
        let mut state = lab.state.clone();
        state.ports[0].allow_addresses = vec!["10.99.0.0/24".parse().unwrap()];
        lab.network.ensure(&state).await.unwrap();
        assert_ne!(host(&lab), before);
        lab.network.ensure_absent().await.unwrap();
        assert_eq!(host(&lab), before);
        assert!(lab.dnsmasqs().is_empty());
        let left = |dir| std::fs::read_dir(dir).unwrap().count();
        assert_eq!(left(lab.run_dir()), 0);
        assert_eq!(left(lab.state_dir()), 0);

        // By another adapter, which only has the record.
        lab.network.ensure(&state).await.unwrap();
        lab.restarted().ensure_absent().await.unwrap();
        assert_eq!(host(&lab), before);
    });
}

#[test]
fn forwarding_that_was_enabled_before_stays_enabled() {
    on_a_node(1, |lab| async move {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let before = host(&lab);
        lab.ensure().await;
        let switched = lab
            .node
            .tool("nft", &["list", "set", "inet", "waifud", "switched"]);
        assert!(!switched.contains("up0"), "{switched}");
        lab.network.ensure_absent().await.unwrap();
        assert_eq!(host(&lab), before);
    });
}

#[test]
fn a_changed_subnet_replaces_the_former_one() {
    on_a_node(1, |mut lab| async move {
        lab.ensure().await;
        lab.state.subnet = "10.144.9.0/24".parse().unwrap();
        lab.state.gateway = [10, 144, 9, 1].into();
        lab.state.ports[0].address = [10, 144, 9, 11].into();
        lab.ensure().await;
        let addresses = lab.node.ip("-o -4 addr show dev waifu0");
        assert!(addresses.contains("10.144.9.1/24"), "{addresses}");
        assert_eq!(addresses.lines().count(), 1, "{addresses}");
        let rules = lab.node.ip("rule");
        assert!(!rules.contains("10.144.1.0"), "{rules}");
        assert_eq!(lab.dnsmasqs().len(), 1);
    });
}

#[test]
fn a_renamed_bridge_replaces_the_former_one() {
    on_a_node(1, |mut lab| async move {
        lab.ensure().await;
        lab.state.bridge = "waifu1".to_owned();
        lab.ensure().await;
        let links = lab.node.ip("-o link");
        assert!(
            links.contains("waifu1") && !links.contains("waifu0"),
            "{links}"
        );
    });
}

#[test]
fn a_bridge_that_waifud_did_not_create_is_not_changed() {
    on_a_node(1, |lab| async move {
        lab.node.ip("link add waifu0 type bridge");
        lab.node.ip("link set waifu0 address 02:00:00:00:00:07");
        let error = lab.network.ensure(&lab.state).await.unwrap_err();
        assert!(matches!(error, NetworkError::Kernel { .. }), "{error}");
        assert!(error.to_string().contains("choose another name"), "{error}");
        let link = lab.node.ip("link show waifu0");
        assert!(link.contains("02:00:00:00:00:07"), "{link}");
    });
}

#[test]
fn a_subnet_that_the_host_already_routes_is_refused_and_nothing_is_changed() {
    on_a_node(1, |lab| async move {
        lab.node.ip("route add 10.144.0.0/16 dev up0");
        let before = host(&lab);
        let error = lab.network.ensure(&lab.state).await.unwrap_err();
        assert!(matches!(error, NetworkError::Overlap { .. }), "{error}");
        assert_eq!(host(&lab), before);
        let facts = lab.network.host_facts().await.unwrap();
        let routes: Vec<_> = facts.routes.iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["10.144.0.0/16", "192.0.2.0/24"]);
    });
}

#[test]
fn a_route_that_overlaps_the_subnet_later_is_drift_and_keeps_what_is_applied() {
    on_a_node(1, |lab| async move {
        lab.ensure().await;
        let mut drift = lab.network.drift();
        let before = lab.node.tool("nft", &["list", "ruleset"]);
        lab.node.ip("route add 10.144.0.0/16 dev up0");
        drifts(&mut drift, "10.144.0.0/16").await;
        let error = lab.network.ensure(&lab.state).await.unwrap_err();
        assert!(matches!(error, NetworkError::Overlap { .. }), "{error}");
        assert_eq!(lab.node.tool("nft", &["list", "ruleset"]), before);
        lab.node.ip("route del 10.144.0.0/16 dev up0");
        lab.ensure().await;
    });
}

#[test]
fn firewalls_that_drop_forwarded_packets_are_listed() {
    on_a_node(0, |lab| async move {
        let docker = "add table ip filter; \
                      add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; \
                      add chain ip filter DOCKER-USER";
        lab.node.tool("nft", &[docker]);
        lab.ensure().await;
        let facts = lab.network.host_facts().await.unwrap();
        assert_eq!(
            facts.foreign_firewalls,
            ["Docker: chain FORWARD of table ip filter"]
        );
        assert_eq!(facts.bridges, ["waifu0"]);
    });
}

#[test]
fn a_missing_tool_is_named() {
    on_a_node(0, |lab| async move {
        let network = lab.restarted_with(|config| config.nft = "/nonexistent/nft".into());
        let error = network.ensure(&lab.state).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/nft"), "{error}");
        let taken = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        let error = lab.network.ensure(&lab.state).await.unwrap_err();
        assert!(
            matches!(
                error,
                NetworkError::Tool {
                    tool: "dnsmasq",
                    ..
                }
            ),
            "{error}"
        );
        drop(taken);
        lab.ensure().await;
    });
}
