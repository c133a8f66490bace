//! Adds our marked rules to other firewalls and removes them.
//!
//! No tables or chains are created, and existing ones are only read and extended. A failure is recorded as text instead of
//! returned, because guests' own rules and leases must be in force even then.

use std::path::PathBuf;

use super::generation::generation;
use super::tool::Tool;
use crate::NetworkError;
use crate::foreign::AcceptedInterfaces;
use crate::foreign::nftables::{self, Seen};
use crate::foreign::save::{Filter, Rule};

/// How long iptables waits for its lock, in seconds.
const LOCK_WAIT: &str = "5";

/// The tables of legacy iptables in this network namespace. `/proc/net` would be the main thread's namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// The two variants of iptables. Both may be in force at the same time.
const FLAVOURS: [(&str, &str); 2] = [("iptables-nft", "-nft"), ("iptables-legacy", "-legacy")];

#[derive(Debug)]
pub(super) struct Foreign {
    nft: Tool,
    /// The directory of the iptables programs.
    directory: PathBuf,
    /// The interfaces and the generation at which all rules were present, or could not be added.
    checked_at: Option<(AcceptedInterfaces, u32)>,
    trouble: Option<String>,
    places: Vec<String>,
}

/// The rules to add and to remove.
#[derive(Debug, Default)]
pub(super) struct Change {
    iptables: Vec<(&'static str, crate::foreign::save::Plan)>,
    transactions: Vec<String>,
    places: Vec<String>,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        let nothing = |(_, plan): &(_, crate::foreign::save::Plan)| {
            plan.missing.is_empty() && plan.outdated.is_empty()
        };
        self.iptables.iter().all(nothing) && self.transactions.iter().all(String::is_empty)
    }
}

impl Change {
    /// The chains that accept guests once the change is applied.
    pub(super) fn into_places(self) -> Vec<String> {
        self.places
    }
}

impl Foreign {
    pub(super) const fn new(nft: Tool, directory: PathBuf) -> Self {
        Self {
            nft,
            directory,
            checked_at: None,
            trouble: None,
            places: Vec::new(),
        }
    }

    /// The chains with our rules, and why they could not be added.
    pub(super) fn outcome(&self) -> (Vec<String>, Option<String>) {
        (self.places.clone(), self.trouble.clone())
    }

    /// The change after which other firewalls accept these interfaces. With `None`, it removes all our rules.
    pub(super) async fn change(
        &self,
        accepted: Option<&AcceptedInterfaces>,
    ) -> Result<Change, NetworkError> {
        let mut change = Change::default();
        let failed = |error: serde_json::Error| self.nft.failed(error.to_string());
        let chains = self.nft.run(&["-j", "list", "chains"], "").await?;
        let Seen { iptables, tables } = nftables::seen(&chains).map_err(failed)?;
        for (family, table) in tables {
            let question = ["-j", "list", "table", &family, &table];
            let text = self.nft.run(&question, "").await?;
            let plan = nftables::plan(&text, accepted).map_err(failed)?;
            change.transactions.push(plan.transaction);
            change.places.extend(plan.places);
        }
        for (name, flavour) in FLAVOURS {
            let there = if flavour == "-nft" {
                iptables
            } else {
                has_legacy_filter()
            };
            if !there {
                continue;
            }
            let save = Tool::new(name, self.directory.join(format!("iptables{flavour}-save")));
            let filter = Filter::parse(&save.run(&["-t", "filter"], "").await?);
            let plan = accepted.map_or_else(
                || crate::foreign::save::Plan {
                    outdated: filter.marked(),
                    ..Default::default()
                },
                |accepted| filter.plan(accepted),
            );
            let places = plan.places.iter();
            change
                .places
                .extend(places.map(|chain| format!("{chain} of {name}")));
            change.iptables.push((name, plan));
        }
        change.places.sort();
        Ok(change)
    }

    pub(super) async fn apply(&self, change: &Change) -> Result<(), NetworkError> {
        for transaction in change.transactions.iter().filter(|text| !text.is_empty()) {
            self.nft.run(&["-f", "-"], transaction).await?;
        }
        for (name, plan) in &change.iptables {
            let iptables = Tool::new(name, self.directory.join(name));
            for rule in &plan.outdated {
                iptables.run(&arguments("-D", rule), "").await?;
            }
            for rule in &plan.missing {
                if iptables.run(&arguments("-C", rule), "").await.is_err() {
                    iptables.run(&arguments("-I", rule), "").await?;
                }
            }
        }
        Ok(())
    }

    /// Records that the commit between two generations changed our own tables only.
    pub(super) fn ignore_commit(&mut self, before: u32, after: u32) {
        if let Some((_, generation)) = &mut self.checked_at
            && *generation == before
        {
            *generation = after;
        }
    }

    /// Whether nothing has changed since all rules were present, so that a further check is not necessary.
    pub(super) fn is_current(&self, accepted: &AcceptedInterfaces) -> Result<bool, NetworkError> {
        let now = generation()?;
        let checked = self.checked_at.as_ref();
        Ok(self.trouble.is_none()
            && checked.is_some_and(|(at, generation)| at == accepted && *generation == now)
            && !has_legacy_filter())
    }

    /// Records the outcome of a change.
    pub(super) fn record_outcome(
        &mut self,
        accepted: &AcceptedInterfaces,
        outcome: Result<(Vec<String>, Option<u32>), NetworkError>,
    ) {
        // Taken before the rules were read: a commit of another firewall during the reading is checked again.
        let seen_at = match &outcome {
            Ok((_, seen_at)) => *seen_at,
            Err(_) => generation().ok(),
        };
        self.checked_at = seen_at.map(|generation| (accepted.clone(), generation));
        match outcome {
            Ok((places, _)) => {
                self.places = places;
                self.trouble = None;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot add rules to other firewalls, which may drop guests' packets");
                self.places.clear();
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// Whether all our rules are present, or could not be added. Legacy iptables does not change the generation, so it is
    /// read only if `full`.
    pub(super) async fn is_intact(
        &self,
        accepted: &AcceptedInterfaces,
        full: bool,
    ) -> Result<bool, NetworkError> {
        let now = generation()?;
        let unchanged = self
            .checked_at
            .as_ref()
            .is_some_and(|(at, generation)| at == accepted && *generation == now);
        if unchanged && (self.trouble.is_some() || !full || !has_legacy_filter()) {
            return Ok(true);
        }
        Ok(self.change(Some(accepted)).await?.is_empty())
    }

    /// Removes all marked rules and returns their number, as text.
    pub(super) async fn remove(&mut self) -> Result<Option<String>, NetworkError> {
        self.checked_at = None;
        self.places.clear();
        self.trouble = None;
        let change = self.change(None).await?;
        self.apply(&change).await?;
        let outdated = change.iptables.iter().flat_map(|(_, plan)| &plan.outdated);
        let by_iptables = outdated.count();
        let transactions = change.transactions.iter().flat_map(|text| text.lines());
        let count = by_iptables + transactions.count();
        Ok((count > 0).then(|| format!("{count} marked rules in other firewalls")))
    }
}

fn has_legacy_filter() -> bool {
    std::fs::read_to_string(LEGACY_TABLES)
        .is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

fn arguments<'a>(verb: &'a str, rule: &'a Rule) -> Vec<&'a str> {
    let mut arguments = vec!["-w", LOCK_WAIT, verb, &rule.chain];
    arguments.extend(rule.words.iter().map(String::as_str));
    arguments
}
