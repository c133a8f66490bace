//! Our tables in the kernel: loaded in one transaction, and checked with the kernel's generation number.
//!
//! Two files keep the rules as we loaded them and as the kernel lists them. By comparing them with a new listing we know,
//! even after a restart, whether the rules in force are still ours.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use waifud_types::TapName;

use super::files;
use super::generation::generation;
use super::learned::{LearnedAddresses, without_filled};
use super::nft_session::{NftSession, SessionError};
use super::tool::Tool;
use crate::foreign::nftables::dropping_chains;
use crate::ruleset::guest_firewall::FIREWALL;
use crate::ruleset::lan::Learned;
use crate::ruleset::vlan::{self, Ready};
use crate::ruleset::{self, Counted, HostSide, NOT_IPV4, SPOOFED, TABLE, TO_HOST};
use crate::{FirewallCounters, NetworkError, NetworkState, PortCounters};

/// How many comparisons may be interrupted by changes of other rules, before ours are treated as changed.
const ATTEMPTS: usize = 5;

/// What is sent to `nft`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transaction<'a> {
    /// Some elements; refused completely if the rules in force are not the expected ones.
    Change(&'a str),
    /// Both tables, in place of those in force.
    Replacement(&'a str),
}

#[derive(Debug)]
pub(super) struct Firewall {
    nft: Tool,
    /// Applies changes of some elements.
    session: NftSession,
    /// The rules that we loaded last.
    loaded: PathBuf,
    /// The same rules as the kernel lists them, without counters.
    listed: PathBuf,
    /// The generation at which the rules in force were last known to be ours.
    ours_at: Option<u32>,
    /// Whether `listed` was written or compared at that generation.
    verified: bool,
    /// The state that the rules were generated from.
    made_of: Option<(NetworkState, HostSide)>,
    memory: LearnedAddresses,
    /// The interfaces of ports in a VLAN that the rules accept; `None` if unknown.
    ready: Option<Ready>,
    /// Whether the kernel is known to have `meta ibrpvid`.
    knows_vlans: bool,
    /// The generations before and after our last commit, if no other program committed in between.
    own_commit: Option<(u32, u32)>,
}

impl Firewall {
    pub(super) fn new(nft: Tool, directory: &Path) -> Self {
        Self {
            session: NftSession::new(nft.path().to_owned()),
            nft,
            loaded: directory.join("rules.nft"),
            listed: directory.join("rules.listed"),
            ours_at: None,
            verified: false,
            made_of: None,
            memory: LearnedAddresses::new(directory),
            ready: None,
            knows_vlans: false,
            own_commit: None,
        }
    }

    /// Loads the rules for `state`, unless they are in force. `ready` are the interfaces of ports that are in their VLAN.
    pub(super) async fn ensure(
        &mut self,
        state: &NetworkState,
        host: &HostSide,
        ready: &Ready,
    ) -> Result<(), NetworkError> {
        let (counted, learned) = (Counted::new(), Learned::new());
        let wanted = ruleset::tables(state, host, &counted, &learned, &Ready::new());
        if files::read(&self.loaded)?.as_ref() == Some(&wanted) && self.is_intact().await? {
            return self.set_ready(state, host, ready).await;
        }
        if let Some(change) = self.change(state, host)?
            && self
                .load(Transaction::Change(&change), &wanted)
                .await
                .is_ok()
        {
            tracing::debug!("changed guests' rules in place");
            self.made_of = Some((state.clone(), host.clone()));
            return self.set_ready(state, host, ready).await;
        }
        let counted = self.counted(state).await?;
        let learned = self.learned(state).await?;
        let tables = ruleset::tables(state, host, &counted, &learned, ready);
        let all = ruleset::replacing(&tables);
        self.ready = None;
        self.load(Transaction::Replacement(&all), &wanted).await?;
        self.ready = Some(ready.clone());
        self.made_of = Some((state.clone(), host.clone()));
        Ok(())
    }

    /// Makes the rules accept these interfaces of ports in a VLAN, and no others.
    pub(super) async fn set_ready(
        &mut self,
        state: &NetworkState,
        host: &HostSide,
        ready: &Ready,
    ) -> Result<(), NetworkError> {
        if !state.has_vlans() || !host.knows_vlans || self.ready.as_ref() == Some(ready) {
            return Ok(());
        }
        self.ready = None;
        let before = generation()?;
        self.nft.run(&["-f", "-"], &vlan::set_ready(ready)).await?;
        let after = generation()?;
        // The elements are not compared, so the rules are as well known as before.
        if self.ours_at == Some(before) && after == before.wrapping_add(1) {
            self.ours_at = Some(after);
            self.own_commit = self.own_commit.filter(|(_, last)| *last == before);
            let first = self.own_commit.map_or(before, |(first, _)| first);
            self.own_commit = Some((first, after));
        }
        self.ready = Some(ready.clone());
        Ok(())
    }

    /// The interfaces of ports in a VLAN that the rules accept, as far as known.
    pub(super) fn ready(&self) -> Ready {
        self.ready.clone().unwrap_or_default()
    }

    /// Whether the kernel knows the VLAN of a port. It is asked again until it does, because it may get the module later.
    pub(super) async fn knows_vlans(&mut self) -> bool {
        if !self.knows_vlans {
            // Only checked, not committed.
            let probe = self.nft.run(&["-c", "-f", "-"], vlan::PROBE).await;
            self.knows_vlans = probe.is_ok();
        }
        self.knows_vlans
    }

    /// The change that leads to the rules for `state`, if the rules in force are known to be ours and only elements differ.
    fn change(
        &self,
        state: &NetworkState,
        host: &HostSide,
    ) -> Result<Option<String>, NetworkError> {
        let Some((before, _)) = self.made_of.as_ref().filter(|(_, h)| h == host) else {
            return Ok(None);
        };
        if self.ours_at != Some(generation()?) {
            return Ok(None);
        }
        Ok(ruleset::change(before, state))
    }

    /// Sends one transaction, after which the rules in force are those of `tables`.
    async fn load(
        &mut self,
        transaction: Transaction<'_>,
        tables: &str,
    ) -> Result<(), NetworkError> {
        if matches!(transaction, Transaction::Change("")) {
            // Only the order of guests has changed, or something that no rule depends on.
            return files::replace(&self.loaded, tables);
        }
        // Until the end of this function, the files may differ from the rules in force.
        files::remove(&self.listed)?;
        self.ours_at = None;
        self.verified = false;
        self.made_of = None;
        self.own_commit = None;
        let before = generation()?;
        match transaction {
            Transaction::Change(text) => self.apply_change(text, before).await?,
            Transaction::Replacement(text) => {
                self.nft.run(&["-f", "-"], text).await?;
                self.session.start();
            }
        }
        let after = generation()?;
        if after == before {
            let why = "nft confirmed the change, but nothing was committed";
            return Err(self.nft.failed(why));
        }
        files::replace(&self.loaded, tables)?;
        // After a commit of another program in between, only a listing shows which rules are in force.
        if after == before.wrapping_add(1) {
            self.ours_at = Some(after);
            self.own_commit = Some((before, after));
        }
        // Listed at once: a change of other rules before the next check must not look like a change of our own rules. A change
        // of elements is listed by that check, because listing takes longer than the change itself.
        if matches!(transaction, Transaction::Replacement(_)) {
            self.compare().await?;
        }
        Ok(())
    }

    /// The generations before and after our last commit, if no other program committed in between.
    pub(super) const fn own_commit(&self) -> Option<(u32, u32)> {
        self.own_commit
    }

    /// Applies a change through the session, or with a separate process if the session cannot be used. `before` is the
    /// generation before the change.
    async fn apply_change(&mut self, text: &str, before: u32) -> Result<(), NetworkError> {
        match self.session.run(text).await {
            Ok(()) => return Ok(()),
            Err(SessionError::Refused(message)) => return Err(self.nft.failed(message)),
            Err(SessionError::NotSent(why)) => tracing::debug!(why, "not using the nft session"),
            Err(SessionError::Lost(why)) => {
                tracing::warn!(
                    why,
                    "the nft session failed; starting a separate nft process for each change"
                );
                // A commit since then may be this one, so it must not be applied a second time.
                if generation()? != before {
                    return Err(self.nft.failed("the nft session ended during a change"));
                }
            }
        }
        self.nft.run(&["-f", "-"], text).await.map(drop)
    }

    /// Whether the rules in force are the ones that were loaded. Cheap if no rule of the host has changed since.
    pub(super) async fn is_intact(&mut self) -> Result<bool, NetworkError> {
        // A change of other rules during the comparison makes its result useless.
        for _ in 0..ATTEMPTS {
            if let Some(unchanged) = self.compare().await? {
                return Ok(unchanged);
            }
        }
        Ok(false)
    }

    /// One comparison; `None` if any rule of the host changed meanwhile.
    async fn compare(&mut self) -> Result<Option<bool>, NetworkError> {
        let now = generation()?;
        let unchanged = self.ours_at == Some(now);
        if unchanged && self.verified {
            return Ok(Some(true));
        }
        let known = files::read(&self.listed)?;
        let found = self.list().await;
        if generation()? != now {
            return Ok(None);
        }
        match (found, known) {
            (Some(found), None) if unchanged => files::replace(&self.listed, &found)?,
            (Some(found), Some(known)) if found == known => {}
            _ => return Ok(Some(false)),
        }
        self.ours_at = Some(now);
        self.verified = true;
        Ok(Some(true))
    }

    /// Both tables as the kernel lists them; `None` if one is missing. One call each: nft 1.0.6 lists only the last table
    /// of a file that requests two.
    async fn list(&self) -> Option<String> {
        let of = |family| {
            let question = ["-s", "list", "table", family, TABLE];
            async move { self.nft.run(&question, "").await.ok() }
        };
        let (bridge, inet) = tokio::join!(of("bridge"), of("inet"));
        Some(without_filled(&bridge?) + &inet?)
    }

    /// The counters of the state's ports, without ports that have no rules.
    pub(super) async fn counted(&self, state: &NetworkState) -> Result<Counted, NetworkError> {
        let counters = self.list_counters().await?;
        let taps = state.ports.iter().map(|port| &port.tap);
        let taps = taps.chain(state.lan.iter().map(|port| &port.tap));
        let known = taps.filter_map(|tap| Some((tap.clone(), of_port(&counters, tap)?)));
        Ok(known.collect())
    }

    /// The addresses learned at the state's ports; if the rules were deleted, those learned before.
    pub(super) async fn learned(&mut self, state: &NetworkState) -> Result<Learned, NetworkError> {
        if state.lan.is_empty() {
            self.memory.forget()?;
            return Ok(Learned::new());
        }
        self.memory.refresh(&self.nft, state).await
    }

    /// The addresses of one port in the last reading: the IPv4 address in use first, the others sorted.
    pub(super) fn learned_at(&self, tap: &TapName) -> Vec<IpAddr> {
        self.memory.learned_at(tap)
    }

    /// The counters of one port; `None` if it has no rules.
    pub(super) async fn counters(
        &self,
        tap: &TapName,
    ) -> Result<Option<PortCounters>, NetworkError> {
        Ok(of_port(&self.list_counters().await?, tap))
    }

    async fn list_counters(&self) -> Result<Vec<Counter>, NetworkError> {
        let text = self.nft.run(&["-j", "list", "counters"], "").await?;
        parse_counters(&text).map_err(|error| self.nft.failed(error.to_string()))
    }

    /// Chains of other firewalls that drop forwarded packets.
    pub(super) async fn foreign(&self) -> Result<Vec<String>, NetworkError> {
        let text = self.nft.run(&["-j", "list", "chains"], "").await?;
        dropping_chains(&text).map_err(|e| self.nft.failed(e.to_string()))
    }

    /// Whether one of our tables exists.
    pub(super) async fn is_there(&self) -> Result<bool, NetworkError> {
        let tables = self.nft.run(&["list", "tables"], "").await?;
        let is_ours = |line: &str| line.split_ascii_whitespace().nth(2) == Some(TABLE);
        Ok(tables.lines().any(is_ours))
    }

    /// Removes our tables.
    pub(super) async fn remove(&mut self) -> Result<(), NetworkError> {
        self.ours_at = None;
        self.made_of = None;
        self.session.stop().await;
        self.nft.run(&["-f", "-"], &ruleset::removal()).await?;
        files::remove(&self.loaded)?;
        self.memory.forget()?;
        files::remove(&self.listed)
    }
}

/// The output of `nft -j`: a list of objects with one key each, of which we read some (libnftables-json(5)).
#[derive(Deserialize)]
struct Answer {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    table: String,
    name: String,
    packets: u64,
}

fn parse_counters(text: &str) -> serde_json::Result<Vec<Counter>> {
    let answer: Answer = serde_json::from_str(text)?;
    let counters = answer.nftables.into_iter().filter_map(|o| o.counter);
    Ok(counters.filter(|c| c.table == TABLE).collect())
}

fn of_port(counters: &[Counter], tap: &TapName) -> Option<PortCounters> {
    let of = |prefix: &str| {
        let name = format!("{prefix}{tap}");
        counters.iter().find(|c| c.name == name).map(|c| c.packets)
    };
    let firewall = format!("{FIREWALL}{tap}-");
    let rules = counters.iter().filter_map(|counter| {
        let rule = counter.name.strip_prefix(&firewall)?;
        Some((rule, counter.packets))
    });
    Some(PortCounters {
        firewall: FirewallCounters::of(rules),
        spoofed: of(SPOOFED)?,
        to_host: of(TO_HOST)?,
        not_ipv4: of(NOT_IPV4)?,
    })
}
