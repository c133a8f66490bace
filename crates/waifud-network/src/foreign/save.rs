//! Rules of iptables, as `iptables-save` lists them: Docker's, ufw's, and those written by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::{AcceptedInterfaces, MARK};

/// One rule: its chain, and its arguments after the chain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) words: Vec<String>,
}

/// The rules to remove and to insert.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    /// Our rules that are not wanted.
    pub(crate) outdated: Vec<Rule>,
    /// Rules to insert at the head of their chains.
    pub(crate) missing: Vec<Rule>,
    /// Chains that accept guests after that.
    pub(crate) places: Vec<String>,
}

/// The table `filter`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Filter {
    /// Chains, and whether their policy is to drop.
    chains: BTreeMap<String, bool>,
    rules: Vec<Rule>,
}

impl Filter {
    /// Reads the output of iptables-save(8). Other tables and unknown lines are ignored.
    pub(crate) fn parse(text: &str) -> Self {
        let mut filter = Self::default();
        let mut inside = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                inside = table.trim() == "filter";
            } else if !inside {
                // A line of another table.
            } else if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_ascii_whitespace();
                if let Some(name) = words.next() {
                    let drops = words.next() == Some("DROP");
                    filter.chains.insert(name.to_owned(), drops);
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let mut words = words(rule).into_iter();
                if let Some(chain) = words.next() {
                    let words = words.collect();
                    filter.rules.push(Rule { chain, words });
                }
            }
        }
        filter
    }

    /// All our rules.
    pub(crate) fn marked(&self) -> Vec<Rule> {
        let ours = self.rules.iter().filter(|rule| rule.is_marked());
        ours.cloned().collect()
    }

    /// Compares with the rules that guests need. None are needed in chains that do not drop.
    pub(crate) fn plan(&self, accepted: &AcceptedInterfaces) -> Plan {
        let mut wanted = Vec::new();
        let mut places = Vec::new();
        for (hook, known, rules) in [
            (
                "FORWARD",
                ["DOCKER-USER", "ufw-before-forward"].as_slice(),
                forwarded(accepted),
            ),
            ("INPUT", &["ufw-before-input"], to_host(&accepted.bridge)),
        ] {
            for chain in self.places(hook, known) {
                wanted.extend(rules.iter().map(|words| Rule {
                    chain: chain.to_owned(),
                    words: words.clone(),
                }));
                places.push(chain.to_owned());
            }
        }
        let mut missing = wanted;
        let mut outdated = Vec::new();
        for rule in self.marked() {
            match missing.iter().position(|wanted| wanted.is_like(&rule)) {
                Some(at) => drop(missing.swap_remove(at)),
                None => outdated.push(rule),
            }
        }
        Plan {
            outdated,
            missing,
            places,
        }
    }

    /// The chains in which an accept takes effect before `hook` drops.
    fn places<'a>(&self, hook: &'a str, known: &[&'a str]) -> Vec<&'a str> {
        if !self.drops(hook, &mut BTreeSet::new()) {
            return Vec::new();
        }
        let mut reached = BTreeSet::new();
        self.reach(hook, &mut reached);
        let mut places = known.to_vec();
        places.retain(|chain| self.chains.contains_key(*chain) && reached.contains(*chain));
        if places.is_empty() {
            places.push(hook);
        }
        places
    }

    /// Whether a chain drops packets that no rule accepts.
    fn drops<'a>(&'a self, chain: &'a str, seen: &mut BTreeSet<&'a str>) -> bool {
        if !seen.insert(chain) {
            return false;
        }
        self.chains.get(chain) == Some(&true)
            || self.of(chain).any(|rule| match rule.always() {
                Some("DROP" | "REJECT") => true,
                Some(target) => self.drops(target, seen),
                None => false,
            })
    }

    fn reach<'a>(&'a self, chain: &'a str, reached: &mut BTreeSet<&'a str>) {
        if reached.insert(chain) {
            for target in self.of(chain).filter_map(Rule::target) {
                self.reach(target, reached);
            }
        }
    }

    fn of<'a>(&'a self, chain: &str) -> impl Iterator<Item = &'a Rule> {
        let chain = chain.to_owned();
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }
}

impl Rule {
    fn is_marked(&self) -> bool {
        let mut pairs = self.words.windows(2);
        pairs.any(|pair| pair == ["--comment", MARK])
    }

    /// The target.
    fn target(&self) -> Option<&str> {
        let at = self.words.iter().position(|w| w == "-j" || w == "-g")?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// The target, if the rule has no conditions.
    fn always(&self) -> Option<&str> {
        let mut words = self.words.iter().map(String::as_str);
        loop {
            match words.next()? {
                "-j" | "-g" => return words.next(),
                "-m" if words.next() == Some("comment") => {}
                "--comment" => drop(words.next()),
                _ => return None,
            }
        }
    }

    /// Whether both have the same chain and conditions. Versions of iptables order them differently.
    fn is_like(&self, other: &Self) -> bool {
        let essence = |rule: &Self| {
            let mut words = rule.words.iter();
            let mut kept = BTreeSet::new();
            while let Some(word) = words.next() {
                if word == "-m" {
                    words.next();
                } else {
                    kept.insert(word.clone());
                }
            }
            kept
        };
        self.chain == other.chain && essence(self) == essence(other)
    }
}

/// Rules for both directions. Our own tables restrict guests' traffic before.
fn forwarded(accepted: &AcceptedInterfaces) -> Vec<Vec<String>> {
    let rule = |(from, to): (Option<&str>, Option<&str>)| {
        let from = from.into_iter().flat_map(|name| ["-i", name]);
        let to = to.into_iter().flat_map(|name| ["-o", name]);
        accept(&from.chain(to).collect::<Vec<_>>())
    };
    accepted.forwarded().into_iter().map(rule).collect()
}

/// Rules for the gateway's services: DHCP, DNS and ping.
fn to_host(bridge: &str) -> Vec<Vec<String>> {
    let serve = |protocol, option, what| accept(&["-i", bridge, "-p", protocol, option, what]);
    vec![
        serve("udp", "--dport", "67"),
        serve("udp", "--dport", "53"),
        serve("tcp", "--dport", "53"),
        serve("icmp", "--icmp-type", "8"),
    ]
}

fn accept(conditions: &[&str]) -> Vec<String> {
    let mark = ["-m", "comment", "--comment", MARK, "-j", "ACCEPT"];
    let words = conditions.iter().chain(&mark);
    words.map(|word| (*word).to_owned()).collect()
}

/// Splits a line at blanks. Words with blanks are in double quotes, in which a backslash escapes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(letters.next()),
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOCKER: &str = "*nat\n:PREROUTING DROP [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\n\
        :OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\n\
        -A DOCKER ! -i docker0 -o docker0 -j DROP\nCOMMIT\n";

    fn shown(rules: &[Rule]) -> Vec<String> {
        let show = |rule: &Rule| format!("{} {}", rule.chain, rule.words.join(" "));
        rules.iter().map(show).collect()
    }

    #[test]
    fn docker_gets_both_directions_in_its_chain_for_additions() {
        let plan = Filter::parse(DOCKER).plan(&"waifu0".into());
        assert_eq!(
            shown(&plan.missing),
            [
                "DOCKER-USER -i waifu0 -m comment --comment waifud -j ACCEPT",
                "DOCKER-USER -o waifu0 -m comment --comment waifud -j ACCEPT",
            ]
        );
        assert_eq!(plan.places, ["DOCKER-USER"]);
        assert!(plan.outdated.is_empty());
    }

    #[test]
    fn guests_on_a_bridge_of_the_host_reach_metadata_and_each_other() {
        let accepted = AcceptedInterfaces {
            metadata: Some("wgw0".to_owned()),
            bridged: vec!["br0".to_owned()],
            ..AcceptedInterfaces::from("waifu0")
        };
        let mut filter = Filter::parse(DOCKER);
        let plan = filter.plan(&accepted);
        let rules = shown(&plan.missing);
        assert_eq!(rules.len(), 5);
        assert!(rules[2].starts_with("DOCKER-USER -i wgw0 -m"), "{rules:?}");
        assert!(
            rules[4].starts_with("DOCKER-USER -i br0 -o br0 -m"),
            "{rules:?}"
        );
        filter.rules.splice(0..0, plan.missing);
        let again = filter.plan(&accepted);
        assert!(again.missing.is_empty() && again.outdated.is_empty());
        // Without such guests, only those of `default` are accepted.
        assert_eq!(filter.plan(&"waifu0".into()).outdated.len(), 3);
    }

    #[test]
    fn ufw_gets_both_directions_and_the_gateways_services() {
        let ufw = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:ufw-before-input - [0:0]\n\
            :ufw-before-forward - [0:0]\n-A INPUT -j ufw-before-input\n-A FORWARD -j ufw-before-forward\nCOMMIT\n";
        let plan = Filter::parse(ufw).plan(&"waifu0".into());
        assert_eq!(plan.places, ["ufw-before-forward", "ufw-before-input"]);
        assert_eq!(plan.missing.len(), 6);
    }

    #[test]
    fn without_known_chains_rules_go_to_the_head_of_the_dropping_chain() {
        let places = |text: &str| Filter::parse(text).plan(&"waifu0".into()).places;
        assert_eq!(places("*filter\n:FORWARD DROP [0:0]\n"), ["FORWARD"]);
        let rejects = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:end - [0:0]\n-A FORWARD -j end\n\
            -A end -m comment --comment \"the \\\"end\\\"\" -j REJECT --reject-with icmp-port-unreachable\n";
        assert_eq!(places(rejects), ["FORWARD"]);
        // A chain that no rule jumps to is not used.
        assert_eq!(
            places("*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n"),
            ["FORWARD"]
        );
    }

    #[test]
    fn without_dropping_chains_our_rules_are_removed() {
        let open = "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
            -A FORWARD -s 10.0.0.0/8 -j DROP\n\
            -A DOCKER-USER -i waifu0 -m comment --comment waifud -j ACCEPT\n";
        let plan = Filter::parse(open).plan(&"waifu0".into());
        assert!(plan.missing.is_empty() && plan.places.is_empty());
        assert_eq!(plan.outdated.len(), 1);
    }

    #[test]
    fn rules_of_another_bridge_and_duplicates_are_outdated() {
        let rule = "-A DOCKER-USER -i waifu1 -m comment --comment waifud -j ACCEPT\n";
        let text = DOCKER.replace("COMMIT", &format!("{rule}{rule}COMMIT"));
        assert_eq!(
            Filter::parse(&text).plan(&"waifu0".into()).outdated.len(),
            2
        );
        assert_eq!(
            Filter::parse(&text).plan(&"waifu1".into()).outdated.len(),
            1
        );
        assert_eq!(Filter::parse(&text).plan(&"waifu1".into()).missing.len(), 1);
    }

    #[test]
    fn only_rules_with_exactly_the_mark_as_comment_are_removed() {
        let of = |comment: &str| {
            let rule =
                format!("-A DOCKER-USER -i waifu0 -m comment --comment {comment} -j ACCEPT\n");
            Filter::parse(&DOCKER.replace("COMMIT", &format!("{rule}COMMIT")))
        };
        for comment in [
            "waifud-x",
            "Waifud",
            "\"my waifud\"",
            "\"waifud \"",
            "\"\"",
            "\"--comment waifud\"",
        ] {
            let filter = of(comment);
            assert_eq!(filter.marked(), [], "{comment}");
            let plan = filter.plan(&"waifu1".into());
            assert_eq!(plan.outdated, [], "{comment}");
            assert_eq!(filter.plan(&"waifu0".into()).missing.len(), 2, "{comment}");
        }
        for comment in ["waifud", "\"waifud\""] {
            let filter = of(comment);
            assert_eq!(filter.marked().len(), 1, "{comment}");
            assert_eq!(filter.plan(&"waifu0".into()).missing.len(), 1, "{comment}");
        }
    }

    #[test]
    fn chains_that_jump_to_each_other_do_not_loop() {
        let text = "*filter\n:FORWARD ACCEPT\n:a -\n-A FORWARD -j a\n-A a -g FORWARD\n";
        assert!(Filter::parse(text).plan(&"waifu0".into()).places.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_parsed_and_a_planned_change_is_complete(noise in "[ -~\n]{0,200}") {
            let filter = Filter::parse(&format!("{noise}\n{DOCKER}"));
            let plan = filter.plan(&"waifu0".into());
            let mut after = filter;
            after.rules.retain(|rule| !plan.outdated.contains(rule));
            after.rules.splice(0..0, plan.missing);
            let again = after.plan(&"waifu0".into());
            prop_assert!(again.missing.is_empty() && again.outdated.is_empty());
        }
    }
}
