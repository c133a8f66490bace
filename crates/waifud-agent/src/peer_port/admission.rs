//! How many connections the peer port serves at the same time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use waifud_kit::sync::lock;

/// Connections that have proven nothing yet, at most.
pub(super) const UNPROVEN_MAX: usize = 32;
/// Those of one address, or of one /64 of IPv6.
pub(super) const UNPROVEN_PER_ADDRESS: usize = 8;
/// Transfers, at most.
pub(super) const TRANSFERS_MAX: usize = 16;

#[derive(Debug, Default)]
struct Counts {
    unproven: HashMap<IpAddr, usize>,
    transfers: usize,
}

/// Counts connections. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission(Arc<Mutex<Counts>>);

/// A counted connection that has proven nothing yet.
#[derive(Debug)]
pub(super) struct Unproven {
    counts: Admission,
    address: IpAddr,
}

/// A counted transfer.
#[derive(Debug)]
pub(super) struct TransferPermit(Admission);

impl Admission {
    /// Admits a connection; `None` if there are too many.
    pub fn admit(&self, address: IpAddr) -> Option<Unproven> {
        let address = network(address);
        let mut counts = lock(&self.0);
        let total: usize = counts.unproven.values().sum();
        let of_address = counts.unproven.entry(address).or_default();
        if total >= UNPROVEN_MAX || *of_address >= UNPROVEN_PER_ADDRESS {
            counts.unproven.retain(|_, count| *count > 0);
            return None;
        }
        *of_address += 1;
        Some(Unproven {
            counts: self.clone(),
            address,
        })
    }
}

/// One caller: an IPv4 address, or a /64 of IPv6, of which one machine can have all addresses.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Unproven {
    /// The connection has a right to a transfer; `None` if there are too many.
    pub fn begin_transfer(self) -> Option<TransferPermit> {
        let mut counts = lock(&self.counts.0);
        if counts.transfers >= TRANSFERS_MAX {
            return None;
        }
        counts.transfers += 1;
        drop(counts);
        Some(TransferPermit(self.counts.clone()))
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts.0);
        if let Some(count) = counts.unproven.get_mut(&self.address) {
            *count -= 1;
        }
        counts.unproven.retain(|_, count| *count > 0);
    }
}

impl Drop for TransferPermit {
    fn drop(&mut self) {
        lock(&self.0.0).transfers -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn connections_are_limited_in_total_and_per_address() {
        let admission = Admission::default();
        let mut open: Vec<_> = (0..UNPROVEN_PER_ADDRESS)
            .map(|_| admission.admit(address(1)).unwrap())
            .collect();
        assert!(admission.admit(address(1)).is_none());
        for last in 2.. {
            let Some(other) = admission.admit(address(last)) else {
                break;
            };
            open.push(other);
        }
        assert_eq!(open.len(), UNPROVEN_MAX);
        drop(open);
        assert!(admission.admit(address(1)).is_some());
        assert!(lock(&admission.0).unproven.is_empty());
    }

    #[test]
    fn the_addresses_of_a_v6_network_are_one_caller() {
        let admission = Admission::default();
        let at = |network: u16, host| Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host);
        let admit = |network, host| admission.admit(at(network, host).into());
        let open: Vec<_> = (0..).map_while(|host| admit(1, host)).collect();
        assert_eq!(open.len(), UNPROVEN_PER_ADDRESS);
        assert!(admit(2, 0).is_some());
    }

    #[test]
    fn transfers_do_not_count_as_unproven_and_are_limited() {
        let admission = Admission::default();
        let begin = || admission.admit(address(1)).unwrap().begin_transfer();
        let open: Vec<_> = (0..TRANSFERS_MAX).map(|_| begin().unwrap()).collect();
        assert!(begin().is_none());
        drop(open);
        assert!(begin().is_some());
    }
}
