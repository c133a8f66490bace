//! The node's end in the kernel: a WireGuard link, configured over generic netlink.
//!
//! The kernel binds its UDP port on all addresses instead of loopback only, so the firewall must close it to guests, like
//! all other ports that they do not need. WireGuard drops packets with unknown keys in any case.

use std::{io, net::IpAddr, time::Duration};

use futures::StreamExt;
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute,
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable,
    },
    proto,
};
use tokio::time::timeout;

use super::{link::Links, userspace::failed};
use crate::{NodeTunnelConfig, WireguardError};

/// `NETLINK_GENERIC` of linux/netlink.h.
const GENERIC: isize = 16;
/// Keepalives tell the server the endpoint of the node, and let the node detect a dead session.
const KEEPALIVE: u16 = 25;
const PATIENCE: Duration = Duration::from_secs(5);
/// Whether the host sends ICMP redirects. The kernel disables it for the whole host when one of its WireGuard links comes
/// up (`wg_open` in its drivers/net/wireguard/device.c).
const SEND_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";

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
    let configured = async {
        let family = family("wireguard").await?;
        let message = GenlMessage::from_payload(WireguardMessage {
            cmd: WireguardCmd::SetDevice,
            attributes: attributes(config),
        });
        request(with_family(message, family)).await.map(|_| ())
    };
    configured
        .await
        .map_err(failed(interface, "configuring the keys"))?;
    // Settings of the whole host belong to the administrator; the link's own setting, which stays off, is sufficient.
    let before = tokio::fs::read_to_string(SEND_REDIRECTS).await.ok();
    links
        .bring_up(interface, config.mtu)
        .await
        .map_err(failed(interface, "bringing it up"))?;
    if let Some(before) = before {
        put_back(SEND_REDIRECTS, &before)
            .await
            .map_err(failed(interface, "restoring send_redirects"))?;
    }
    Ok(())
}

async fn put_back(setting: &str, before: &str) -> io::Result<()> {
    if tokio::fs::read_to_string(setting).await? == before {
        return Ok(());
    }
    tokio::fs::write(setting, before).await
}

/// The configuration of the device.
fn attributes(config: &NodeTunnelConfig) -> Vec<WireguardAttribute> {
    let allowed = config.allowed.iter().map(|net| {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr(IpAddr::V4(net.addr())),
            WireguardAllowedIpAttr::Cidr(net.prefix_len()),
        ])
    });
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

/// The id of a generic netlink family.
async fn family(name: &str) -> io::Result<u16> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.into())],
    });
    let answers = request(question).await?;
    let id = answers
        .into_iter()
        .flat_map(|answer| answer.payload.nlas)
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
    id.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn with_family(
    mut message: GenlMessage<WireguardMessage>,
    family: u16,
) -> GenlMessage<WireguardMessage> {
    message.set_resolved_family_id(family);
    message
}

/// Sends a request and collects its answers.
async fn request<T>(message: T) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable
        + NetlinkDeserializable
        + Into<NetlinkPayload<T>>
        + std::fmt::Debug
        + Unpin
        + Send
        + 'static,
{
    let (connection, handle, _) = proto::new_connection::<T>(GENERIC)?;
    let conversation = tokio::spawn(connection);
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let answers = collect(handle, message);
    let result = timeout(PATIENCE, answers)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    conversation.abort();
    result
}

async fn collect<T>(
    handle: proto::ConnectionHandle<T>,
    message: NetlinkMessage<T>,
) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug + Unpin + Send + 'static,
{
    let kernel = proto::sys::SocketAddr::new(0, 0);
    let mut responses = handle.request(message, kernel).map_err(io::Error::other)?;
    let mut answers = Vec::new();
    while let Some(response) = responses.next().await {
        match response.payload {
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    #[tokio::test]
    async fn the_kernel_answers_on_generic_netlink() {
        // The control family has a fixed id (linux/genetlink.h).
        assert_eq!(family("nlctrl").await.unwrap(), 16);
        let unknown = family("waifud-has-none").await.unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::NotFound);
    }

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
