//! Our tables in the kernel: put there in one transaction, watched by the kernel's own count of changes.
//!
//! What we loaded is kept beside how the kernel lists it, in two files. They answer, after a restart too, whether the
//! rules in force are still ours: the list is compared, not trusted.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use waifud_types::TapName;

use super::files;
use super::generation::generation;
use super::learned::{Memory, without_filled};
use super::tool::Tool;
use crate::ruleset::lan::Learned;
use crate::ruleset::{self, Counted, HostSide, NOT_IPV4, SPOOFED, TABLE, TO_HOST};
use crate::{NetworkError, NetworkState, PortCounters};

/// How often rules are compared while others change theirs, before ours are taken for changed.
const LOOKS: usize = 5;

#[derive(Debug)]
pub(super) struct Firewall {
    nft: Tool,
    /// What we loaded last.
    loaded: PathBuf,
    /// How the kernel lists it, without counters.
    listed: PathBuf,
    /// The generation at which the rules in force were known to be ours.
    ours_at: Option<u32>,
    /// Whether `listed` was written or compared since.
    settled: bool,
    /// What they were made of.
    made_of: Option<(NetworkState, HostSide)>,
    memory: Memory,
}

impl Firewall {
    pub(super) fn new(nft: Tool, directory: &Path) -> Self {
        Self {
            nft,
            loaded: directory.join("rules.nft"),
            listed: directory.join("rules.listed"),
            ours_at: None,
            settled: false,
            made_of: None,
            memory: Memory::new(directory),
        }
    }

    /// Puts the rules for `state` in force, unless they are.
    pub(super) async fn ensure(
        &mut self,
        state: &NetworkState,
        host: &HostSide,
    ) -> Result<(), NetworkError> {
        let wanted = ruleset::tables(state, host, &Counted::new(), &Learned::new());
        if files::read(&self.loaded)?.as_ref() == Some(&wanted) && self.is_whole().await? {
            return Ok(());
        }
        if let Some(change) = self.change(state, host)?
            && self.load(&change, &wanted).await.is_ok()
        {
            tracing::debug!("guests' rules were changed in place");
            self.made_of = Some((state.clone(), host.clone()));
            return Ok(());
        }
        let counted = self.counted(state).await?;
        let learned = self.learned(state).await?;
        let all = ruleset::replacing(&ruleset::tables(state, host, &counted, &learned));
        self.load(&all, &wanted).await?;
        self.made_of = Some((state.clone(), host.clone()));
        Ok(())
    }

    /// The short way to the rules for `state`, if the rules in force are known to be ours and near enough.
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

    /// Sends one transaction, after which the rules are as `tables` says.
    async fn load(&mut self, transaction: &str, tables: &str) -> Result<(), NetworkError> {
        if transaction.is_empty() {
            // Nothing that rules speak of has changed, only its order.
            return files::replace(&self.loaded, tables);
        }
        // From here until the end, what is on disk says nothing about what is in force.
        files::remove(&self.listed)?;
        self.ours_at = None;
        self.settled = false;
        self.made_of = None;
        let before = generation()?;
        self.nft.run(&["-f", "-"], transaction).await?;
        files::replace(&self.loaded, tables)?;
        // A commit of somebody else's in between: only listing tells what is there now.
        let after = generation()?;
        if after == before.wrapping_add(1) {
            self.ours_at = Some(after);
        }
        Ok(())
    }

    /// Whether the rules in force are the ones that were loaded. Cheap when no rule of the host has changed since.
    pub(super) async fn is_whole(&mut self) -> Result<bool, NetworkError> {
        // Somebody else's change while we look says nothing about ours.
        for _ in 0..LOOKS {
            if let Some(whole) = self.compare().await? {
                return Ok(whole);
            }
        }
        Ok(false)
    }

    /// One comparison; nothing when rules of the host changed meanwhile.
    async fn compare(&mut self) -> Result<Option<bool>, NetworkError> {
        let now = generation()?;
        let unchanged = self.ours_at == Some(now);
        if unchanged && self.settled {
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
        self.settled = true;
        Ok(Some(true))
    }

    /// Both tables as the kernel shows them; `None` when one is missing. One question each: nft 1.0.6 finds only the
    /// last table of a file that asks for two.
    async fn list(&self) -> Option<String> {
        let of = |family| {
            let question = ["-s", "list", "table", family, TABLE];
            async move { self.nft.run(&question, "").await.ok() }
        };
        let (bridge, inet) = tokio::join!(of("bridge"), of("inet"));
        Some(without_filled(&bridge?) + &inet?)
    }

    /// What the rules of the state's ports have counted; ports without rules are left out.
    pub(super) async fn counted(&self, state: &NetworkState) -> Result<Counted, NetworkError> {
        let counters = self.list_counters().await?;
        let taps = state.ports.iter().map(|port| &port.tap);
        let taps = taps.chain(state.lan.iter().map(|port| &port.tap));
        let known = taps.filter_map(|tap| Some((tap.clone(), of_port(&counters, tap)?)));
        Ok(known.collect())
    }

    /// What the rules have learned at the state's ports, or had, where they are gone.
    pub(super) async fn learned(&mut self, state: &NetworkState) -> Result<Learned, NetworkError> {
        if state.lan.is_empty() {
            self.memory.forget()?;
            return Ok(Learned::new());
        }
        self.memory.look(&self.nft, state).await
    }

    /// What the last look found at one port: the IPv4 address in use first, the others sorted.
    pub(super) fn learned_at(&self, tap: &TapName) -> Vec<IpAddr> {
        self.memory.in_order(tap)
    }

    /// What the rules of one port have counted; `None` when it has none.
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

    /// Others' chains that drop forwarded packets.
    pub(super) async fn foreign(&self) -> Result<Vec<String>, NetworkError> {
        let text = self.nft.run(&["-j", "list", "chains"], "").await?;
        parse_foreign(&text).map_err(|e| self.nft.failed(e.to_string()))
    }

    /// Whether there is a table of ours.
    pub(super) async fn is_there(&self) -> Result<bool, NetworkError> {
        let tables = self.nft.run(&["list", "tables"], "").await?;
        let is_ours = |line: &str| line.split_ascii_whitespace().nth(2) == Some(TABLE);
        Ok(tables.lines().any(is_ours))
    }

    /// Takes our tables away.
    pub(super) async fn remove(&mut self) -> Result<(), NetworkError> {
        self.ours_at = None;
        self.made_of = None;
        self.nft.run(&["-f", "-"], &ruleset::removal()).await?;
        files::remove(&self.loaded)?;
        self.memory.forget()?;
        files::remove(&self.listed)
    }
}

/// What `nft -j` answers: a list of objects with one key each, of which we know some (libnftables-json(5)).
#[derive(Deserialize)]
struct Answer {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    counter: Option<Counter>,
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Counter {
    table: String,
    name: String,
    packets: u64,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
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
    Some(PortCounters {
        spoofed: of(SPOOFED)?,
        to_host: of(TO_HOST)?,
        not_ipv4: of(NOT_IPV4)?,
    })
}

/// Chains on the forward hook that drop what nothing in them accepts, named by the product that made them where its
/// other chains give it away. An `accept` in our table can't overrule them. firewalld's chain has the policy `accept`
/// and rejects in its last rule.
fn parse_foreign(text: &str) -> serde_json::Result<Vec<String>> {
    let answer: Answer = serde_json::from_str(text)?;
    let chains: Vec<_> = answer
        .nftables
        .into_iter()
        .filter_map(|o| o.chain)
        .collect();
    let has = |table: &str, prefix: &str| {
        chains
            .iter()
            .any(|c| c.table == table && c.name.starts_with(prefix))
    };
    let mut found: Vec<_> = chains
        .iter()
        .filter(|c| c.table != TABLE && c.hook.as_deref() == Some("forward"))
        .filter(|c| matches!(c.family.as_str(), "ip" | "inet"))
        .filter(|c| c.policy.as_deref() == Some("drop") || c.table == "firewalld")
        .map(|c| {
            let by = if c.table == "firewalld" {
                "firewalld"
            } else if has(&c.table, "ufw-") {
                "ufw"
            } else if has(&c.table, "DOCKER") {
                "Docker"
            } else {
                "unknown"
            };
            format!("{by}: chain {} of table {} {}", c.name, c.family, c.table)
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(chains: &[serde_json::Value]) -> Vec<String> {
        let objects: Vec<_> = chains
            .iter()
            .map(|chain| serde_json::json!({ "chain": chain }))
            .chain([serde_json::json!({ "metainfo": { "version": "1.0.6" } })])
            .collect();
        parse_foreign(&serde_json::json!({ "nftables": objects }).to_string()).unwrap()
    }

    fn chain(
        table: &str,
        name: &str,
        hook: Option<&str>,
        policy: Option<&str>,
    ) -> serde_json::Value {
        serde_json::json!({
            "family": "ip", "table": table, "name": name, "handle": 1, "hook": hook, "policy": policy,
        })
    }

    #[test]
    fn dropping_forward_chains_are_named_by_their_makers() {
        let docker = [
            chain("filter", "FORWARD", Some("forward"), Some("drop")),
            chain("filter", "DOCKER-USER", None, None),
            chain("filter", "INPUT", Some("input"), Some("drop")),
        ];
        assert_eq!(
            chains(&docker),
            ["Docker: chain FORWARD of table ip filter"]
        );
        let firewalld = [chain(
            "firewalld",
            "filter_FORWARD",
            Some("forward"),
            Some("accept"),
        )];
        assert_eq!(
            chains(&firewalld),
            ["firewalld: chain filter_FORWARD of table ip firewalld"]
        );
        let ufw = [
            chain("filter", "FORWARD", Some("forward"), Some("drop")),
            chain("filter", "ufw-before-forward", None, None),
        ];
        assert_eq!(chains(&ufw), ["ufw: chain FORWARD of table ip filter"]);
    }

    #[test]
    fn accepting_chains_and_our_own_are_no_obstacle() {
        assert!(chains(&[chain("filter", "FORWARD", Some("forward"), Some("accept"))]).is_empty());
        assert!(chains(&[chain("waifud", "forwarding", Some("forward"), Some("drop"))]).is_empty());
    }
}
