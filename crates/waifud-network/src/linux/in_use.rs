//! Selects the IPv4 address in use among those that a port has learned.
//!
//! A network's DHCP server may assign another address to a guest, without a sign that the old one has ended. But each
//! packet from an address renews its timeout in the rules, so the address that expires last was used last. These functions
//! are pure. IPv6 needs no selection, because a host has several IPv6 addresses at once (RFC 8981).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// The addresses learned at one port, each with the seconds until it expires if it is not used again.
pub(super) type Kept = BTreeMap<IpAddr, u64>;

/// An address replaces the one in use if it was used this many seconds later. So two addresses that are used at the same
/// time, which a DHCP server does not assign to one client, do not alternate.
const LATER: u64 = 30;

/// An address that was last used this many seconds before the one in use has ended.
const OVER: u64 = 3600;

/// The address in use. `before` is the one in use at the last reading. `None` without an IPv4 address.
pub(super) fn now(kept: &Kept, before: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (address, last_used) = ipv4(kept).max_by_key(|(_, last_used)| *last_used)?;
    let still = before.filter(|before| {
        kept.get(&IpAddr::V4(*before))
            .is_some_and(|then| last_used <= then.saturating_add(LATER))
    });
    Some(still.unwrap_or(address))
}

/// Removes addresses that have ended.
pub(super) fn forget(kept: &mut Kept, in_use: Ipv4Addr) {
    let in_use = IpAddr::V4(in_use);
    let Some(last_used) = kept.get(&in_use).copied() else {
        return;
    };
    kept.retain(|address, then| {
        address.is_ipv6() || *address == in_use || then.saturating_add(OVER) > last_used
    });
}

fn ipv4(kept: &Kept) -> impl Iterator<Item = (Ipv4Addr, u64)> {
    kept.iter()
        .filter_map(|(address, last_used)| match address {
            IpAddr::V4(address) => Some((*address, *last_used)),
            IpAddr::V6(_) => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
    const NEW: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

    fn kept(all: &[(Ipv4Addr, u64)]) -> Kept {
        all.iter()
            .map(|(a, last_used)| ((*a).into(), *last_used))
            .collect()
    }

    #[test]
    fn the_address_that_was_used_last_is_in_use() {
        assert_eq!(now(&kept(&[(OLD, 100), (NEW, 200)]), Some(OLD)), Some(NEW));
        assert_eq!(now(&kept(&[(OLD, 100), (NEW, 101)]), None), Some(NEW));
        assert_eq!(now(&kept(&[]), Some(OLD)), None);
    }

    #[test]
    fn neither_a_short_difference_nor_reloaded_rules_change_it() {
        assert_eq!(now(&kept(&[(OLD, 100), (NEW, 120)]), Some(OLD)), Some(OLD));
        assert_eq!(now(&kept(&[(OLD, 9), (NEW, 9)]), Some(NEW)), Some(NEW));
        assert_eq!(now(&kept(&[(OLD, 9), (NEW, 9)]), Some(OLD)), Some(OLD));
    }

    #[test]
    fn an_address_unused_for_an_hour_has_ended_but_never_an_ipv6_address() {
        let six: IpAddr = "fd00::1".parse().unwrap();
        let mut all = kept(&[(OLD, 100), (NEW, 100 + OVER)]);
        all.insert(six, 0);
        forget(&mut all, NEW);
        assert_eq!(all.keys().copied().collect::<Vec<_>>(), [NEW.into(), six]);
        let mut all = kept(&[(OLD, 101), (NEW, 100 + OVER)]);
        forget(&mut all, NEW);
        assert_eq!(all.len(), 2);
    }

    proptest! {
        #[test]
        fn the_address_in_use_is_kept(all in proptest::collection::btree_map(any::<u32>(), 0_u64..10_000, 0..5), before in any::<u32>()) {
            let mut all: Kept = all.into_iter().map(|(a, last_used)| (IpAddr::V4(a.into()), last_used)).collect();
            let before = all.keys().next().copied().filter(|_| before % 2 == 0);
            let before = before.and_then(|a| match a { IpAddr::V4(a) => Some(a), IpAddr::V6(_) => None });
            if let Some(in_use) = now(&all, before) {
                forget(&mut all, in_use);
                prop_assert!(all.contains_key(&in_use.into()));
                prop_assert_eq!(now(&all, Some(in_use)), Some(in_use));
            } else {
                prop_assert!(all.is_empty());
            }
        }
    }
}
