//! The rtnetlink requests for a link.

use std::{future::Future, io, time::Duration};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkUnspec, LinkWireguard,
    packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use tokio::{task::JoinHandle, time::timeout};

/// How long to wait for an answer of the kernel, which usually comes immediately.
const PATIENCE: Duration = Duration::from_secs(5);
/// "No such device": the answer when a deleted link does not exist.
const NO_SUCH_DEVICE: i32 = nix::libc::ENODEV;

/// The index of a link in the calling thread's network namespace; `None` if it does not exist.
pub(crate) fn index_of(interface: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(interface).ok()
}

/// An existing link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LinkState {
    /// Whether it is one of the kernel's WireGuard.
    pub is_wireguard: bool,
    /// Whether it is up.
    pub is_up: bool,
    /// Its MTU.
    pub mtu: u32,
}

/// A netlink connection for the links of the calling thread's network namespace.
pub(crate) struct Links {
    handle: Handle,
    conversation: JoinHandle<()>,
}

impl Links {
    pub fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            conversation: tokio::spawn(connection),
        })
    }

    /// Creates a WireGuard link. A kernel without WireGuard answers `EOPNOTSUPP`.
    pub async fn add_wireguard(&self, interface: &str) -> io::Result<()> {
        within(
            self.handle
                .link()
                .add(LinkWireguard::new(interface).build())
                .execute(),
        )
        .await
    }

    /// Sets the MTU and brings the link up.
    pub async fn bring_up(&self, interface: &str, mtu: u16) -> io::Result<()> {
        let change = LinkUnspec::new_with_name(interface)
            .mtu(u32::from(mtu))
            .up()
            .build();
        within(self.handle.link().set(change).execute()).await
    }

    /// Deletes a link, if it exists.
    pub async fn remove(&self, interface: &str) -> io::Result<()> {
        let index = match self.find(interface).await {
            Ok(Some(link)) => link.header.index,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        };
        match within(self.handle.link().del(index).execute()).await {
            Err(error) if error.raw_os_error() == Some(NO_SUCH_DEVICE) => Ok(()),
            other => other,
        }
    }

    /// The state of a link; `None` if it does not exist.
    pub async fn state(&self, interface: &str) -> io::Result<Option<LinkState>> {
        let Some(link) = self.find(interface).await? else {
            return Ok(None);
        };
        let mut state = LinkState {
            is_up: link.header.flags.contains(LinkFlags::Up),
            ..LinkState::default()
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Mtu(mtu) => state.mtu = mtu,
                LinkAttribute::LinkInfo(info) => {
                    state.is_wireguard = info.contains(&LinkInfo::Kind(InfoKind::Wireguard));
                }
                _ => {}
            }
        }
        Ok(Some(state))
    }

    async fn find(&self, interface: &str) -> io::Result<Option<LinkMessage>> {
        let mut answers = self
            .handle
            .link()
            .get()
            .match_name(interface.to_owned())
            .execute();
        match within(answers.try_next()).await {
            Err(error) if error.raw_os_error() == Some(NO_SUCH_DEVICE) => Ok(None),
            other => other,
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.conversation.abort();
    }
}

async fn within<T>(request: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
    match timeout(PATIENCE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(rtnetlink::Error::NetlinkError(error))) => Err(error.to_io()),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Links, index_of};

    #[test]
    fn a_missing_link_has_no_index() {
        // Loopback has index 1 in every namespace.
        assert_eq!(index_of("lo"), Some(1));
        assert_eq!(index_of("wf-none"), None);
    }

    #[tokio::test]
    async fn the_state_of_a_link_is_read_and_a_missing_one_has_none() {
        let links = Links::new().unwrap();
        let loopback = links.state("lo").await.unwrap().unwrap();
        assert!(!loopback.is_wireguard);
        let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        assert_eq!(loopback.mtu.to_string(), mtu.trim());
        assert_eq!(links.state("wf-none").await.unwrap(), None);
    }
}
