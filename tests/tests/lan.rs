//! A guest on a bridge that the host already has: the home's DHCP serves it, metadata reaches it through its port, and
//! what it was not given it can't use.

use anyhow::{Result, ensure};
use waifud_tests::home::{self, GIVEN, ROUTER};
use waifud_tests::{Guest, World};

const NAME: &str = "switched";

/// The address that the home's DHCP server gave, as waifud tells it.
fn observed(instance: &serde_json::Value) -> Option<&str> {
    let first = instance.pointer("/status/addresses/0")?;
    let address = first["address"].as_str()?;
    let seen = first["source"] == "observed" && first["primary"] == true;
    (seen && first["network"] == "lan" && address.starts_with(GIVEN)).then_some(address)
}

#[test]
fn a_guest_is_switched_into_the_home_and_gets_its_documents_there() -> Result<()> {
    World::with(|world| {
        home::make(world)?;
        world
            .waifuctl
            .json(&["network", "add", "lan", "--bridge", home::BRIDGE])?;
        let key = world.public_key.display().to_string();
        world.waifuctl.json(&[
            "create",
            NAME,
            "-t",
            waifud_tests::world::TINY,
            "--disk",
            "1G",
            "--memory",
            "128M",
            "--ssh-key",
            &key,
            "--network",
            "lan",
            "--wait",
            "--timeout",
            "5m",
        ])?;
        let instance = world.until(NAME, "an address of the home's", |i| observed(i).is_some())?;
        ensure!(instance["status"]["ready"] == true, "{instance:#}");
        // Its documents came over the network, not from a disk.
        let conditions = instance["status"]["conditions"].to_string();
        ensure!(!conditions.contains("by-disk"), "{conditions}");
        let guest = Guest {
            world,
            name: NAME.to_owned(),
            address: observed(&instance).unwrap_or_default().to_owned(),
        };
        ensure!(guest.run_when_up("hostname")?.trim() == NAME);
        let documents = guest.run(
            "timeout 20 wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json",
        )?;
        ensure!(documents.contains(NAME), "{documents}");
        // A machine of the home reaches it directly.
        home::outside(world, &["ping", "-c", "1", "-W", "5", &guest.address])?;
        only_what_was_given(&guest)?;
        a_flushed_firewall_is_mended(&guest)?;
        world.delete(NAME)?;
        let left = home::traces(world)?;
        ensure!(left.is_empty(), "left behind:\n{left}");
        world.waifuctl.json(&["network", "delete", "lan"])?;
        Ok(())
    })
}

/// An address that the guest gives itself is mute, and its drops are counted.
fn only_what_was_given(guest: &Guest<'_>) -> Result<()> {
    let before = home::spoofed(guest.world)?;
    let taken = "ip addr add 192.0.2.77/24 dev eth0";
    let asks = format!("ping -c 2 -W 2 -I 192.0.2.77 {ROUTER} >/dev/null 2>&1 && echo answered");
    let said = guest.run(&format!(
        "{taken}; {asks}; ip addr del 192.0.2.77/24 dev eth0; true"
    ))?;
    ensure!(!said.contains("answered"), "a forged address was answered");
    let after = home::spoofed(guest.world)?;
    ensure!(after > before, "nothing was counted: {before}, {after}");
    Ok(())
}

/// Somebody restarts the host's firewall: the guest is reached again by the address that it has.
fn a_flushed_firewall_is_mended(guest: &Guest<'_>) -> Result<()> {
    guest.world.node(&["nft", "flush", "ruleset"])?;
    waifud_lab::wait::until("our rules", waifud_tests::world::SOON, || {
        let tables = guest.world.node(&["nft", "list", "tables"])?;
        Ok(tables.contains("table bridge waifud").then_some(()))
    })?;
    ensure!(guest.run_when_up("hostname")?.trim() == NAME);
    Ok(())
}
