//! The environment of the services, which a simulation can replace: time, randomness, free space, interfaces.

use std::io;
use std::net::IpAddr;
use std::path::Path;

pub use waifud_kit::clock::{Clock, SystemClock};
use waifud_types::DiskSpace;

/// A source of random bytes.
pub trait Entropy: Send + Sync {
    /// Fills the buffer with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}

/// The random generator of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        use rand::RngCore;
        rand::rng().fill_bytes(buffer);
    }
}

/// A random number below `bound` (0 when it is 0). Slightly uneven for bounds near 2^64; fine for names and MACs.
pub fn below(entropy: &dyn Entropy, bound: usize) -> usize {
    let mut bytes = [0; 8];
    entropy.fill(&mut bytes);
    let wide = u64::from_le_bytes(bytes);
    usize::try_from(wide % (bound.max(1) as u64)).unwrap_or(0)
}

/// A version 7 UUID from the given clock and entropy (RFC 9562, section 5.7).
pub fn uuid(clock: &dyn Clock, entropy: &dyn Entropy) -> uuid::Uuid {
    let mut random = [0; 10];
    entropy.fill(&mut random);
    let millis = u64::try_from(clock.now().as_millisecond()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// Measures free space.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// The size and the free space of the path's filesystem.
    fn disk_space(&self, path: &Path) -> io::Result<DiskSpace>;
}

/// Lists the machine's own addresses.
pub trait Interfaces: Send + Sync + std::fmt::Debug {
    /// The current addresses of all interfaces, including loopback.
    fn addresses(&self) -> Vec<IpAddr>;
}

/// The kernel's interfaces.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemInterfaces;

impl Interfaces for SystemInterfaces {
    fn addresses(&self) -> Vec<IpAddr> {
        let interfaces = match nix::ifaddrs::getifaddrs() {
            Ok(interfaces) => interfaces,
            Err(error) => {
                tracing::error!(%error, "reading the machine's addresses failed");
                return Vec::new();
            }
        };
        interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let four = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                four.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .collect()
    }
}

/// The machine's filesystems.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn disk_space(&self, path: &Path) -> io::Result<DiskSpace> {
        waifud_kit::filesystem::usage(path).map(DiskSpace::from)
    }
}
