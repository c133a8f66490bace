//! The simulated home network around the lab's node: a bridge of the node that waifud did not create, and a router with
//! DHCP.

use anyhow::{Context, Result};
use waifud_lab::wait;

use crate::World;
use crate::world::{NODE, SOON};

/// The bridge that the node's administrator created.
pub const BRIDGE: &str = "br0";
/// The router.
pub const ROUTER: &str = "192.0.2.1";
/// The prefix of the addresses that its DHCP server assigns. No other address here has it.
pub const GIVEN: &str = "192.0.2.1";

/// Creates the bridge as an administrator would (the node's interface and address move into it), and starts the
/// router's DHCP server, which ends with the lab.
pub fn make(world: &World) -> Result<()> {
    let own = "192.0.2.2/24";
    for line in [
        format!("link add {BRIDGE} type bridge forward_delay 0"),
        format!("link set {BRIDGE} up"),
        format!("address delete {own} dev eth0"),
        format!("link set eth0 master {BRIDGE}"),
        format!("address add {own} dev {BRIDGE}"),
        format!("route replace default via {ROUTER}"),
    ] {
        let mut argv = vec!["ip"];
        argv.extend(line.split(' '));
        world.node(&argv)?;
    }
    outside(
        world,
        &[
            "dnsmasq",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
            "--interface=lan0",
            "--bind-interfaces",
            "--dhcp-authoritative",
            "--no-ping",
            "--dhcp-range=192.0.2.100,192.0.2.150,1h",
            "--dhcp-leasefile=/run/home.leases",
            "--pid-file=/run/home.pid",
        ],
    )
    .context("the home's DHCP server")?;
    Ok(())
}

/// Runs a program in the home network, outside the node, and returns its output.
pub fn outside(world: &World, argv: &[&str]) -> Result<String> {
    wait::run(&mut world.lab.command(waifud_lab::OUTSIDE, argv)?, SOON)
}

/// The node's rules, routes and neighbors for guest ports on its own bridges.
pub fn traces(world: &World) -> Result<String> {
    let mut text = String::new();
    for argv in [
        ["ip", "rule"].as_slice(),
        &["ip", "route", "show", "table", "all"],
        &["ip", "neigh", "show", "nud", "permanent"],
        &["ip", "neigh", "show", "proxy"],
    ] {
        let shown = world.node(argv)?;
        let of_lan = |line: &&str| {
            line.contains("240.119.") || line.contains(BRIDGE) && line.contains("169.254.")
        };
        for line in shown.lines().filter(of_lan) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

/// The number of packets that the node's rules dropped because of a forged source.
pub fn spoofed(world: &World) -> Result<u64> {
    let argv = ["nft", "-j", "list", "counters", "table", "bridge", "waifud"];
    let listed: serde_json::Value =
        serde_json::from_str(&wait::run(&mut world.lab.command(NODE, argv)?, SOON)?)?;
    let objects = listed["nftables"].as_array().context("no list")?;
    let counters = objects.iter().map(|object| &object["counter"]);
    let spoofed = counters.filter(|counter| {
        counter["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("spoofed-"))
    });
    Ok(spoofed.filter_map(|c| c["packets"].as_u64()).sum())
}
