//! Addresses that the rules have learned: read from the kernel, and saved in case the rules are deleted.
//!
//! A restart of the host's firewall flushes all rules including ours, and a guest renews its lease only hours later. So
//! the addresses of the last reading are loaded again, even after our own restart. After a reboot no guest is running.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use waifud_types::TapName;

use super::files;
use super::in_use::{self, Kept};
use super::tool::Tool;
use crate::ruleset::TABLE;
use crate::ruleset::lan::{FILLED_BY_RULES, LEARNED, Learned};
use crate::{NetworkError, NetworkState};

/// Learned addresses by tap.
type AddressesByTap = BTreeMap<String, Kept>;

#[derive(Debug)]
pub(super) struct LearnedAddresses {
    file: PathBuf,
    known: Option<Learned>,
    in_use: BTreeMap<TapName, Ipv4Addr>,
}

impl LearnedAddresses {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            file: directory.join("learned"),
            known: None,
            in_use: BTreeMap::new(),
        }
    }

    /// The addresses of this port in the last reading: the IPv4 address in use first, the others sorted.
    pub(super) fn learned_at(&self, tap: &TapName) -> Vec<IpAddr> {
        let all = self.known.as_ref().and_then(|known| known.get(tap));
        let first = self.in_use.get(tap).map(|address| IpAddr::V4(*address));
        let others = all.into_iter().flatten().copied();
        let others = others.filter(|address| Some(*address) != first);
        first.into_iter().chain(others).collect()
    }

    /// Reads the addresses that the rules in force have learned at the state's ports; without rules, returns the saved ones.
    pub(super) async fn refresh(
        &mut self,
        nft: &Tool,
        state: &NetworkState,
    ) -> Result<Learned, NetworkError> {
        let mut found = match in_force(nft).await {
            Some(found) => found,
            None => self.remembered()?,
        };
        let taps = state.lan.iter().map(|port| &port.tap);
        let (mut learned, mut in_use) = (Learned::new(), BTreeMap::new());
        for tap in taps {
            let Some(mut kept) = found.remove(tap.as_str()) else {
                continue;
            };
            if let Some(address) = in_use::now(&kept, self.in_use.get(tap).copied()) {
                in_use::forget(&mut kept, address);
                in_use.insert(tap.clone(), address);
            }
            learned.insert(tap.clone(), kept.into_keys().collect());
        }
        self.in_use = in_use;
        if self.known.as_ref() != Some(&learned) {
            if learned.is_empty() {
                files::remove(&self.file)?;
            } else {
                files::replace(&self.file, &to_text(&learned))?;
            }
            self.known = Some(learned.clone());
        }
        Ok(learned)
    }

    fn remembered(&self) -> Result<AddressesByTap, NetworkError> {
        if let Some(known) = &self.known {
            let unused = |all: &BTreeSet<IpAddr>| all.iter().map(|a| (*a, 0)).collect();
            let named = |(tap, all): (&TapName, &BTreeSet<_>)| (tap.to_string(), unused(all));
            return Ok(known.iter().map(named).collect());
        }
        let text = files::read(&self.file)?.unwrap_or_default();
        Ok(read(&text))
    }

    pub(super) fn forget(&mut self) -> Result<(), NetworkError> {
        self.known = None;
        self.in_use.clear();
        files::remove(&self.file)
    }
}

/// Reads the sets from the kernel; `None` if they do not exist.
async fn in_force(nft: &Tool) -> Option<AddressesByTap> {
    let mut learned = AddressesByTap::new();
    for set in LEARNED {
        let arguments = ["-j", "list", "set", "bridge", TABLE, set];
        let text = nft.run(&arguments, "").await.ok()?;
        for (tap, address, expires) in parse(&text)? {
            learned.entry(tap).or_default().insert(address, expires);
        }
    }
    Some(learned)
}

#[derive(Deserialize)]
struct Answer {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    name: String,
    #[serde(default)]
    elem: Vec<serde_json::Value>,
}

/// Reads the elements of a set, with the seconds until each expires. An element is an interface's name and a number, in
/// hexadecimal digits if it has more than 64 bits. Elements of other types are left out.
fn parse(text: &str) -> Option<Vec<(String, IpAddr, u64)>> {
    let answer: Answer = serde_json::from_str(text).ok()?;
    let mut set = answer.nftables.into_iter().filter_map(|object| object.set);
    let set = set.next()?;
    let is_v4 = set.name.ends_with('4');
    let element = |element: &serde_json::Value| {
        let pair = element
            .pointer("/elem/val/concat")
            .or_else(|| element.pointer("/concat"))?;
        let tap = pair.get(0)?.as_str()?.to_owned();
        let number = match pair.get(1)? {
            serde_json::Value::String(text) => {
                u128::from_str_radix(text.strip_prefix("0x")?, 16).ok()?
            }
            number => u128::from(number.as_u64()?),
        };
        let address = if is_v4 {
            IpAddr::V4(u32::try_from(number).ok()?.into())
        } else {
            IpAddr::V6(number.into())
        };
        let expires = element.pointer("/elem/expires");
        let expires = expires.and_then(serde_json::Value::as_u64);
        Some((tap, address, expires.unwrap_or(0)))
    };
    Some(set.elem.iter().filter_map(element).collect())
}

/// One line for each address: tap and address.
fn to_text(learned: &Learned) -> String {
    let mut text = String::new();
    for (tap, addresses) in learned {
        for address in addresses {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{tap} {address}");
        }
    }
    text
}

fn read(text: &str) -> AddressesByTap {
    let mut learned = AddressesByTap::new();
    for line in text.lines() {
        if let Some((tap, address)) = line.split_once(' ')
            && let Ok(address) = address.parse()
        {
            learned
                .entry(tap.to_owned())
                .or_default()
                .insert(address, 0);
        }
    }
    learned
}

/// A listed table without the elements that rules have added, which leaves what was loaded.
pub(super) fn without_filled(listed: &str) -> String {
    let mut kept = String::new();
    let mut filled = false;
    let mut skipping = false;
    for line in listed.lines() {
        let trimmed = line.trim_start();
        if let Some(head) = line
            .strip_prefix("\tset ")
            .or_else(|| line.strip_prefix("\tmap "))
        {
            filled = FILLED_BY_RULES
                .iter()
                .any(|name| head.strip_suffix(" {") == Some(name));
        }
        if line == "\t}" {
            filled = false;
        }
        if filled && trimmed.starts_with("elements = {") {
            skipping = true;
        }
        if skipping {
            skipping = !line.trim_end().ends_with('}');
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::lan_port;

    #[test]
    fn elements_of_all_widths_are_read() {
        let v4 = r#"{"nftables":[{"metainfo":{}},{"set":{"name":"learned4","elem":[
            {"elem":{"val":{"concat":["wf-2a","x"]},"expires":9}},
            {"elem":{"val":{"concat":["wf-12345678",3232235826]},"expires":9}}]}}]}"#;
        let (tap, address, expires) = parse(v4).unwrap().pop().unwrap();
        assert_eq!((&*tap, expires), ("wf-12345678", 9));
        assert_eq!(address.to_string(), "192.168.1.50");
        let v6 = r#"{"nftables":[{"set":{"name":"learned6","elem":[
            {"elem":{"val":{"concat":["wf-12345678","0xfe80000000000000505400fffe000001"]}}}]}}]}"#;
        assert_eq!(parse(v6).unwrap()[0].1.to_string(), "fe80::5054:ff:fe00:1");
        let empty = r#"{"nftables":[{"set":{"name":"learned6"}}]}"#;
        assert!(parse(empty).unwrap().is_empty());
        assert!(parse("{}").is_none());
    }

    #[test]
    fn written_addresses_are_read_again() {
        let addresses = ["192.168.1.7", "fe80::1"];
        let learned = Learned::from([(
            lan_port(0).tap,
            addresses.iter().map(|a| a.parse().unwrap()).collect(),
        )]);
        let mut found = read(&to_text(&learned));
        let found = found.remove(lan_port(0).tap.as_str()).unwrap();
        assert!(found.into_keys().eq(learned[&lan_port(0).tap].clone()));
        assert_eq!(read("nonsense\nwf-1 x\n"), AddressesByTap::new());
    }

    #[test]
    fn only_elements_added_by_rules_are_left_out() {
        let listed = "table bridge waifud {\n\tset macs {\n\t\telements = { \"a\",\n\t\t\t     \"b\" }\n\t}\n\n\
            \tset learned4 {\n\t\tsize 9\n\t\telements = { \"a\" . 0x1 expires 2s,\n\t\t\t     \"b\" . 0x2 }\n\t}\n\
            \tmap answers {\n\t\telements = { \"a\" : 192.0.2.1 }\n\t}\n}\n";
        let expected = "table bridge waifud {\n\tset macs {\n\t\telements = { \"a\",\n\t\t\t     \"b\" }\n\t}\n\n\
            \tset learned4 {\n\t\tsize 9\n\t}\n\tmap answers {\n\t}\n}\n";
        assert_eq!(without_filled(listed), expected);
    }
}
