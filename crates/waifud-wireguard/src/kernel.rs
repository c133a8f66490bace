//! The kernel's WireGuard, configured over generic netlink.
//!
//! The kernel binds its UDP port on all addresses, so the firewall must close it where it is for this host only. WireGuard drops
//! packets with unknown keys in any case.

use std::{io, net::IpAddr, time::Duration};

use futures::StreamExt;
use ipnet::Ipv4Net;
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage,
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable,
    },
    proto,
};
use tokio::time::timeout;

use crate::{
    WireguardError,
    node::{link::Links, userspace::failed},
};

/// `NETLINK_GENERIC` of linux/netlink.h.
const GENERIC: isize = 16;
/// The name of WireGuard in generic netlink.
const FAMILY: &str = "wireguard";
const PATIENCE: Duration = Duration::from_secs(5);
/// Whether the host sends ICMP redirects. The kernel disables it for the whole host when one of its WireGuard links comes
/// up (`wg_open` in its drivers/net/wireguard/device.c).
const SEND_REDIRECTS: &str = "/proc/sys/net/ipv4/conf/all/send_redirects";

/// Whether this kernel has WireGuard. The kernel loads its module for this question, if that is installed.
pub(crate) async fn is_available() -> io::Result<bool> {
    match family(FAMILY).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Configures a link.
pub(crate) async fn set(attributes: Vec<WireguardAttribute>) -> io::Result<()> {
    let message = message(WireguardCmd::SetDevice, attributes).await?;
    request(message, NLM_F_ACK).await.map(drop)
}

/// The configuration of a link. The peers, and the addresses of one peer, may be split among several attributes.
pub(crate) async fn get(interface: &str) -> io::Result<Vec<WireguardAttribute>> {
    let name = WireguardAttribute::IfName(interface.to_owned());
    let message = message(WireguardCmd::GetDevice, vec![name]).await?;
    let answers = request(message, NLM_F_DUMP).await?;
    let parts = answers.into_iter().map(|answer| answer.payload.attributes);
    Ok(parts.flatten().collect())
}

/// Sets the MTU of a link and brings it up.
pub(crate) async fn bring_up(
    links: &Links,
    interface: &str,
    mtu: u16,
) -> Result<(), WireguardError> {
    // Settings of the whole host belong to the administrator; the link's own setting, which stays off, is sufficient.
    let before = tokio::fs::read_to_string(SEND_REDIRECTS).await.ok();
    links
        .bring_up(interface, mtu)
        .await
        .map_err(failed(interface, "bringing it up"))?;
    if let Some(before) = before {
        put_back(SEND_REDIRECTS, &before)
            .await
            .map_err(failed(interface, "restoring send_redirects"))?;
    }
    Ok(())
}

/// Addresses of a peer, as an attribute.
pub(crate) fn allowed(net: Ipv4Net) -> WireguardAllowedIp {
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
        WireguardAllowedIpAttr::IpAddr(IpAddr::V4(net.addr())),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

async fn put_back(setting: &str, before: &str) -> io::Result<()> {
    if tokio::fs::read_to_string(setting).await? == before {
        return Ok(());
    }
    tokio::fs::write(setting, before).await
}

async fn message(
    cmd: WireguardCmd,
    attributes: Vec<WireguardAttribute>,
) -> io::Result<GenlMessage<WireguardMessage>> {
    let family = family(FAMILY).await?;
    let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
    message.set_resolved_family_id(family);
    Ok(message)
}

/// The id of a generic netlink family.
async fn family(name: &str) -> io::Result<u16> {
    let question = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.into())],
    });
    let answers = request(question, NLM_F_ACK).await?;
    let id = answers
        .into_iter()
        .flat_map(|answer| answer.payload.nlas)
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
    id.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Sends a request and collects its answers.
async fn request<T>(message: T, flags: u16) -> io::Result<Vec<T>>
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
    message.header.flags = NLM_F_REQUEST | flags;
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

    #[tokio::test]
    async fn the_kernel_answers_on_generic_netlink() {
        // The control family has a fixed id (linux/genetlink.h).
        assert_eq!(family("nlctrl").await.unwrap(), 16);
        let unknown = family("waifud-has-none").await.unwrap_err();
        assert_eq!(unknown.kind(), io::ErrorKind::NotFound);
    }
}
