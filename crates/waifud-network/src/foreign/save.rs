//! Rules that iptables manages, as `iptables-save` shows them: Docker's, ufw's, and those written by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::{AcceptedInterfaces, MARK};

/// One rule: its chain, and its words as iptables takes them after the chain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) words: Vec<String>,
}

/// What is to be done for guests to get accepted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Plan {
    /// Ours, and no use any more.
    pub(crate) outdated: Vec<Rule>,
    /// To be inserted at the head of their chains.
    pub(crate) missing: Vec<Rule>,
    /// Chains in which guests are let accepted, then.
    pub(crate) places: Vec<String>,
}

/// The table `filter`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Filter {
    /// Chains; true where the policy drops.
    chains: BTreeMap<String, bool>,
    rules: Vec<Rule>,
}

impl Filter {
    /// Reads what `iptables-save` wrote (iptables-save(8)); other tables and lines that are none of its are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut filter = Self::default();
        let mut inside = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                inside = table.trim() == "filter";
            } else if !inside {
                // Another table's.
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

    /// Ours.
    pub(crate) fn marked(&self) -> Vec<Rule> {
        let ours = self.rules.iter().filter(|rule| rule.is_marked());
        ours.cloned().collect()
    }

    /// What guests need: nothing where nothing drops.
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

    /// Where an accept must stand so that `hook` does not drop what it accepts.
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

    /// Whether what nothing accepts is dropped at the end of a chain.
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

    /// Where it leads to.
    fn target(&self) -> Option<&str> {
        let at = self.words.iter().position(|w| w == "-j" || w == "-g")?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// Where it leads every packet to.
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

    /// The same chain and conditions, however versions of iptables order and load them.
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

/// Both directions. What guests may reach is decided in our own tables, before.
fn forwarded(accepted: &AcceptedInterfaces) -> Vec<Vec<String>> {
    let rule = |(from, to): (Option<&str>, Option<&str>)| {
        let from = from.into_iter().flat_map(|name| ["-i", name]);
        let to = to.into_iter().flat_map(|name| ["-o", name]);
        accept(&from.chain(to).collect::<Vec<_>>())
    };
    accepted.forwarded().into_iter().map(rule).collect()
}

/// What the gateway serves: DHCP, DNS and ping.
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

/// Words are parted by blanks; those with blanks stand in double quotes, in which a backslash escapes.
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
    fn docker_gets_both_directions_where_it_wants_additions() {
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
    fn guests_on_the_hosts_own_bridge_get_their_metadata_and_their_frames() {
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
        // Without such guests, only those of `default` are let accepted.
        assert_eq!(filter.plan(&"waifu0".into()).outdated.len(), 3);
    }

    #[test]
    fn ufw_gets_them_too_and_what_the_gateway_serves() {
        let ufw = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:ufw-before-input - [0:0]\n\
            :ufw-before-forward - [0:0]\n-A INPUT -j ufw-before-input\n-A FORWARD -j ufw-before-forward\nCOMMIT\n";
        let plan = Filter::parse(ufw).plan(&"waifu0".into());
        assert_eq!(plan.places, ["ufw-before-forward", "ufw-before-input"]);
        assert_eq!(plan.missing.len(), 6);
    }

    #[test]
    fn without_known_chains_the_head_of_the_dropping_one_is_the_place() {
        let places = |text: &str| Filter::parse(text).plan(&"waifu0".into()).places;
        assert_eq!(places("*filter\n:FORWARD DROP [0:0]\n"), ["FORWARD"]);
        let rejects = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:end - [0:0]\n-A FORWARD -j end\n\
            -A end -m comment --comment \"the \\\"end\\\"\" -j REJECT --reject-with icmp-port-unreachable\n";
        assert_eq!(places(rejects), ["FORWARD"]);
        // A chain that nothing leads to is no place.
        assert_eq!(
            places("*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n"),
            ["FORWARD"]
        );
    }

    #[test]
    fn where_nothing_drops_nothing_is_wanted_and_ours_go() {
        let open = "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
            -A FORWARD -s 10.0.0.0/8 -j DROP\n\
            -A DOCKER-USER -i waifu0 -m comment --comment waifud -j ACCEPT\n";
        let plan = Filter::parse(open).plan(&"waifu0".into());
        assert!(plan.missing.is_empty() && plan.places.is_empty());
        assert_eq!(plan.outdated.len(), 1);
    }

    #[test]
    fn another_bridges_rules_and_doubles_are_outdated() {
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
    fn chains_that_lead_to_each_other_end() {
        let text = "*filter\n:FORWARD ACCEPT\n:a -\n-A FORWARD -j a\n-A a -g FORWARD\n";
        assert!(Filter::parse(text).plan(&"waifu0".into()).places.is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_what_was_planned_is_whole(noise in "[ -~\n]{0,200}") {
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
