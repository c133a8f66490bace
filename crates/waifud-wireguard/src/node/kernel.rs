//! The node's end in the kernel: a WireGuard link with one peer.
//!
//! The kernel binds its UDP port on all addresses instead of loopback only, so the firewall must close it to guests, like
//! all other ports that they do not need.

use netlink_packet_wireguard::{WireguardAttribute, WireguardPeer, WireguardPeerAttribute};

use super::{link::Links, userspace::failed};
use crate::{NodeTunnelConfig, WireguardError, kernel};

/// Keepalives tell the server the endpoint of the node, and let the node detect a dead session.
const KEEPALIVE: u16 = 25;

/// Whether this kernel supports WireGuard: creates a link to find out, and keeps it under the given name.
pub(super) async fn probe(interface: &str, links: &Links) -> bool {
    match links.add_wireguard(interface).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(interface, %error, "this kernel does not support WireGuard");
            false
        }
    }
}

/// Configures the keys and the peer of a link from [`probe`], and brings it up.
pub(super) async fn configure(
    config: &NodeTunnelConfig,
    links: &Links,
) -> Result<(), WireguardError> {
    let interface = &config.interface;
    kernel::set(attributes(config))
        .await
        .map_err(failed(interface, "configuring the keys"))?;
    kernel::bring_up(links, interface, config.mtu).await
}

/// The configuration of the device.
fn attributes(config: &NodeTunnelConfig) -> Vec<WireguardAttribute> {
    let allowed = config.allowed.iter().map(|net| kernel::allowed(*net));
    let server = WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(*config.server_public_key.as_bytes()),
        WireguardPeerAttribute::Endpoint(config.server_endpoint),
        WireguardPeerAttribute::PersistentKeepalive(KEEPALIVE),
        WireguardPeerAttribute::AllowedIps(allowed.collect()),
    ]);
    vec![
        WireguardAttribute::IfName(config.interface.clone()),
        WireguardAttribute::PrivateKey(config.private_key.secret().to_bytes()),
        WireguardAttribute::ListenPort(config.listen.port()),
        WireguardAttribute::Peers(vec![server]),
    ]
}

#[cfg(test)]
mod tests {
    use netlink_packet_wireguard::{
        WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr,
    };

    use super::*;
    use crate::PrivateKey;

    #[test]
    fn the_configuration_is_complete_in_the_netlink_message() {
        let (own, server) = (PrivateKey::generate(), PrivateKey::generate().public_key());
        let set = attributes(&NodeTunnelConfig::new(own.clone(), server));
        assert!(set.contains(&WireguardAttribute::IfName("wfmeta0".into())));
        assert!(set.contains(&WireguardAttribute::ListenPort(51822)));
        let secret = own.secret().to_bytes();
        assert!(set.contains(&WireguardAttribute::PrivateKey(secret)));
        let peer = set.iter().find_map(|attribute| match attribute {
            WireguardAttribute::Peers(peers) => peers.first(),
            _ => None,
        });
        let peer = &peer.unwrap().0;
        assert!(peer.contains(&WireguardPeerAttribute::PublicKey(*server.as_bytes())));
        let endpoint = "127.0.0.1:51821".parse().unwrap();
        assert!(peer.contains(&WireguardPeerAttribute::Endpoint(endpoint)));
        let service = WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr("169.254.169.254".parse().unwrap()),
            WireguardAllowedIpAttr::Cidr(32),
        ]);
        assert!(peer.contains(&WireguardPeerAttribute::AllowedIps(vec![service])));
    }
}
