//! Limits on messages of nodes: counts, lengths and numbers in [`Hello`] and [`AgentReport`].
//!
//! Both sides walk over a message with the same code. waifud checks messages and refuses those out of bounds, with the
//! name of the field; it only drops bridges with impossible names. The agent fits its own messages before it sends them:
//! long texts and lists are truncated, control characters replaced with spaces, numbers capped. A fitted message passes
//! the check.

use std::collections::{BTreeMap, HashSet};

use waifud_types::evidence::FirewallCounts;
use waifud_types::firewall::{PORTS_MAX, RULES_MAX};
use waifud_types::node::{NodeFacts, PoolFacts};
use waifud_types::spec::InstanceSpec;
use waifud_types::status::{CloudInitStatus, Condition, InstanceAddress, StepStatus};
use waifud_types::{ByteSize, Generation, PoolKind, evidence};

use super::{AgentInstance, AgentReport, Hello, InstanceReport, Unmanaged};

/// Maximum number of instances in a report.
pub const INSTANCES_MAX: usize = 1024;
/// Maximum number of confirmed tombstones in a report.
pub const DESTROYED_MAX: usize = 1024;
/// Maximum number of recorded releases in a report.
pub const RELEASED_MAX: usize = 1024;
/// Maximum number of instances that a node receives, in a report.
pub const RECEIVING_MAX: usize = 1024;
/// Maximum number of unmanaged objects on a node.
pub const UNMANAGED_MAX: usize = 4096;

/// Maximum size in bytes: 1 EiB.
const BYTES_MAX: u64 = 1 << 60;
/// Maximum value of a counter: the largest integer that all JSON implementations support.
const COUNT_MAX: u64 = 1 << 53;
/// Maximum number of CPUs.
const CPUS_MAX: u64 = 1 << 16;
/// Maximum length of a reason for programs in characters.
const WORD: usize = 64;
/// Maximum length of a name from outside waifud in characters.
const NAME: usize = 256;
/// Maximum length of a sentence in characters.
const SENTENCE: usize = 2048;
/// Maximum length of a label's key and value in characters.
const LABEL: (usize, usize) = (63, 255);
/// Maximum number of labels.
const LABELS: usize = 64;
/// Maximum length of a short list.
const SHORT_LIST_MAX: usize = 64;
/// Maximum length of a medium list.
const LONG_LIST_MAX: usize = 1024;
/// Maximum number of requests and console lines of a guest.
const REQUESTS: usize = evidence::REQUESTS_MAX;
/// Maximum number of modules of cloud-init of a guest.
const MODULES: usize = evidence::MODULES_MAX;
/// Maximum length of a bundle in base64.
const BUNDLE: usize = 8 << 20;

/// A field that is out of bounds.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {why}")]
pub struct OutOfBounds {
    /// Path of the field, for example `facts.pools[0].used_bytes`.
    pub field: String,
    /// The problem.
    pub why: String,
}

impl Hello {
    /// Checks that all fields are within bounds. Only drops bridges with impossible names, which older agents report.
    pub fn check(&mut self) -> Result<(), OutOfBounds> {
        let mut walk = Walk::checking();
        walk.at("facts", |walk| walk.facts(&mut self.facts));
        walk.outcome()
    }

    /// Truncates fields that are out of bounds.
    pub fn fit(&mut self) {
        Walk::fitting().facts(&mut self.facts);
    }
}

impl AgentReport {
    /// Checks that all fields are within bounds and no instance occurs twice. Only drops bridges with impossible names,
    /// which older agents report.
    pub fn check(&mut self) -> Result<(), OutOfBounds> {
        let mut walk = Walk::checking();
        walk.report(self);
        let mut ids = HashSet::with_capacity(self.instances.len());
        if !self.instances.iter().all(|it| ids.insert(it.id)) {
            walk.at("instances", |walk| walk.wrong("an instance occurs twice"));
        }
        walk.outcome()
    }

    /// Truncates fields that are out of bounds; of an instance that occurs twice, the first entry is kept.
    pub fn fit(&mut self) {
        Walk::fitting().report(self);
        let mut ids = HashSet::with_capacity(self.instances.len());
        self.instances.retain(|it| ids.insert(it.id));
    }
}

impl AgentInstance {
    /// Checks that all fields are within bounds; does not change them.
    pub fn check(&mut self) -> Result<(), OutOfBounds> {
        let mut walk = Walk::checking();
        walk.record(self);
        walk.outcome()
    }
}

/// Whether Linux allows the name for a network interface: 1 to 15 bytes, without slashes, colons and white space.
fn is_interface(name: &str) -> bool {
    let allowed = |c: char| !(c.is_whitespace() || c.is_control() || c == '/' || c == ':');
    (1..=15).contains(&name.len()) && name != "." && name != ".." && name.chars().all(allowed)
}

enum Step {
    Field(&'static str),
    Item(usize),
}

struct Walk {
    /// Whether to truncate instead of checking.
    fit: bool,
    path: Vec<Step>,
    /// The first error.
    found: Option<OutOfBounds>,
}

impl Walk {
    fn checking() -> Self {
        Self {
            fit: false,
            path: Vec::new(),
            found: None,
        }
    }

    fn fitting() -> Self {
        Self {
            fit: true,
            ..Self::checking()
        }
    }

    fn outcome(self) -> Result<(), OutOfBounds> {
        self.found.map_or(Ok(()), Err)
    }

    fn wrong(&mut self, why: impl Into<String>) {
        if self.fit || self.found.is_some() {
            return;
        }
        let mut field = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => {
                    if !field.is_empty() {
                        field.push('.');
                    }
                    field.push_str(name);
                }
                Step::Item(index) => {
                    field.push('[');
                    field.push_str(&index.to_string());
                    field.push(']');
                }
            }
        }
        self.found = Some(OutOfBounds {
            field,
            why: why.into(),
        });
    }

    fn at(&mut self, field: &'static str, look: impl FnOnce(&mut Self)) {
        self.path.push(Step::Field(field));
        look(self);
        self.path.pop();
    }

    fn text(&mut self, field: &'static str, text: &mut String, most: usize) {
        self.at(field, |walk| walk.bare_text(text, most));
    }

    fn maybe_text(&mut self, field: &'static str, text: &mut Option<String>, most: usize) {
        if let Some(text) = text {
            self.text(field, text, most);
        }
    }

    fn bare_text(&mut self, text: &mut String, most: usize) {
        // No character takes less than a byte.
        let long = text.len() > most && text.chars().nth(most).is_some();
        let control = text.chars().any(char::is_control);
        if self.fit {
            if long || control {
                let plain = |c: char| if c.is_control() { ' ' } else { c };
                *text = text.chars().take(most).map(plain).collect();
            }
        } else if long {
            self.wrong(format!("it has more than {most} characters"));
        } else if control {
            self.wrong("it has control characters");
        }
    }

    fn interface(&mut self, name: &str) {
        if !is_interface(name) {
            self.wrong("it is not a valid network interface name");
        }
    }

    fn number(&mut self, field: &'static str, value: &mut u64, most: u64) {
        if *value <= most {
            return;
        }
        if self.fit {
            *value = most;
        } else {
            self.at(field, |walk| walk.wrong(format!("it exceeds {most}")));
        }
    }

    fn bytes(&mut self, field: &'static str, size: &mut ByteSize) {
        self.number(field, &mut size.0, BYTES_MAX);
    }

    fn cpus(&mut self, field: &'static str, cpus: &mut u32) {
        let mut wide = u64::from(*cpus);
        self.number(field, &mut wide, CPUS_MAX);
        *cpus = u32::try_from(wide).unwrap_or(*cpus);
    }

    fn generation(&mut self, field: &'static str, generation: &mut Generation) {
        self.number(field, &mut generation.0, COUNT_MAX);
    }

    fn list<T>(
        &mut self,
        field: &'static str,
        list: &mut Vec<T>,
        most: usize,
        mut each: impl FnMut(&mut Self, &mut T),
    ) {
        self.path.push(Step::Field(field));
        if list.len() > most {
            self.wrong(format!("it has more than {most} items"));
            if self.fit {
                list.truncate(most);
            }
        }
        for (index, item) in list.iter_mut().take(most).enumerate() {
            self.path.push(Step::Item(index));
            each(self, item);
            self.path.pop();
        }
        self.path.pop();
    }

    fn map(
        &mut self,
        field: &'static str,
        map: &mut BTreeMap<String, String>,
        most: usize,
        (key_max, value_max): (usize, usize),
    ) {
        self.path.push(Step::Field(field));
        if map.len() > most {
            self.wrong(format!("it has more than {most} items"));
        }
        if self.fit {
            let fitted = std::mem::take(map).into_iter().take(most);
            *map = fitted
                .map(|(mut key, mut value)| {
                    self.bare_text(&mut key, key_max);
                    self.bare_text(&mut value, value_max);
                    (key, value)
                })
                .collect();
        } else {
            for (key, value) in map.iter_mut().take(most) {
                self.bare_text(&mut key.clone(), key_max);
                self.bare_text(value, value_max);
            }
        }
        self.path.pop();
    }

    fn facts(&mut self, facts: &mut NodeFacts) {
        self.text("arch", &mut facts.arch, WORD);
        self.text("cpu_model", &mut facts.cpu_model, NAME);
        self.text("agent_version", &mut facts.agent_version, WORD);
        self.at("hypervisor", |walk| {
            walk.text("reason", &mut facts.hypervisor.reason, SENTENCE);
        });
        for (field, resources) in [("capacity", &mut facts.capacity), ("used", &mut facts.used)] {
            self.at(field, |walk| {
                walk.cpus("cpus", &mut resources.cpus);
                walk.bytes("memory_bytes", &mut resources.memory_bytes);
            });
        }
        self.list("pools", &mut facts.pools, SHORT_LIST_MAX, Self::pool);
        // Agents of earlier versions send names that Linux does not allow. No guest can use such a bridge, and the other
        // facts are correct.
        facts.bridges.retain(|bridge| is_interface(bridge));
        facts.unfit_bridges.retain(|bridge, _| is_interface(bridge));
        self.list("bridges", &mut facts.bridges, LONG_LIST_MAX, |_, _| {});
        let unfit = &mut facts.unfit_bridges;
        self.map("unfit_bridges", unfit, LONG_LIST_MAX, (WORD, SENTENCE));
        if self.fit && facts.routes.len() > LONG_LIST_MAX {
            // Keeps the largest networks, which cover most addresses.
            facts.routes = ipnet::Ipv4Net::aggregate(&facts.routes);
            facts.routes.sort_by_key(ipnet::Ipv4Net::prefix_len);
        }
        self.list("routes", &mut facts.routes, LONG_LIST_MAX, |_, _| {});
        self.conditions(&mut facts.conditions);
        self.map("labels", &mut facts.labels, LABELS, LABEL);
        self.list(
            "features",
            &mut facts.features,
            SHORT_LIST_MAX,
            |walk, feature| walk.bare_text(feature, WORD),
        );
        if let Some(mesh) = &mut facts.mesh {
            self.at("mesh", |walk| {
                walk.text("public_key", &mut mesh.public_key, WORD);
                walk.list("endpoints", &mut mesh.endpoints, SHORT_LIST_MAX, |_, _| {});
            });
        }
        if let Some(port) = &mut facts.peer_port {
            self.at("peer_port", |walk| {
                walk.list("endpoints", &mut port.endpoints, SHORT_LIST_MAX, |_, _| {});
            });
        }
        if let Some(dns) = &mut facts.dns {
            self.at("dns", |walk| {
                walk.text("domain", &mut dns.domain, NAME);
                walk.list("listen", &mut dns.listen, SHORT_LIST_MAX, |walk, one| {
                    walk.maybe_text("error", &mut one.error, SENTENCE);
                });
            });
        }
    }

    fn pool(&mut self, pool: &mut PoolFacts) {
        if let PoolKind::Other(kind) = &mut pool.kind {
            self.text("kind", kind, WORD);
        }
        self.bytes("size_bytes", &mut pool.size_bytes);
        self.bytes("used_bytes", &mut pool.used_bytes);
        self.bytes("promised_bytes", &mut pool.promised_bytes);
        self.text("health", &mut pool.health, SENTENCE);
        if let Some(images) = &mut pool.images {
            self.list("images", images, LONG_LIST_MAX, |_, _| {});
        }
    }

    fn conditions(&mut self, conditions: &mut Vec<Condition>) {
        self.list(
            "conditions",
            conditions,
            SHORT_LIST_MAX,
            |walk, condition| {
                walk.text("type", &mut condition.kind, WORD);
                walk.text("reason", &mut condition.reason, WORD);
                walk.text("message", &mut condition.message, SENTENCE);
            },
        );
    }

    fn report(&mut self, report: &mut AgentReport) {
        if let Some(facts) = &mut report.facts {
            self.at("facts", |walk| walk.facts(facts));
        }
        let instances = &mut report.instances;
        self.list("instances", instances, INSTANCES_MAX, Self::instance);
        self.list(
            "destroyed",
            &mut report.destroyed,
            DESTROYED_MAX,
            |walk, tombstone| walk.number("epoch", &mut tombstone.epoch.0, COUNT_MAX),
        );
        self.list(
            "released",
            &mut report.released,
            RELEASED_MAX,
            |walk, released| walk.number("epoch", &mut released.epoch.0, COUNT_MAX),
        );
        self.list(
            "receiving",
            &mut report.receiving,
            RECEIVING_MAX,
            |walk, receiving| {
                walk.number("epoch", &mut receiving.epoch.0, COUNT_MAX);
                walk.bytes("done_bytes", &mut receiving.done_bytes);
                walk.bytes("total_bytes", &mut receiving.total_bytes);
                walk.maybe_text("reason", &mut receiving.reason, SENTENCE);
            },
        );
        if let Some(unmanaged) = &mut report.unmanaged {
            self.list("unmanaged", unmanaged, UNMANAGED_MAX, Self::unmanaged);
        }
    }

    fn instance(&mut self, report: &mut InstanceReport) {
        self.number("epoch", &mut report.epoch.0, COUNT_MAX);
        self.generation("observed_generation", &mut report.observed_generation);
        self.maybe_text("reason", &mut report.reason, SENTENCE);
        self.list(
            "addresses",
            &mut report.addresses,
            SHORT_LIST_MAX,
            |_, _: &mut InstanceAddress| {},
        );
        if let Some(nics) = &mut report.nics {
            self.list("nics", nics, SHORT_LIST_MAX, |walk, nic| {
                walk.maybe_text("reason", &mut nic.reason, SENTENCE);
            });
        }
        if let Some(step) = &mut report.step {
            self.at("step", |walk| walk.step(step));
        }
        self.list(
            "restart_needed",
            &mut report.restart_needed,
            SHORT_LIST_MAX,
            |walk, field| {
                walk.bare_text(field, WORD);
            },
        );
        self.at("cloud_init", |walk| walk.cloud_init(&mut report.cloud_init));
        self.conditions(&mut report.conditions);
        if let Some(seen) = &mut report.evidence {
            self.at("evidence", |walk| {
                walk.list("requests", &mut seen.requests, REQUESTS, |walk, request| {
                    walk.text("path", &mut request.path, NAME);
                    walk.number("count", &mut request.count, COUNT_MAX);
                });
                walk.list("modules", &mut seen.modules, MODULES, |walk, module| {
                    walk.text("name", &mut module.name, NAME);
                    if let Some(took) = &mut module.took_ms {
                        walk.number("took_ms", took, COUNT_MAX);
                    }
                });
                if let Some(dropped) = &mut seen.dropped {
                    walk.at("dropped", |walk| {
                        walk.number("spoofed", &mut dropped.spoofed, COUNT_MAX);
                        walk.number("to_host", &mut dropped.to_host, COUNT_MAX);
                    });
                }
                if let Some(counts) = &mut seen.firewall {
                    walk.at("firewall", |walk| walk.firewall(counts));
                }
                walk.list("console", &mut seen.console, REQUESTS, |walk, line| {
                    walk.bare_text(line, SENTENCE);
                });
            });
        }
    }

    fn firewall(&mut self, counts: &mut FirewallCounts) {
        self.number("in", &mut counts.incoming, COUNT_MAX);
        self.number("out", &mut counts.outgoing, COUNT_MAX);
        self.list("rules", &mut counts.rules, RULES_MAX, |walk, rule| {
            walk.text("id", &mut rule.id, WORD);
            walk.number("packets", &mut rule.packets, COUNT_MAX);
        });
    }

    fn step(&mut self, step: &mut StepStatus) {
        self.text("name", &mut step.name, WORD);
        self.maybe_text("waiting_for", &mut step.waiting_for, SENTENCE);
        if let Some(percent) = &mut step.percent {
            let mut wide = u64::from(*percent);
            self.number("percent", &mut wide, 100);
            *percent = u8::try_from(wide).unwrap_or(*percent);
        }
    }

    fn cloud_init(&mut self, status: &mut CloudInitStatus) {
        self.maybe_text("instance_id", &mut status.instance_id, NAME);
        self.maybe_text("datasource", &mut status.datasource, NAME);
        self.maybe_text("unknown_because", &mut status.unknown_because, SENTENCE);
        self.list(
            "errors",
            &mut status.errors,
            SHORT_LIST_MAX,
            |walk, error| {
                walk.bare_text(error, SENTENCE);
            },
        );
    }

    fn unmanaged(&mut self, entry: &mut Unmanaged) {
        self.text("kind", &mut entry.kind, WORD);
        self.maybe_text("name", &mut entry.name, NAME);
        self.list("addresses", &mut entry.addresses, SHORT_LIST_MAX, |_, _| {});
        self.maybe_text("bundle", &mut entry.bundle, BUNDLE);
        if let Some(record) = &mut entry.record {
            let its_own = record.id == entry.instance;
            if self.fit {
                // waifud knows them, so agents do not report them.
                record.firewall_peers.clear();
                // The record must be exactly what waifud sent, so a truncated one is dropped.
                if !its_own || record.check().is_err() {
                    entry.record = None;
                }
                return;
            }
            self.at("record", |walk| {
                if !its_own {
                    walk.at("id", |walk| walk.wrong("it belongs to another instance"));
                }
                walk.record(record);
            });
        }
    }

    fn record(&mut self, record: &mut AgentInstance) {
        self.number("epoch", &mut record.epoch.0, COUNT_MAX);
        self.generation("generation", &mut record.generation);
        self.bytes("image_size_bytes", &mut record.image_size_bytes);
        let virtual_size = &mut record.image_virtual_size_bytes;
        self.bytes("image_virtual_size_bytes", virtual_size);
        self.at("spec", |walk| walk.spec(&mut record.spec));
        self.at("bundle", |walk| {
            walk.number("size_bytes", &mut record.bundle.size_bytes, BYTES_MAX);
            if record.bundle.key.expose().len() > NAME {
                walk.at("key", |walk| walk.wrong("it is too long"));
            }
        });
        self.at("bridges", |walk| {
            if record.bridges.len() > SHORT_LIST_MAX {
                walk.wrong(format!("it has more than {SHORT_LIST_MAX} items"));
            }
            for bridge in record.bridges.values() {
                walk.interface(bridge);
            }
        });
        if !record.firewall_peers.is_empty() {
            self.at("firewall_peers", |walk| walk.wrong("it is not empty"));
        }
    }

    fn spec(&mut self, spec: &mut InstanceSpec) {
        self.cpus("cpus", &mut spec.cpus);
        self.bytes("memory_bytes", &mut spec.memory_bytes);
        self.at("power", |walk| {
            walk.number("reboots", &mut spec.power.reboots, COUNT_MAX);
        });
        self.list("disks", &mut spec.disks, SHORT_LIST_MAX, |walk, disk| {
            walk.bytes("size_bytes", &mut disk.size_bytes);
        });
        self.list("nics", &mut spec.nics, SHORT_LIST_MAX, |walk, nic| {
            walk.list(
                "allow_addresses",
                &mut nic.allow_addresses,
                LONG_LIST_MAX,
                |_, _| {},
            );
        });
        self.list("publish", &mut spec.publish, LONG_LIST_MAX, |_, _| {});
        self.at("firewall", |walk| {
            let rules = &mut spec.firewall.rules;
            walk.list("rules", rules, RULES_MAX, |walk, rule| {
                walk.list("ports", &mut rule.ports, PORTS_MAX, |_, _| {});
            });
        });
        self.at("placement", |walk| {
            walk.map("require", &mut spec.placement.require, LABELS, LABEL);
        });
        if let Some(rescue) = &mut spec.rescue {
            self.at("rescue", |walk| {
                walk.list(
                    "ssh_keys",
                    &mut rescue.ssh_keys,
                    LONG_LIST_MAX,
                    |walk, key| {
                        walk.bare_text(key, 16 << 10);
                    },
                );
            });
        }
        if let Some(facts) = &mut spec.user_data {
            self.at("user_data", |walk| {
                walk.number("size_bytes", &mut facts.size_bytes, BYTES_MAX);
            });
        }
    }
}

#[cfg(test)]
mod tests;
