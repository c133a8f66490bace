//! Removal restores the host to its state before it became a node.

use waifud_network::GuestNetwork;

use crate::lab::on_a_node;
use crate::lifecycle::host;

#[test]
fn removal_lists_what_it_removed_and_restores_the_host() {
    on_a_node(1, |lab| async move {
        let before = host(&lab);
        let network = lab.restarted();
        assert_eq!(network.remove("wgw0").await.unwrap(), [""; 0]);
        lab.node.ip("tuntap add dev wgw0 mode tun");
        lab.ensure().await;
        let guest = lab.attach(0).await;
        assert_eq!(
            network.attached("waifu0").await.unwrap(),
            [guest.port.tap.to_string()]
        );
        lab.node.ip(&format!("link del {}", guest.port.tap));
        // By a process that only has the record.
        let removed = lab.restarted().remove("wgw0").await.unwrap();
        assert_eq!(
            removed,
            [
                "dnsmasq",
                "forwarding on up0, wgw0",
                "3 routes and routing rules",
                "bridge waifu0",
                "tunnel wgw0",
                "firewall tables",
            ]
        );
        assert_eq!(host(&lab), before);
        assert_eq!(lab.restarted().remove("wgw0").await.unwrap(), [""; 0]);
    });
}

#[test]
fn an_interface_with_the_tunnels_name_that_is_not_a_tunnel_is_kept() {
    on_a_node(0, |lab| async move {
        lab.connect_metadata().await;
        lab.ensure().await;
        lab.network.remove("wgw0").await.unwrap();
        lab.node.ip("link show wgw0");
        lab.network.ensure_absent().await.unwrap();
    });
}
