//! The node's end in this process: a task transfers packets between a TUN device and the loopback socket.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::{
    task::{JoinHandle, yield_now},
    time::{MissedTickBehavior, interval},
};

use waifud_kit::sync::lock;

use super::{NodeTunnelStats, link::Links, tun::Tun};
use crate::{
    NodeTunnelConfig, WireguardError,
    udp::DatagramSocket,
    wire::{Engine, Peer, Sealed, TICK, Wire},
};

/// The running task. The link is removed with it.
pub(super) struct Userspace {
    wire: Arc<Mutex<Wire>>,
    carrier: JoinHandle<()>,
}

impl Userspace {
    pub async fn start(config: &NodeTunnelConfig, links: &Links) -> Result<Self, WireguardError> {
        let interface = &config.interface;
        let socket = DatagramSocket::bind_loopback(config.listen)?;
        let tun = Tun::create(interface).map_err(failed(interface, "creating the TUN device"))?;
        links
            .bring_up(interface, config.mtu)
            .await
            .map_err(failed(interface, "bringing it up"))?;

        let mut wire = Wire::new(&config.private_key, config.mtu);
        let server = Peer {
            key: config.server_public_key,
            endpoint: Some(config.server_endpoint),
            allowed: config.allowed.clone(),
        };
        let mut sealed = Vec::new();
        wire.set_peer(server, Instant::now(), &mut sealed);
        socket.send(&mut sealed);
        let wire = Arc::new(Mutex::new(wire));
        let carrier = tokio::spawn(carry(Arc::clone(&wire), tun, socket, interface.clone()));
        Ok(Self { wire, carrier })
    }

    pub fn stats(&self) -> NodeTunnelStats {
        let stats = lock(&self.wire).stats();
        NodeTunnelStats {
            handshake_age: stats.handshake_age,
            received_bytes: stats.received_bytes,
            sent_bytes: stats.sent_bytes,
        }
    }

    pub fn is_running(&self) -> bool {
        !self.carrier.is_finished()
    }

    pub async fn stop(mut self) {
        self.carrier.abort();
        // An aborted task returns an error; it has then dropped the device.
        let _ = (&mut self.carrier).await;
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

/// Adds the interface and the action to an I/O error.
pub(crate) fn failed(
    interface: &str,
    action: &'static str,
) -> impl FnOnce(io::Error) -> WireguardError + use<> {
    let interface = interface.to_owned();
    move |source| WireguardError::Link {
        interface,
        action,
        source,
    }
}

/// Transfers packets between a TUN device and a socket until the link is removed.
pub(crate) async fn carry<E: Engine>(
    engine: Arc<Mutex<E>>,
    mut tun: Tun,
    socket: DatagramSocket,
    interface: String,
) {
    let mut sealed: Vec<Sealed> = Vec::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let alive = tokio::select! {
            taken = tun.receive(|packet| lock(&engine).seal(packet, &mut sealed)) => taken,
            ready = socket.readable() => ready.map(|()| {
                let now = Instant::now();
                socket.receive(|datagram, from| {
                    if let Some(packet) = lock(&engine).open(datagram, from, now, &mut sealed) {
                        tun.send(&packet);
                    }
                });
                tun.flush();
            }),
            _ = tick.tick() => {
                lock(&engine).tick(Instant::now(), &mut sealed);
                Ok(())
            }
        };
        lock(&engine).take_pending(&mut sealed);
        socket.send(&mut sealed);
        // Under load there is always another packet.
        yield_now().await;
        if let Err(error) = alive {
            tracing::error!(interface, %error, "the link was removed by another program");
            return;
        }
    }
}
