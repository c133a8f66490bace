//! The lab's network: a bridge outside, one veth to each machine and to outside itself, and no route to a real network.
//!
//! Addresses are from the ranges that RFC 5737 reserves for documentation: 192.0.2.0/24 is the home network, and
//! 198.51.100.1 stands for the internet.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::options::MachineSpec;
use crate::wait;

const LIMIT: Duration = Duration::from_secs(10);

/// The address of the node with this index; 0 is outside.
pub(crate) fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, index.saturating_add(1))
}

/// The hardware address at [`address`]. It is fixed, so that a machine keeps it when it boots again.
pub(crate) fn hardware_address(index: u8) -> [u8; 6] {
    let [a, b, c, d] = address(index).octets();
    [2, 0, a, b, c, d]
}

fn hardware_text(index: u8) -> String {
    hardware_address(index)
        .map(|byte| format!("{byte:02x}"))
        .join(":")
}

/// The bridge's port to the machine `name`.
pub(crate) fn port(name: &str) -> String {
    format!("to-{name}")
}

/// The arguments of the `ip` commands in a node's network namespace.
fn inside(node: &MachineSpec) -> Vec<Vec<String>> {
    let own = format!("{}/24", address(node.index));
    let lines: &[&str] = if node.index == 0 {
        &[
            "link set lo up",
            "address add 198.51.100.1/32 dev lo",
            "link add switch0 type bridge forward_delay 0",
            "link add lan0 address HARDWARE type veth peer name to-outside",
            "link set to-outside master switch0",
            // Without ARP: otherwise the bridge itself answers for lan0's address, and frames for it pass cut links.
            "link set switch0 arp off up",
            "link set to-outside up",
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
    let hardware = hardware_text(node.index);
    lines
        .iter()
        .map(|line| {
            line.split(' ')
                .map(|word| match word {
                    "OWN" => own.clone(),
                    "ROUTER" => router.clone(),
                    "HARDWARE" => hardware.clone(),
                    word => word.to_owned(),
                })
                .collect()
        })
        .collect()
}

/// The arguments of the `ip` commands outside that connect `node`, whose init is `pid`.
fn wire(node: &MachineSpec, pid: i32) -> Vec<Vec<String>> {
    let port = port(&node.name);
    let hardware = hardware_text(node.index);
    [
        format!("link add name {port} type veth peer name eth0 netns {pid} address {hardware}"),
        format!("link set {port} master switch0"),
        format!("link set {port} up"),
    ]
    .iter()
    .map(|line| line.split(' ').map(str::to_owned).collect())
    .collect()
}

/// Called by a node's init. Configures devices and addresses, and disables forwarding.
pub(crate) fn configure(node: &MachineSpec) -> Result<()> {
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

/// A command in the network namespace of "outside", whose init is `outside_pid`.
pub(crate) fn outside(outside_pid: i32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &outside_pid.to_string(), "--net", "--", program]);
    command
}

/// Called by the guard once both inits exist.
pub(crate) fn connect(node: &MachineSpec, node_pid: i32, outside_pid: i32) -> Result<()> {
    // The init of outside creates the bridge, and then brings up lan0, in `configure`, at the same time as this.
    wait::until("the bridge outside", LIMIT, || {
        let mut show = outside(outside_pid, "ip");
        let shown = wait::output(show.args(["link", "show", "dev", "lan0", "up"]), LIMIT)?;
        Ok((shown.status.success() && !shown.stdout.is_empty()).then_some(()))
    })?;
    for arguments in wire(node, node_pid) {
        wait::run(outside(outside_pid, "ip").args(arguments), LIMIT)?;
    }
    Ok(())
}

/// Removes the bridge's port to a machine that has ended. The kernel does the same, but later: after that, a new port of
/// this name could not be created.
pub(crate) fn disconnect(node: &MachineSpec, outside_pid: i32) -> Result<()> {
    let port = port(&node.name);
    let mut delete = outside(outside_pid, "ip");
    let deleted = wait::output(delete.args(["link", "delete", "dev", &port]), LIMIT)?;
    // It fails if the kernel was faster.
    let mut show = outside(outside_pid, "ip");
    let shown = wait::output(show.args(["link", "show", "dev", &port]), LIMIT)?;
    ensure!(
        !shown.status.success(),
        "cannot remove the port {port}: {}",
        String::from_utf8_lossy(&deleted.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Role;

    fn node(index: u8) -> MachineSpec {
        MachineSpec::for_test("alder", index, Role::Bare)
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
        let long = MachineSpec {
            name: "a23456789012".into(),
            ..node(1)
        };
        let wire = wire(&long, 1);
        assert_eq!(wire[0][3].len(), 15);
    }
}
