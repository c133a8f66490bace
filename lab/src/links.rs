//! The links between the machines: which of them are cut.
//!
//! All machines, "outside" too, are ports of one bridge. A link is cut by rules of nftables on that bridge, which drop what comes
//! in at one port and would leave at the other. The name of a port stays when its machine boots again, and so do the rules.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::orders::Link;
use crate::{net, wait};

const LIMIT: Duration = Duration::from_secs(10);
/// The file in the lab's directory with the rules that are in force.
const RULES: &str = "links.nft";

/// The links that differ from a plain network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    cut: BTreeSet<Link>,
}

impl Links {
    pub(crate) fn cut(&mut self, link: Link) {
        self.cut.insert(link);
    }

    pub(crate) fn heal(&mut self, link: &Link) {
        self.cut.remove(link);
    }

    pub(crate) fn all_cut(&self) -> BTreeSet<Link> {
        self.cut.clone()
    }

    /// Replaces the rules in the network namespace of "outside" in one step.
    pub(crate) fn apply(&self, dir: &Path, outside_pid: i32) -> Result<()> {
        let file = dir.join(RULES);
        std::fs::write(&file, self.rules()).context("cannot write the rules of the links")?;
        wait::run(net::outside(outside_pid, "nft").arg("-f").arg(&file), LIMIT)
            .context("cannot change the links")?;
        Ok(())
    }

    /// The table, which replaces an earlier one.
    fn rules(&self) -> String {
        let mut text = String::from(
            "table bridge waifud-lab\n\
             delete table bridge waifud-lab\n\
             table bridge waifud-lab {\n\
             \x20 chain forward {\n\
             \x20   type filter hook forward priority 0;\n",
        );
        for link in &self.cut {
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
    fn a_cut_drops_both_directions_and_a_healed_link_has_no_rule() {
        let mut links = Links::default();
        let link = Link::between("birch", "alder").unwrap();
        links.cut(link.clone());
        links.cut(Link::between("cedar", "outside").unwrap());
        let rules = links.rules();
        for rule in [
            "iifname \"to-alder\" oifname \"to-birch\" drop",
            "iifname \"to-birch\" oifname \"to-alder\" drop",
            "iifname \"to-cedar\" oifname \"to-outside\" drop",
            "iifname \"to-outside\" oifname \"to-cedar\" drop",
        ] {
            assert!(rules.contains(rule), "{rule}: {rules}");
        }
        links.heal(&link);
        assert!(!links.rules().contains("birch"));
    }
}
