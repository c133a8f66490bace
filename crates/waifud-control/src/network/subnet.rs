//! Allocation of subnets for nodes and of addresses for guests, as pure functions.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use waifud_types::MacAddr;

use crate::env::Entropy;

/// The prefix length of a node's subnet.
pub const NODE_PREFIX: u8 = 24;

/// The MAC address of the gateway on every node, so that a moved guest keeps its neighbor entry. Locally administered (bit
/// 1 of the first byte, IEEE 802-2014, 8.2.2).
pub const GATEWAY_MAC: MacAddr = MacAddr::new([0x02, 0x77, 0x61, 0x69, 0x66, 0x75]);

/// The first /24 of the range that no node has and no route overlaps. The first one of the range is skipped, since it is the
/// most likely to be used manually.
pub fn free_subnet(range: Ipv4Net, taken: &[Ipv4Net], routes: &[Ipv4Net]) -> Option<Ipv4Net> {
    range
        .subnets(NODE_PREFIX.max(range.prefix_len()))
        .ok()?
        .skip(usize::from(range.prefix_len() < NODE_PREFIX))
        .find(|net| {
            !taken
                .iter()
                .chain(routes)
                .any(|other| overlap(*other, *net))
        })
}

/// Whether a route overlaps a subnet. A default route is ignored.
pub fn overlap(route: Ipv4Net, subnet: Ipv4Net) -> bool {
    route.prefix_len() > 0 && (subnet.contains(&route) || route.contains(&subnet))
}

/// The gateway: the first host address.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.network())
}

/// The lowest host address after the gateway that is not in `taken`, which is sorted.
pub fn free_address(subnet: Ipv4Net, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    free_addresses(subnet, taken).next()
}

/// The host addresses after the gateway that are not in `taken`, which is sorted.
pub fn free_addresses(subnet: Ipv4Net, taken: &[Ipv4Addr]) -> impl Iterator<Item = Ipv4Addr> {
    let mut taken = taken.iter().copied().peekable();
    subnet.hosts().skip(1).filter(move |address| {
        while taken.next_if(|t| t < address).is_some() {}
        taken.peek() != Some(address)
    })
}

/// An unused MAC address for a guest.
pub fn free_mac<E>(
    entropy: &dyn Entropy,
    mut taken: impl FnMut(MacAddr) -> Result<bool, E>,
) -> Result<Option<MacAddr>, E> {
    for _ in 0..256 {
        let mut tail = [0; 3];
        entropy.fill(&mut tail);
        let mac = MacAddr::of_guest(tail);
        if !taken(mac)? {
            return Ok(Some(mac));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_avoid_those_of_nodes_and_routes_except_the_default_route() {
        let range = net("10.144.0.0/12");
        let routes = [net("0.0.0.0/0"), net("10.144.1.0/25"), net("10.144.2.0/23")];
        assert_eq!(free_subnet(range, &[], &routes), Some(net("10.144.4.0/24")));
        assert_eq!(
            free_subnet(range, &[net("10.144.4.0/24")], &routes),
            Some(net("10.144.5.0/24"))
        );
        assert_eq!(free_subnet(range, &[], &[net("10.0.0.0/8")]), None);
    }

    #[test]
    fn the_first_subnet_of_a_range_is_used_only_if_the_range_has_no_other() {
        let first = |range: &str| free_subnet(net(range), &[], &[]);
        assert_eq!(first("10.144.0.0/12"), Some(net("10.144.1.0/24")));
        assert_eq!(first("10.144.0.0/23"), Some(net("10.144.1.0/24")));
        assert_eq!(first("10.144.0.0/24"), Some(net("10.144.0.0/24")));
        assert_eq!(first("10.144.0.128/25"), Some(net("10.144.0.128/25")));
    }

    #[test]
    fn networks_overlap_if_either_contains_the_other_and_a_default_route_never_does() {
        let subnet = net("10.144.1.0/24");
        for (route, overlaps) in [
            ("10.144.1.0/24", true),
            ("10.144.1.128/25", true),
            ("10.144.0.0/16", true),
            ("0.0.0.0/1", true),
            ("0.0.0.0/0", false),
            ("10.144.2.0/24", false),
            ("10.144.0.0/24", false),
        ] {
            assert_eq!(overlap(net(route), subnet), overlaps, "{route}");
        }
    }

    /// Each call gives the next byte three times.
    struct Counting(std::sync::atomic::AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
    }

    #[test]
    fn a_mac_address_is_drawn_until_it_is_not_taken_at_most_256_times() {
        let draw = |taken: &dyn Fn(MacAddr) -> Result<bool, String>| {
            let mut draws = 0;
            let mac = free_mac(&Counting(0.into()), |mac| {
                draws += 1;
                taken(mac)
            });
            (mac, draws)
        };
        let third = MacAddr::of_guest([2, 2, 2]);
        assert_eq!(draw(&|mac| Ok(mac != third)), (Ok(Some(third)), 3));
        assert_eq!(draw(&|_| Ok(true)), (Ok(None), 256));
        let error = "the database is closed".to_owned();
        assert_eq!(draw(&|_| Err(error.clone())), (Err(error.clone()), 1));
    }

    #[test]
    fn addresses_are_allocated_after_the_gateway_until_none_is_free() {
        let subnet = net("10.144.1.0/24");
        assert_eq!(gateway(subnet), Ipv4Addr::new(10, 144, 1, 1));
        assert_eq!(free_addresses(subnet, &[]).count(), 253);
        let mut taken = Vec::new();
        while let Some(address) = free_address(subnet, &taken) {
            taken.push(address);
        }
        assert_eq!(taken.len(), 253);
        assert_eq!(taken.first(), Some(&Ipv4Addr::new(10, 144, 1, 2)));
        assert_eq!(taken.last(), Some(&Ipv4Addr::new(10, 144, 1, 254)));
    }

    proptest! {
        #[test]
        fn no_address_ever_has_two_owners(steps in proptest::collection::vec(any::<Option<u8>>(), 0..400)) {
            let subnet = net("10.144.1.0/24");
            let mut owned = BTreeSet::new();
            for step in steps {
                let taken: Vec<_> = owned.iter().copied().collect();
                match (step, free_address(subnet, &taken)) {
                    (None, Some(address)) => {
                        prop_assert!(subnet.contains(&address) && address != gateway(subnet));
                        prop_assert!(owned.insert(address));
                    }
                    (None, None) => prop_assert_eq!(owned.len(), 253),
                    (Some(which), _) => {
                        let gone = taken.get(usize::from(which) % taken.len().max(1)).copied();
                        if let Some(gone) = gone {
                            owned.remove(&gone);
                        }
                    }
                }
            }
        }
    }
}
