//! Dropping chains in nftables tables: firewalld's, and those written by hand.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use super::{AcceptedInterfaces, MARK};
use crate::ruleset::TABLE;

/// The output of `nft -j`: a list of objects with one key each, of which we read some (libnftables-json(5)).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    nftables: Vec<Object>,
}

#[derive(Clone, Debug, Deserialize)]
struct Object {
    chain: Option<Chain>,
    rule: Option<Rule>,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Rule {
    chain: String,
    handle: u64,
    comment: Option<String>,
    #[serde(default)]
    expr: Vec<Value>,
}

/// Chains of other programs on the hooks that guests' packets pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Seen {
    /// iptables-nft has such chains.
    pub(crate) iptables: bool,
    /// Other tables: family and name.
    pub(crate) tables: Vec<(String, String)>,
}

/// A transaction for nft, empty if nothing has to change, and the chains that accept guests after it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) transaction: String,
    pub(crate) places: Vec<String>,
}

impl Chain {
    fn is_passed(&self) -> bool {
        matches!(self.hook.as_deref(), Some("forward" | "input"))
            && matches!(self.family.as_str(), "ip" | "inet")
            && self.table != TABLE
    }

    /// The names that iptables-nft(8) uses.
    fn is_of_iptables(&self) -> bool {
        self.family == "ip"
            && self.table == "filter"
            && matches!(self.name.as_str(), "FORWARD" | "INPUT")
    }
}

impl Rule {
    fn is_marked(&self) -> bool {
        self.comment.as_deref() == Some(MARK)
    }

    /// Whether it drops every packet.
    fn drops_all(&self) -> bool {
        let verdict = |e: &Value| e.get("drop").is_some() || e.get("reject").is_some();
        let side = |e: &Value| e.get("counter").is_some() || e.get("log").is_some();
        self.expr.iter().any(verdict) && self.expr.iter().all(|e| verdict(e) || side(e))
    }

    /// The interfaces in its conditions, incoming ones first.
    fn names(&self) -> Vec<&str> {
        let of = |key: &'static str| {
            self.expr.iter().filter(move |expression| {
                let left = expression.pointer("/match/left/meta/key");
                left.and_then(Value::as_str) == Some(key)
            })
        };
        of("iifname")
            .chain(of("oifname"))
            .filter_map(|e| e.pointer("/match/right")?.as_str())
            .collect()
    }
}

/// Reads `nft -j list chains`.
pub(crate) fn seen(text: &str) -> serde_json::Result<Seen> {
    let answer: Answer = serde_json::from_str(text)?;
    let mut seen = Seen::default();
    let chains = answer.nftables.into_iter().filter_map(|o| o.chain);
    for chain in chains.filter(Chain::is_passed) {
        if chain.is_of_iptables() {
            seen.iptables = true;
        } else {
            seen.tables.push((chain.family, chain.table));
        }
    }
    seen.tables.sort();
    seen.tables.dedup();
    Ok(seen)
}

/// Chains on the forward hook that drop by default, each with the product that made it, if its other chains identify it.
/// An `accept` in our table does not overrule them. firewalld's chain has the policy `accept` and rejects in its last
/// rule.
pub(crate) fn dropping_chains(text: &str) -> serde_json::Result<Vec<String>> {
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

/// Reads `nft -j list table …` of one table. With `None`, all our rules are removed.
pub(crate) fn plan(text: &str, accepted: Option<&AcceptedInterfaces>) -> serde_json::Result<Plan> {
    let answer: Answer = serde_json::from_str(text)?;
    let (chains, rules): (Vec<_>, Vec<_>) = answer
        .nftables
        .into_iter()
        .map(|object| (object.chain, object.rule))
        .unzip();
    let rules: Vec<Rule> = rules.into_iter().flatten().collect();
    let mut plan = Plan::default();
    for chain in chains.into_iter().flatten().filter(Chain::is_passed) {
        if chain.is_of_iptables() {
            continue;
        }
        let Chain {
            family,
            table,
            name,
            ..
        } = &chain;
        let inside = || rules.iter().filter(|rule| rule.chain == *name);
        let drops = chain.policy.as_deref() == Some("drop") || inside().any(Rule::drops_all);
        let wanted = accepted
            .filter(|_| drops)
            .map_or_else(Vec::new, |accepted| {
                if chain.hook.as_deref() == Some("forward") {
                    forwarded(accepted)
                } else {
                    to_host(&accepted.bridge)
                }
            });
        if !wanted.is_empty() {
            plan.places.push(format!("{name} of {family} {table}"));
        }
        let ours: Vec<_> = inside().filter(|rule| rule.is_marked()).collect();
        let mut there: Vec<_> = ours.iter().map(|rule| rule.names()).collect();
        let mut asked: Vec<_> = wanted.iter().map(|(names, _)| names.clone()).collect();
        there.sort_unstable();
        asked.sort_unstable();
        if there == asked {
            continue;
        }
        for rule in ours {
            // Writing to a String cannot fail.
            let _ = writeln!(
                plan.transaction,
                "delete rule {family} {table} {name} handle {}",
                rule.handle
            );
        }
        for (_, rule) in wanted {
            let _ = writeln!(
                plan.transaction,
                "insert rule {family} {table} {name} {rule} accept comment \"{MARK}\""
            );
        }
    }
    Ok(plan)
}

/// The interfaces in a rule's conditions, and the conditions.
type Wanted<'a> = (Vec<&'a str>, String);

fn forwarded(accepted: &AcceptedInterfaces) -> Vec<Wanted<'_>> {
    let rule = |(from, to): (Option<&'_ str>, Option<&'_ str>)| {
        let from = from.map(|name| format!("iifname \"{name}\""));
        let to = to.map(|name| format!("oifname \"{name}\""));
        let conditions: Vec<_> = from.into_iter().chain(to).collect();
        conditions.join(" ")
    };
    let pairs = accepted.forwarded().into_iter();
    pairs
        .map(|pair| {
            let names = [pair.0, pair.1].into_iter().flatten().collect();
            (names, rule(pair))
        })
        .collect()
}

/// The gateway's services: DHCP, DNS and ping.
fn to_host(bridge: &str) -> Vec<Wanted<'_>> {
    let rules = [
        format!("iifname \"{bridge}\" meta l4proto {{ tcp, udp }} th dport {{ 53, 67 }}"),
        format!("iifname \"{bridge}\" icmp type echo-request"),
    ];
    rules.into_iter().map(|rule| (vec![bridge], rule)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(table: &str, name: &str, hook: Option<&str>, policy: &str) -> Value {
        let family = if table == "filter" { "ip" } else { "inet" };
        json!({ "chain": {
            "family": family, "table": table, "name": name, "handle": 1, "hook": hook, "policy": policy,
        }})
    }

    fn rule(chain: &str, comment: Option<&str>, expr: &Value) -> Value {
        json!({ "rule": { "chain": chain, "handle": 9, "comment": comment, "expr": expr } })
    }

    fn answer(objects: &[Value]) -> String {
        json!({ "nftables": objects }).to_string()
    }

    #[test]
    fn iptables_chains_and_other_tables_are_distinguished_and_ours_left_out() {
        let text = answer(&[
            chain("filter", "FORWARD", Some("forward"), "drop"),
            chain("firewalld", "filter_INPUT", Some("input"), "accept"),
            chain("firewalld", "filter_FORWARD", Some("forward"), "accept"),
            chain(TABLE, "forwarding", Some("forward"), "accept"),
            chain("mangle", "x", None, "accept"),
        ]);
        let seen = seen(&text).unwrap();
        assert!(seen.iptables);
        assert_eq!(seen.tables, [("inet".to_owned(), "firewalld".to_owned())]);
    }

    #[test]
    fn a_chain_that_rejects_in_its_last_rule_gets_marked_rules_at_its_head() {
        let text = answer(&[
            chain("firewalld", "filter_FORWARD", Some("forward"), "accept"),
            chain("firewalld", "filter_INPUT", Some("input"), "accept"),
            rule(
                "filter_FORWARD",
                None,
                &json!([{ "reject": { "type": "icmpx" } }]),
            ),
            rule(
                "filter_INPUT",
                None,
                &json!([{ "match": { "right": "x" } }, { "drop": null }]),
            ),
        ]);
        let plan = plan(&text, Some(&"waifu0".into())).unwrap();
        assert_eq!(plan.places, ["filter_FORWARD of inet firewalld"]);
        assert_eq!(
            plan.transaction,
            "insert rule inet firewalld filter_FORWARD iifname \"waifu0\" accept comment \"waifud\"\n\
             insert rule inet firewalld filter_FORWARD oifname \"waifu0\" accept comment \"waifud\"\n"
        );
    }

    #[test]
    fn complete_rules_are_kept_and_those_of_another_bridge_replaced() {
        let marked = |key: &str| {
            let of = json!({ "left": { "meta": { "key": key } }, "right": "waifu0" });
            let rule_of = json!([{ "match": of }, { "accept": null }]);
            rule("fwd", Some(MARK), &rule_of)
        };
        let text = answer(&[
            chain("mine", "fwd", Some("forward"), "drop"),
            marked("iifname"),
            marked("oifname"),
        ]);
        assert_eq!(plan(&text, Some(&"waifu0".into())).unwrap().transaction, "");
        let other = plan(&text, Some(&"waifu1".into())).unwrap().transaction;
        assert_eq!(other.lines().count(), 4);
        let none = plan(&text, None).unwrap().transaction;
        assert_eq!(none, "delete rule inet mine fwd handle 9\n".repeat(2));
    }

    #[test]
    fn only_rules_with_exactly_the_mark_as_comment_are_removed() {
        let of = json!({ "left": { "meta": { "key": "iifname" } }, "right": "waifu0" });
        let expr = json!([{ "match": of }, { "accept": null }]);
        for comment in [
            Some("waifud-x"),
            Some("my waifud"),
            Some("Waifud"),
            Some(""),
            None,
        ] {
            let text = answer(&[
                chain("mine", "fwd", Some("forward"), "drop"),
                rule("fwd", comment, &expr),
            ]);
            assert_eq!(plan(&text, None).unwrap().transaction, "", "{comment:?}");
            let change = plan(&text, Some(&"waifu0".into())).unwrap().transaction;
            assert!(!change.contains("delete"), "{comment:?}: {change}");
            assert_eq!(change.lines().count(), 2, "{comment:?}: {change}");
        }
    }

    #[test]
    fn a_chain_that_only_jumps_to_a_dropping_chain_gets_no_rule() {
        let jump = json!([{ "jump": { "target": "end" } }]);
        let text = answer(&[
            chain("mine", "fwd", Some("forward"), "accept"),
            chain("mine", "end", None, "accept"),
            rule("fwd", None, &jump),
            rule("end", None, &json!([{ "drop": null }])),
        ]);
        let plan = plan(&text, Some(&"waifu0".into())).unwrap();
        assert_eq!(plan, Plan::default());
    }

    fn dropping(chains: &[Value]) -> Vec<String> {
        let objects: Vec<_> = chains
            .iter()
            .map(|chain| json!({ "chain": chain }))
            .chain([json!({ "metainfo": { "version": "1.0.6" } })])
            .collect();
        dropping_chains(&json!({ "nftables": objects }).to_string()).unwrap()
    }

    fn chain_of(table: &str, name: &str, hook: Option<&str>, policy: Option<&str>) -> Value {
        json!({
            "family": "ip", "table": table, "name": name, "handle": 1, "hook": hook, "policy": policy,
        })
    }

    #[test]
    fn dropping_forward_chains_are_listed_with_their_product() {
        let docker = [
            chain_of("filter", "FORWARD", Some("forward"), Some("drop")),
            chain_of("filter", "DOCKER-USER", None, None),
            chain_of("filter", "INPUT", Some("input"), Some("drop")),
        ];
        assert_eq!(
            dropping(&docker),
            ["Docker: chain FORWARD of table ip filter"]
        );
        let firewalld = [chain_of(
            "firewalld",
            "filter_FORWARD",
            Some("forward"),
            Some("accept"),
        )];
        assert_eq!(
            dropping(&firewalld),
            ["firewalld: chain filter_FORWARD of table ip firewalld"]
        );
        let ufw = [
            chain_of("filter", "FORWARD", Some("forward"), Some("drop")),
            chain_of("filter", "ufw-before-forward", None, None),
        ];
        assert_eq!(dropping(&ufw), ["ufw: chain FORWARD of table ip filter"]);
    }

    #[test]
    fn accepting_chains_and_our_own_are_not_listed() {
        assert!(
            dropping(&[chain_of(
                "filter",
                "FORWARD",
                Some("forward"),
                Some("accept")
            )])
            .is_empty()
        );
        assert!(
            dropping(&[chain_of(
                "waifud",
                "forwarding",
                Some("forward"),
                Some("drop")
            )])
            .is_empty()
        );
    }
}
