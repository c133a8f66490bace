//! The links between the machines: which of them are cut or slow.
//!
//! All machines, "outside" too, are ports of one bridge. A link is cut by rules of nftables on that bridge, which drop what
//! comes in at one port and would leave at the other. The name of a port stays when its machine boots again, and so do the
//! rules. A slow link is cut for the bridge, and a relay in the guard passes the frames on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::options::LabSpec;
use crate::orders::Link;
use crate::shape::Shape;
use crate::slow::Slow;
use crate::{net, wait};

const LIMIT: Duration = Duration::from_secs(10);
/// The file in the lab's directory with the rules that are in force.
const RULES: &str = "links.nft";
/// What the kernel collects of one TCP connection before a device divides it into frames.
const SEGMENTS: u32 = 65_535;

/// The links that differ from a plain network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    pub cut: BTreeSet<Link>,
    pub slow: BTreeMap<Link, Shape>,
}

/// The links as they are.
#[derive(Default)]
pub(crate) struct Links {
    differences: Differences,
    relays: BTreeMap<Link, (Shape, Slow)>,
    /// Machines that send single frames only, so that a slow link is slow for each of them.
    single: BTreeSet<String>,
}

/// The lab that the links are in.
pub(crate) struct Place<'a> {
    pub dir: &'a Path,
    pub spec: &'a LabSpec,
    /// The init of each machine that is on.
    pub inits: BTreeMap<&'a str, i32>,
}

impl Place<'_> {
    fn init(&self, machine: &str) -> Result<i32> {
        let init = self.inits.get(machine).copied();
        init.with_context(|| format!("{machine} is off"))
    }
}

impl Links {
    pub(crate) fn differences(&self) -> &Differences {
        &self.differences
    }

    /// Changes the links. If that fails, they are as before as far as possible.
    pub(crate) fn change(&mut self, to: Differences, place: &Place<'_>) -> Result<()> {
        let before = std::mem::replace(&mut self.differences, to);
        let result = self.apply(place);
        if result.is_err() {
            self.differences = before;
            let _ = self.apply(place);
        }
        result
    }

    /// Forgets what belongs to a machine that has ended.
    pub(crate) fn release(&mut self, machine: &str) {
        self.relays
            .retain(|link, _| !link.ends().contains(&machine));
        self.single.remove(machine);
    }

    /// Makes the network match the differences. Called after each change of these, and after a machine has booted.
    pub(crate) fn apply(&mut self, place: &Place<'_>) -> Result<()> {
        let outside = place.init(crate::OUTSIDE)?;
        let file = place.dir.join(RULES);
        std::fs::write(&file, self.differences.rules())
            .context("cannot write the rules of the links")?;
        wait::run(net::outside(outside, "nft").arg("-f").arg(&file), LIMIT)
            .context("cannot change the links")?;

        let Differences { cut, slow } = &self.differences;
        let passes = |link: &Link| {
            let on = link.ends().iter().all(|end| place.inits.contains_key(end));
            slow.get(link).filter(|_| on && !cut.contains(link))
        };
        self.relays
            .retain(|link, (shape, _)| passes(link) == Some(shape));
        for (link, shape) in slow {
            if passes(link).is_none() || self.relays.contains_key(link) {
                continue;
            }
            let [one, other] = link.ends();
            let addresses = [one, other].map(|end| Ok(place.spec.machine(end)?.index));
            let [one, other] = addresses.map(|index: Result<u8>| index.map(net::hardware_address));
            let relay = Slow::start(link, [one?, other?], *shape, outside)?;
            self.relays.insert(link.clone(), (*shape, relay));
        }
        self.divide(place)
    }

    /// Makes machines with a slow link send single frames, and the others large pieces again.
    fn divide(&mut self, place: &Place<'_>) -> Result<()> {
        let slow = self.differences.slow.keys();
        let wanted: BTreeSet<_> = slow.flat_map(Link::ends).map(str::to_owned).collect();
        for (machine, init) in &place.inits {
            let single = wanted.contains(*machine);
            if single == self.single.contains(*machine) {
                continue;
            }
            let device = if *machine == crate::OUTSIDE {
                "lan0"
            } else {
                "eth0"
            };
            let segments = if single { 1 } else { SEGMENTS }.to_string();
            let set = ["link", "set", "dev", device, "gso_max_segs", &segments];
            let mut command: Command = net::outside(*init, "ip");
            wait::run(command.args(set), LIMIT)?;
            if single {
                self.single.insert((*machine).to_owned());
            } else {
                self.single.remove(*machine);
            }
        }
        Ok(())
    }
}

impl Differences {
    /// The table of nftables, which replaces an earlier one in one step.
    fn rules(&self) -> String {
        let mut text = String::from(
            "table bridge waifud-lab\n\
             delete table bridge waifud-lab\n\
             table bridge waifud-lab {\n\
             \x20 chain forward {\n\
             \x20   type filter hook forward priority 0;\n",
        );
        for link in self.cut.iter().chain(self.slow.keys()) {
            let [one, other] = link.ends().map(net::port);
            for (from, to) in [(&one, &other), (&other, &one)] {
                let _ = writeln!(text, "    iifname \"{from}\" oifname \"{to}\" drop");
            }
        }
        text.push_str("  }\n}\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_drops_both_directions_of_links_that_are_cut_or_slow_and_nothing_else() {
        let link = |one, other| Link::between(one, other).unwrap();
        let rules = Differences {
            cut: BTreeSet::from([link("birch", "alder")]),
            slow: BTreeMap::from([(link("cedar", crate::OUTSIDE), Shape::default())]),
        }
        .rules();
        for rule in [
            "iifname \"to-alder\" oifname \"to-birch\" drop",
            "iifname \"to-birch\" oifname \"to-alder\" drop",
            "iifname \"to-cedar\" oifname \"to-outside\" drop",
            "iifname \"to-outside\" oifname \"to-cedar\" drop",
        ] {
            assert!(rules.contains(rule), "{rule}: {rules}");
        }
        assert_eq!(rules.matches("drop").count(), 4, "{rules}");
        assert!(!Differences::default().rules().contains("drop"));
    }
}
