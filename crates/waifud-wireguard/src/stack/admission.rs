//! Decides which source may open another connection, by max-min fairness between sources. Only counts connections.
//!
//! No source gets more than its limit. Below the total limit, that is the only rule. At the total limit, a source with few
//! connections replaces one of the source with the most, until both have the same number. So many slow connections of one
//! guest, or of several together, never exclude another guest.

use std::{collections::HashMap, net::Ipv4Addr};

/// The decision about a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The limits allow it.
    Admit,
    /// A connection of this source must be ended first.
    EvictFrom(Ipv4Addr),
    /// The source has reached its limit.
    RefuseSource,
    /// The total limit is reached, and no source has at least two connections more.
    RefuseGlobal,
}

/// Connections per source.
#[derive(Debug)]
pub(crate) struct Admission {
    per_source: usize,
    total: usize,
    counts: HashMap<Ipv4Addr, usize>,
    sum: usize,
}

impl Admission {
    pub fn new(total: usize, per_source: usize) -> Self {
        Self {
            per_source,
            total,
            counts: HashMap::new(),
            sum: 0,
        }
    }

    /// Decides without a change.
    pub fn decide(&self, source: Ipv4Addr) -> Decision {
        let own = self.counts.get(&source).copied().unwrap_or(0);
        if own >= self.per_source {
            return Decision::RefuseSource;
        }
        if self.sum < self.total {
            return Decision::Admit;
        }
        // With the new connection, the source must not have more than the one that loses a connection.
        match self
            .counts
            .iter()
            .max_by_key(|(address, count)| (**count, **address))
        {
            Some((&most, &count)) if count >= own + 2 => Decision::EvictFrom(most),
            _ => Decision::RefuseGlobal,
        }
    }

    /// Counts a new connection.
    pub fn add(&mut self, source: Ipv4Addr) {
        *self.counts.entry(source).or_default() += 1;
        self.sum += 1;
    }

    /// Counts the end of a connection.
    pub fn remove(&mut self, source: Ipv4Addr) {
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            self.sum -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    /// The number of sources with a connection.
    pub fn sources(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    /// Asks for one connection and does as decided.
    fn ask(admission: &mut Admission, from: Ipv4Addr) -> Decision {
        let decision = admission.decide(from);
        if let Decision::EvictFrom(victim) = decision {
            admission.remove(victim);
        }
        if matches!(decision, Decision::Admit | Decision::EvictFrom(_)) {
            admission.add(from);
        }
        decision
    }

    #[test]
    fn a_source_gets_no_more_connections_than_its_limit() {
        let mut admission = Admission::new(10, 3);
        for _ in 0..3 {
            assert_eq!(ask(&mut admission, source(1)), Decision::Admit);
        }
        assert_eq!(ask(&mut admission, source(1)), Decision::RefuseSource);
        admission.remove(source(1));
        assert_eq!(ask(&mut admission, source(1)), Decision::Admit);
    }

    #[test]
    fn a_new_source_replaces_connections_of_the_largest_one_until_both_are_equal() {
        let mut admission = Admission::new(4, 4);
        for _ in 0..4 {
            ask(&mut admission, source(1));
        }
        assert_eq!(
            ask(&mut admission, source(2)),
            Decision::EvictFrom(source(1))
        );
        assert_eq!(
            ask(&mut admission, source(2)),
            Decision::EvictFrom(source(1))
        );
        assert_eq!(ask(&mut admission, source(2)), Decision::RefuseGlobal);
    }

    #[test]
    fn removing_missing_objects_changes_nothing() {
        let mut admission = Admission::new(4, 4);
        admission.remove(source(1));
        assert_eq!((admission.sum, admission.sources()), (0, 0));
    }

    proptest! {
        #[test]
        fn a_source_without_connections_always_gets_one(
            requests in proptest::collection::vec((1_u8..8, any::<bool>()), 0..300),
        ) {
            let mut admission = Admission::new(12, 5);
            for (last, leaves) in requests {
                if leaves {
                    admission.remove(source(last));
                } else {
                    ask(&mut admission, source(last));
                }
                prop_assert!(admission.sum <= 12);
                prop_assert!(admission.counts.values().all(|count| (1..=5).contains(count)));
                prop_assert_eq!(admission.counts.values().sum::<usize>(), admission.sum);
            }
            // Seven other sources share twelve connections, so one of them has two or there is space.
            let decision = ask(&mut admission, source(100));
            prop_assert!(matches!(decision, Decision::Admit | Decision::EvictFrom(_)));
        }
    }
}
