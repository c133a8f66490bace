//! What one or more runs did: acts, faults, and what the invariants looked at.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::acts::FAULTS;
use crate::invariants;
use crate::run::Outcome;

/// The sums over runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// The number of runs.
    pub runs: u64,
    /// Their steps.
    pub steps: u64,
    /// The simulated time in seconds.
    pub seconds: u64,
    /// How often each act happened that is no fault.
    pub acts: BTreeMap<String, u64>,
    /// How often each fault happened.
    pub faults: BTreeMap<String, u64>,
    /// How many requests waifud refused.
    pub refused: u64,
    /// The messages between nodes and waifud.
    pub messages: u64,
    /// How often the invariants were checked.
    pub checks: u64,
    /// How many objects each invariant looked at.
    pub looked: BTreeMap<String, u64>,
}

impl Totals {
    /// Of one run.
    pub fn of(outcome: &Outcome) -> Self {
        let acts = |faults: bool| {
            let acts = outcome.acts.iter();
            let chosen = acts.filter(|(act, _)| FAULTS.contains(act) == faults);
            chosen.map(|(act, count)| (act.words(), *count)).collect()
        };
        let looked = |name: &&str| {
            let count = outcome.looked.get(name).copied().unwrap_or_default();
            ((*name).to_owned(), count)
        };
        Self {
            runs: 1,
            steps: outcome.steps,
            seconds: outcome.lasted.as_secs(),
            acts: acts(false),
            faults: acts(true),
            refused: outcome.refused,
            messages: outcome.messages,
            checks: outcome.checks,
            looked: invariants::ALL.iter().map(looked).collect(),
        }
    }

    /// Adds those of other runs.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.seconds += other.seconds;
        self.refused += other.refused;
        self.messages += other.messages;
        self.checks += other.checks;
        for (sums, counts) in [
            (&mut self.acts, &other.acts),
            (&mut self.faults, &other.faults),
            (&mut self.looked, &other.looked),
        ] {
            for (name, count) in counts {
                *sums.entry(name.clone()).or_default() += count;
            }
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |counts: &BTreeMap<String, u64>| {
            let texts = counts.iter().map(|(name, count)| format!("{name} {count}"));
            texts.collect::<Vec<_>>().join(", ")
        };
        writeln!(
            f,
            "seeds {}, steps {}, simulated hours {}, messages {}",
            self.runs,
            self.steps,
            self.seconds / 3600,
            self.messages
        )?;
        writeln!(f, "acts: {}; refused {}", listed(&self.acts), self.refused)?;
        let injected: u64 = self.faults.values().sum();
        writeln!(f, "faults injected {injected}: {}", listed(&self.faults))?;
        write!(
            f,
            "{} invariants, checked {} times; each looked at this many objects:",
            self.looked.len(),
            self.checks
        )?;
        for (name, count) in &self.looked {
            write!(f, "\n  {count:>10}  {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acts::Act;

    #[test]
    fn totals_are_sums_and_name_every_invariant() {
        let looked = invariants::ALL.iter().map(|name| ((*name).to_owned(), 2));
        let one = Totals {
            runs: 1,
            steps: 60,
            acts: [(Act::StartWaifud.words(), 3)].into(),
            looked: looked.collect(),
            ..Totals::default()
        };
        let mut sum = one.clone();
        sum.add(&one);
        let text = sum.to_string();
        assert!(text.starts_with("seeds 2, steps 120,"), "{text}");
        assert!(text.contains("acts: start waifud 6; refused 0"), "{text}");
        for name in invariants::ALL {
            assert!(text.contains(&format!("\n           4  {name}")), "{text}");
        }
    }
}
