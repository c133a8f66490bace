//! The lab's network: a bridge outside, one veth to each node, and no route to a real network.
//!
//! Addresses are from the ranges that RFC 5737 reserves for documentation: 192.0.2.0/24 is the home network, and
//! 198.51.100.1 stands for the internet.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::options::NodeSpec;
use crate::wait;

const LIMIT: Duration = Duration::from_secs(10);

/// The address of the node with this index; 0 is outside.
pub(crate) fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, index.saturating_add(1))
}

/// The arguments of the `ip` commands in a node's network namespace.
fn inside(node: &NodeSpec) -> Vec<Vec<String>> {
    let own = format!("{}/24", address(node.index));
    let lines: &[&str] = if node.index == 0 {
        &[
            "link set lo up",
            "address add 198.51.100.1/32 dev lo",
            "link add lan0 type bridge forward_delay 0",
            "address add OWN dev lan0",
            "link set lan0 up",
        ]
    } else {
        &[
            "link set lo up",
            "address add OWN dev eth0",
            "link set eth0 up",
            "route add default via ROUTER",
        ]
    };
    let router = address(0).to_string();
    lines
        .iter()
        .map(|line| {
            line.split(' ')
                .map(|word| word.replace("OWN", &own).replace("ROUTER", &router))
                .collect()
        })
        .collect()
}

/// The arguments of the `ip` commands outside that connect `node`, whose init is `pid`.
fn wire(node: &NodeSpec, pid: i32) -> Vec<Vec<String>> {
    let port = format!("to-{}", node.name);
    [
        format!("link add name {port} type veth peer name eth0 netns {pid}"),
        format!("link set {port} master lan0"),
        format!("link set {port} up"),
    ]
    .iter()
    .map(|line| line.split(' ').map(str::to_owned).collect())
    .collect()
}

/// Called by a node's init. Configures devices and addresses, and disables forwarding.
pub(crate) fn configure(node: &NodeSpec) -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("cannot disable forwarding")?;
    if node.index != 0 {
        wait::until("eth0", LIMIT, || {
            Ok(Path::new("/sys/class/net/eth0").exists().then_some(()))
        })?;
    }
    for arguments in inside(node) {
        wait::run(Command::new("ip").args(arguments), LIMIT)?;
    }
    Ok(())
}

/// Called by the guard once both inits exist.
pub(crate) fn connect(node: &NodeSpec, node_pid: i32, outside_pid: i32) -> Result<()> {
    // The init of outside creates the bridge in `configure`, at the same time as this.
    let enter = |arguments: &[String]| {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &outside_pid.to_string(), "--net", "--", "ip"])
            .args(arguments);
        command
    };
    let bridge = ["link", "show", "dev", "lan0", "up"].map(str::to_owned);
    wait::until("the bridge outside", LIMIT, || {
        let shown = wait::output(&mut enter(&bridge), LIMIT)?;
        Ok((shown.status.success() && !shown.stdout.is_empty()).then_some(()))
    })?;
    for arguments in wire(node, node_pid) {
        wait::run(&mut enter(&arguments), LIMIT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(index: u8) -> NodeSpec {
        NodeSpec {
            name: "alder".into(),
            index,
            bin_dir: "/b".into(),
            host_uuid: "u".into(),
            libvirt: true,
            daemons: false,
        }
    }

    #[test]
    fn only_nodes_have_a_default_route_and_it_ends_at_the_simulated_router() {
        let flat = |index| inside(&node(index)).concat().join(" ");
        assert!(flat(1).contains("address add 192.0.2.2/24 dev eth0"));
        assert!(flat(1).contains("route add default via 192.0.2.1"));
        assert!(!flat(0).contains("route"));
    }

    #[test]
    fn interface_names_fit_the_kernels_fifteen_letters() {
        let long = NodeSpec {
            name: "a23456789012".into(),
            ..node(1)
        };
        let wire = wire(&long, 1);
        assert_eq!(wire[0][3].len(), 15);
    }
}
