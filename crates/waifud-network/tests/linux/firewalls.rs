//! Docker, ufw and firewalld on the node, simulated by the rules that they create.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use waifud_kit::testing::skip_if;
use waifud_network::GuestNetwork;
use waifud_types::spec::{Protocol, PublishSpec};

use crate::lab::{GATEWAY, Guest, Lab, OUTSIDE, UPLINK, on_a_node, set_bridge_netfilter};
use crate::lifecycle::{drifts, host};
use crate::reach::{greeter, greets, is_greeted};
use crate::wire::ping;

/// The rules of Docker with an empty network, on a host that did not forward.
const DOCKER: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
    :DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j DOCKER\n\
    -A DOCKER-USER -j RETURN\nCOMMIT\n";

/// The basic rules of `ufw enable`.
const UFW: &str = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:ufw-before-input - [0:0]\n\
    :ufw-before-forward - [0:0]\n-A INPUT -j ufw-before-input\n-A FORWARD -j ufw-before-forward\n\
    -A ufw-before-input -i lo -j ACCEPT\n\
    -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";

const FIREWALLD: &str = "table inet firewalld {\n\
    chain filter_INPUT { type filter hook input priority 10; policy accept;\n\
    ct state { established, related } accept\niifname \"lo\" accept\nreject with icmpx admin-prohibited\n}\n\
    chain filter_FORWARD { type filter hook forward priority 10; policy accept;\n\
    ct state { established, related } accept\nreject with icmpx admin-prohibited\n}\n}\n";

/// Loads rules as their program does, replacing its previous ones.
fn load(tool: &str, rules: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules");
    std::fs::write(&file, rules).unwrap();
    let mut command = Command::new(tool);
    if tool == "nft" {
        command.arg("-f").arg(&file);
    } else {
        command.stdin(std::fs::File::open(&file).unwrap());
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool}: {error}");
}

fn has(tool: &str) -> bool {
    let found = std::path::Path::new("/usr/sbin").join(tool).exists();
    !skip_if((!found).then(|| format!("{tool} is needed")))
}

fn publish(lab: &mut Lab) {
    lab.state.ports[0].publish = vec![PublishSpec {
        port: 80,
        guest_port: 8080,
        protocol: Protocol::Tcp,
    }];
}

/// Checks connections to the outside, through a published port, and to the gateway's services.
fn gets_through(lab: &Lab, guest: &Guest) {
    let outside = greeter(&lab.outside, (OUTSIDE, 8000));
    let seen = is_greeted(guest, SocketAddrV4::new(OUTSIDE, 8000), &outside);
    assert_eq!(seen, UPLINK);
    let server = greeter(&guest.namespace, (Ipv4Addr::UNSPECIFIED, 8080));
    let web = SocketAddrV4::new(UPLINK, 80);
    assert_eq!(greets(&lab.outside, web, &server), OUTSIDE);
    ping(&guest.namespace, GATEWAY);
}

/// The same checks with the rules of another firewall: loaded, reloaded, repaired and removed.
fn lives_beside(tool: &'static str, rules: &'static str, places: &'static [&'static str]) {
    if tool != "nft" && !has(tool) {
        return;
    }
    on_a_node(1, |mut lab| async move {
        load(tool, rules);
        publish(&mut lab);
        if tool == "iptables-legacy-restore" {
            // Legacy iptables sends no notifications, so only a full check finds its changes. By default it is made every 15
            // seconds.
            let often = Duration::from_millis(200);
            lab.network = lab.restarted_with(|config| config.full_check = often);
        }
        let saved = |lab: &Lab| {
            let save = format!("{tool}-save").replace("-restore", "");
            let text = if tool == "nft" {
                String::new()
            } else {
                lab.node.tool(&save, &["-t", "filter"])
            };
            assert!(!text.contains("incompatible"), "{text}");
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            // The packets that the policies have counted.
            let lines = lines.map(|line| line.split('[').next().unwrap_or_default());
            lines.collect::<Vec<_>>().join("\n")
        };
        let before = host(&lab) + &saved(&lab);
        let mut drift = lab.network.drift();
        lab.ensure().await;
        let guest = lab.attach(0).await;
        gets_through(&lab, &guest);
        let facts = lab.network.host_facts().await.unwrap();
        assert_eq!(facts.accepting_chains, places);
        assert_eq!(facts.firewall_error, None);
        let there = host(&lab) + &saved(&lab);
        lab.ensure().await;
        assert_eq!(host(&lab) + &saved(&lab), there);

        // The firewall restarts: its chains are created again without our rules.
        if tool == "nft" {
            lab.node
                .tool("nft", &["delete", "table", "inet", "firewalld"]);
        }
        load(tool, rules);
        drifts(&mut drift, "firewall").await;
        lab.ensure().await;
        gets_through(&lab, &guest);

        drop(guest);
        lab.network.ensure_absent().await.unwrap();
        // Removing the guest's end also removes its tap, a moment later.
        crate::wire::eventually("the tap is gone", || {
            !lab.node.ip("-o link").contains("wf-")
        });
        assert_eq!(host(&lab) + &saved(&lab), before);
    });
}

#[test]
fn dockers_rules_accept_guests() {
    lives_beside(
        "iptables-nft-restore",
        DOCKER,
        &["DOCKER-USER of iptables-nft"],
    );
}

#[test]
fn ufws_rules_accept_guests() {
    lives_beside(
        "iptables-nft-restore",
        UFW,
        &[
            "ufw-before-forward of iptables-nft",
            "ufw-before-input of iptables-nft",
        ],
    );
}

#[test]
fn rules_of_legacy_iptables_accept_guests() {
    lives_beside(
        "iptables-legacy-restore",
        DOCKER,
        &["DOCKER-USER of iptables-legacy"],
    );
}

#[test]
fn firewallds_rules_accept_guests() {
    lives_beside(
        "nft",
        FIREWALLD,
        &[
            "filter_FORWARD of inet firewalld",
            "filter_INPUT of inet firewalld",
        ],
    );
}

#[test]
fn guests_rules_are_in_force_and_the_failure_reported_if_another_firewall_refuses_a_rule() {
    if !has("iptables-nft-restore") {
        return;
    }
    on_a_node(1, |lab| async move {
        load("iptables-nft-restore", DOCKER);
        let network = lab.restarted_with(|config| config.iptables = "/nonexistent".into());
        network.ensure(&lab.state).await.unwrap();
        let facts = network.host_facts().await.unwrap();
        let trouble = facts.firewall_error.unwrap();
        assert!(
            trouble.contains("/nonexistent/iptables-nft-save"),
            "{trouble}"
        );
        assert!(!lab.ruleset().is_empty());
    });
}

#[test]
fn dockers_rules_accept_guests_on_a_host_bridge() {
    if !has("iptables-nft") {
        return;
    }
    for bridge_netfilter in [false, true] {
        on_a_node(0, |mut lab| async move {
            lab.connect_metadata().await;
            if !set_bridge_netfilter(&lab.node, bridge_netfilter) {
                return;
            }
            load("iptables-nft-restore", DOCKER);
            let home = crate::home::Home::new(&lab, "br0", true).await;
            lab.state.lan = vec![crate::home::lan_port(0, "br0")];
            lab.ensure().await;
            let guest = crate::home::LanGuest::attach(&lab, 0).await;
            guest.is_given(&lab, &home, [192, 168, 1, 40].into());
            ping(&guest.namespace, crate::home::ROUTER);
            ping(&guest.namespace, crate::lab::METADATA);
            lab.network.ensure_absent().await.unwrap();
            let rules = lab.node.tool("iptables-nft-save", &[]);
            assert!(!rules.contains("waifud"), "{rules}");
        });
    }
}
