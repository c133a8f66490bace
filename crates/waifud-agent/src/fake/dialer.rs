//! Guests that echo what they are sent, at the ports that a test says.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use waifud_hypervisor::ByteStream;

use super::lock;
use crate::streams::GuestDialer;

/// The fake. Clones share one world.
#[derive(Clone, Debug, Default)]
pub struct FakeDialer {
    listening: Arc<Mutex<BTreeSet<(Ipv4Addr, u16)>>>,
    dialled: Arc<Mutex<Vec<(Ipv4Addr, u16)>>>,
}

impl FakeDialer {
    /// Something listens there from now on.
    pub fn listen(&self, address: Ipv4Addr, port: u16) {
        lock(&self.listening).insert((address, port));
    }

    /// Everything that was tried.
    pub fn dialled(&self) -> Vec<(Ipv4Addr, u16)> {
        lock(&self.dialled).clone()
    }
}

#[async_trait]
impl GuestDialer for FakeDialer {
    async fn dial(&self, address: Ipv4Addr, port: u16) -> io::Result<Box<dyn ByteStream>> {
        lock(&self.dialled).push((address, port));
        if !lock(&self.listening).contains(&(address, port)) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(theirs);
            let _ended = tokio::io::copy(&mut reader, &mut writer).await;
        });
        Ok(Box::new(ours))
    }
}
