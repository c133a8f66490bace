//! Who may have one more connection. Pure counting; the rule is max-min fairness between sources.
//!
//! Nobody gets more than the cap of a source. While there is room for all, that is the only rule. When there is none, a
//! source with few connections takes the place of one of the source that has most, until they are even: so many slow
//! connections of one guest, or of several in league, never shut out another.

use std::{collections::HashMap, net::Ipv4Addr};

/// What to do with a request for one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// There is room.
    Admit,
    /// There is room once one connection of this source is gone.
    EvictFrom(Ipv4Addr),
    /// The source has all that it may have.
    RefuseSource,
    /// There is no room, and nobody has clearly more.
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

    /// Decides, and changes nothing.
    pub fn decide(&self, source: Ipv4Addr) -> Decision {
        let own = self.counts.get(&source).copied().unwrap_or(0);
        if own >= self.per_source {
            return Decision::RefuseSource;
        }
        if self.sum < self.total {
            return Decision::Admit;
        }
        // With one connection more, the newcomer must not hold more than the one that gives.
        match self
            .counts
            .iter()
            .max_by_key(|(address, count)| (**count, **address))
        {
            Some((&most, &count)) if count >= own + 2 => Decision::EvictFrom(most),
            _ => Decision::RefuseGlobal,
        }
    }

    /// Counts one more.
    pub fn add(&mut self, source: Ipv4Addr) {
        *self.counts.entry(source).or_default() += 1;
        self.sum += 1;
    }

    /// Counts one less.
    pub fn remove(&mut self, source: Ipv4Addr) {
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            self.sum -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
    }

    /// Sources that have at least one.
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
    fn a_source_gets_no_more_than_its_cap() {
        let mut admission = Admission::new(10, 3);
        for _ in 0..3 {
            assert_eq!(ask(&mut admission, source(1)), Decision::Admit);
        }
        assert_eq!(ask(&mut admission, source(1)), Decision::RefuseSource);
        admission.remove(source(1));
        assert_eq!(ask(&mut admission, source(1)), Decision::Admit);
    }

    #[test]
    fn a_newcomer_takes_from_the_richest_until_even() {
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
    fn removing_what_is_not_there_changes_nothing() {
        let mut admission = Admission::new(4, 4);
        admission.remove(source(1));
        assert_eq!((admission.sum, admission.sources()), (0, 0));
    }

    proptest! {
        #[test]
        fn whatever_was_asked_before_a_source_without_connections_gets_one(
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
            // Seven others share twelve places, so somebody has two or there is room.
            let decision = ask(&mut admission, source(100));
            prop_assert!(matches!(decision, Decision::Admit | Decision::EvictFrom(_)));
        }
    }
}
