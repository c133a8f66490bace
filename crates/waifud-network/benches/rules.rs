//! How long the replacement of one guest takes, through the nft session and with one `nft` process for each change.
//!
//! `cargo bench -p waifud-network --bench rules`, as root. Every round calls `ensure` with one guest less and one more, in
//! a network namespace of its own. The two variants take turns.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints figures and may panic"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use waifud_network::GuestNetwork;
use waifud_network::linux::{LinuxNetwork, LinuxNetworkConfig};
use waifud_network::samples::{port, state};

const TURNS: usize = 4;
const ROUNDS: u8 = 50;

fn main() {
    // cargo test builds and runs benches too.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (session, times) in [true, false].into_iter().zip(&mut times) {
            let measured = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                let loopback = ["link", "set", "lo", "up"];
                let up = std::process::Command::new("ip").args(loopback).status();
                assert!(up.unwrap().success(), "ip {loopback:?}");
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(measure(session))
            });
            times.extend(measured.join().unwrap());
        }
    }
    for (name, times) in ["nft session", "nft process"].into_iter().zip(&mut times) {
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied();
        println!(
            "{name}: {} changes, median {:.1?}, p90 {:.1?}, longest {:.1?}",
            times.len(),
            at(50).unwrap(),
            at(90).unwrap(),
            times.last().unwrap(),
        );
    }
}

async fn measure(session: bool) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    // dnsmasq's user reads its files.
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), readable).unwrap();
    let resolv_conf = dir.path().join("resolv.conf");
    std::fs::write(&resolv_conf, "").unwrap();
    let mut config = LinuxNetworkConfig {
        resolv_conf,
        ..LinuxNetworkConfig::new(dir.path().join("run"), dir.path().join("state"))
    };
    if !session {
        config.nft = without_session(dir.path());
    }
    let network = LinuxNetwork::new(config);
    let mut desired = state(2);
    network.ensure(&desired).await.unwrap();
    let mut times = Vec::new();
    for index in 0..ROUNDS {
        desired.ports.remove(0);
        desired.ports.push(port(2 + index));
        let started = Instant::now();
        network.ensure(&desired).await.unwrap();
        times.push(started.elapsed());
    }
    network.ensure_absent().await.unwrap();
    times
}

/// An `nft` whose interactive mode does not work. The shell costs the process variant about a millisecond.
fn without_session(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("nft");
    let script = "#!/bin/sh\n[ \"$1\" = -i ] && exit 1\nexec /usr/sbin/nft \"$@\"\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}
