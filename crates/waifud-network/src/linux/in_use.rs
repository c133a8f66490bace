//! Which of the IPv4 addresses that a port has learned is the one in use.
//!
//! A home's DHCP server may give a guest another address one day, and nothing says that the old one is over. But every
//! sign of life puts off the day on which the rules forget an address, so the one that is forgotten last was heard last.
//! Pure. Nothing of the like for IPv6, where a host has several addresses at once (RFC 8981).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// What was learned at one port, and for how many seconds it is kept if nothing more is heard of it.
pub(super) type Kept = BTreeMap<IpAddr, u64>;

/// An address takes another one's place when it was heard so many seconds later. Two that are in use at once (which a
/// server does not give to one client) don't take turns by it.
const LATER: u64 = 30;

/// An address that was last heard so many seconds before the one in use is over.
const OVER: u64 = 3600;

/// The address in use, when `before` was it at the last look. `None` where there is no IPv4 address.
pub(super) fn now(kept: &Kept, before: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (address, heard) = ipv4(kept).max_by_key(|(_, heard)| *heard)?;
    let still = before.filter(|before| {
        kept.get(&IpAddr::V4(*before))
            .is_some_and(|then| heard <= then.saturating_add(LATER))
    });
    Some(still.unwrap_or(address))
}

/// Takes out what is over.
pub(super) fn forget(kept: &mut Kept, in_use: Ipv4Addr) {
    let in_use = IpAddr::V4(in_use);
    let Some(heard) = kept.get(&in_use).copied() else {
        return;
    };
    kept.retain(|address, then| {
        address.is_ipv6() || *address == in_use || then.saturating_add(OVER) > heard
    });
}

fn ipv4(kept: &Kept) -> impl Iterator<Item = (Ipv4Addr, u64)> {
    kept.iter().filter_map(|(address, heard)| match address {
        IpAddr::V4(address) => Some((*address, *heard)),
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
        all.iter().map(|(a, heard)| ((*a).into(), *heard)).collect()
    }

    #[test]
    fn the_one_that_was_heard_last_is_in_use() {
        assert_eq!(now(&kept(&[(OLD, 100), (NEW, 200)]), Some(OLD)), Some(NEW));
        assert_eq!(now(&kept(&[(OLD, 100), (NEW, 101)]), None), Some(NEW));
        assert_eq!(now(&kept(&[]), Some(OLD)), None);
    }

    #[test]
    fn neither_a_moment_nor_rules_that_were_loaded_anew_change_it() {
        assert_eq!(now(&kept(&[(OLD, 100), (NEW, 120)]), Some(OLD)), Some(OLD));
        assert_eq!(now(&kept(&[(OLD, 9), (NEW, 9)]), Some(NEW)), Some(NEW));
        assert_eq!(now(&kept(&[(OLD, 9), (NEW, 9)]), Some(OLD)), Some(OLD));
    }

    #[test]
    fn what_was_not_heard_for_an_hour_is_over_and_ipv6_never_is() {
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
        fn the_one_in_use_is_kept(all in proptest::collection::btree_map(any::<u32>(), 0_u64..10_000, 0..5), before in any::<u32>()) {
            let mut all: Kept = all.into_iter().map(|(a, heard)| (IpAddr::V4(a.into()), heard)).collect();
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
