//! A guest on an existing bridge of the host: it gets its address from the home network's DHCP and its documents
//! through its port, and cannot use other addresses.

use anyhow::{Result, ensure};
use waifud_tests::home::{self, GIVEN, ROUTER};
use waifud_tests::{Guest, World};

const NAME: &str = "switched";

/// The address from the home network's DHCP server, as waifud reports it.
fn observed(instance: &serde_json::Value) -> Option<&str> {
    let first = instance.pointer("/status/addresses/0")?;
    let address = first["address"].as_str()?;
    let seen = first["source"] == "observed" && first["primary"] == true;
    (seen && first["network"] == "lan" && address.starts_with(GIVEN)).then_some(address)
}

#[test]
fn a_guest_on_the_home_networks_bridge_gets_an_address_and_its_documents() -> Result<()> {
    World::with(|world| {
        home::make(world)?;
        world
            .waifuctl
            .json(&["network", "add", "lan", "--bridge", home::BRIDGE])?;
        let key = world.public_key.display().to_string();
        let on_lan = ["--ssh-key", &key, "--network", "lan"];
        let waits = ["--wait", "--timeout", "5m"];
        world.create(NAME, &[&on_lan[..], &waits].concat())?;
        let instance = world.until(NAME, "an address of the home network", |i| {
            observed(i).is_some()
        })?;
        ensure!(instance["status"]["ready"] == true, "{instance:#}");
        // It got its documents over the network, not from a disk.
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
        // A machine in the home network reaches it directly.
        home::outside(world, &["ping", "-c", "1", "-W", "5", &guest.address])?;
        other_addresses_are_dropped(&guest)?;
        a_flushed_firewall_is_restored(&guest)?;
        a_nic_comes_and_goes(&guest)?;
        world.delete(NAME)?;
        let left = home::traces(world)?;
        ensure!(left.is_empty(), "left behind:\n{left}");
        world.waifuctl.json(&["network", "delete", "lan"])?;
        Ok(())
    })
}

/// Packets from an address that the guest configured itself are dropped and counted.
fn other_addresses_are_dropped(guest: &Guest<'_>) -> Result<()> {
    let before = home::spoofed(guest.world)?;
    let taken = "ip addr add 192.0.2.77/24 dev eth0";
    let asks = format!("ping -c 2 -W 2 -I 192.0.2.77 {ROUTER} >/dev/null 2>&1 && echo answered");
    let output = guest.run(&format!(
        "{taken}; {asks}; ip addr del 192.0.2.77/24 dev eth0; true"
    ))?;
    ensure!(
        !output.contains("answered"),
        "a forged address was answered"
    );
    let after = home::spoofed(guest.world)?;
    ensure!(
        after > before,
        "no dropped packet was counted: {before}, {after}"
    );
    Ok(())
}

/// The running guest gets a second nic, with an address by DHCP, and releases it.
fn a_nic_comes_and_goes(guest: &Guest<'_>) -> Result<()> {
    let waifuctl = &guest.world.waifuctl;
    let waits = ["--wait", "--timeout", "2m"];
    let add = [&["nic", "add", NAME, "--network", "default"][..], &waits];
    let added = waifuctl.json(&add.concat())?;
    let nic = &added["spec"]["nics"][1];
    let address = nic["address"].as_str().unwrap_or_default();
    ensure!(
        added["status"]["nics"][1]["state"] == "attached",
        "{added:#}"
    );
    let mac = nic["mac"].as_str().unwrap_or_default();
    let seen = guest.run("cat /sys/class/net/eth1/address")?;
    ensure!(seen.trim() == mac, "{seen:?} instead of {mac}");
    // The script that would configure the nic is left out: it would replace the default route.
    let ask = "ip link set eth1 up; udhcpc -i eth1 -n -q -t 10 -s /bin/true 2>&1";
    let lease = guest.run(ask)?;
    ensure!(lease.contains(address), "no lease of {address}: {lease}");
    let remove = [&["nic", "remove", NAME, "eth1"][..], &waits];
    let removed = waifuctl.json(&remove.concat())?;
    ensure!(
        removed["status"]["nics"]
            .as_array()
            .is_some_and(|nics| nics.len() == 1),
        "{removed:#}"
    );
    let left = guest.run("ls /sys/class/net")?;
    ensure!(!left.contains("eth1"), "{left}");
    ensure!(guest.run_when_up("hostname")?.trim() == NAME);
    Ok(())
}

/// After a flush of the host's rules, the guest is reachable again at its address.
fn a_flushed_firewall_is_restored(guest: &Guest<'_>) -> Result<()> {
    guest.world.node(&["nft", "flush", "ruleset"])?;
    waifud_lab::wait::until("our rules", waifud_tests::world::SOON, || {
        let tables = guest.world.node(&["nft", "list", "tables"])?;
        Ok(tables.contains("table bridge waifud").then_some(()))
    })?;
    ensure!(guest.run_when_up("hostname")?.trim() == NAME);
    Ok(())
}
